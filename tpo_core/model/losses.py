"""Cross-entropy of the language model where start tokens stand beside the vocabulary.

Legend: K learnt positions, V rows of the vocabulary, H heads.
"""

from __future__ import annotations

import torch
from torch import Tensor


def no_start_loss(logits_KV: Tensor, starts_KH: Tensor) -> Tensor:
    """Return -log(1 - p(any start token)) of each position, float32 (K,), over the vocabulary and the start tokens together."""
    words = logits_KV.float().logsumexp(-1)
    return torch.logaddexp(words, starts_KH.float().logsumexp(-1)) - words


def token_loss(logits_KV: Tensor, starts_KH: Tensor, label_K: Tensor, rows: int) -> Tensor:
    """Return -log p(label) of each position, float32 (K,), over the vocabulary and the start tokens together.

    The two blocks of logits are never concatenated: that would copy the vocabulary's, the largest tensor of the step.

    Args:
        rows: first id of the start tokens.
    """
    logits = logits_KV.float()
    starts = starts_KH.float()
    total = torch.logaddexp(logits.logsumexp(-1), starts.logsumexp(-1))
    is_start = label_K >= rows
    word = logits.gather(1, label_K.clamp(max=logits.shape[1] - 1)[:, None])[:, 0]
    start = starts.gather(1, (label_K - rows).clamp(min=0, max=starts.shape[1] - 1)[:, None])[:, 0]
    return total - torch.where(is_start, start, word)
