"""Faults of the published code that its numbers depend on, for comparison only (``release_faults``); docs/temporal-head.md lists them.

Legend: N queries, T clips, K + L text tokens, A attention heads.
"""

from __future__ import annotations

import torch
from torch import Tensor


def crossed_text_mask(valid_NT: Tensor, seen_NK: Tensor, heads: int) -> Tensor:
    """Return which text each clip sees, (N, A, T, K + L), when padding masks are laid out by head but read by row.

    The mask of (padded clip, padded word) pairs was repeated head by head, while attention runs row by row: row n's head a gets the pairs
    of row ``(n * A + a) % N``. It shuts valid words out, and makes a row depend on its neighbours.
    """
    rows = valid_NT.shape[0]
    source_NA = torch.arange(rows * heads, device=valid_NT.device).view(rows, heads) % rows
    padded_NTK = ~valid_NT[:, :, None] & ~seen_NK[:, None]
    return seen_NK[:, None, None] & ~padded_NTK[source_NA]


def crossed_negative_mask(valid_NT: Tensor, seen_NK: Tensor, heads: int, has_negative_N: Tensor) -> Tensor:
    """Return the same for the pass over wrong questions, whose batch holds only the rows that have one."""
    mask_NATK = seen_NK[:, None, None].expand(-1, heads, valid_NT.shape[1], -1).clone()
    real = has_negative_N.nonzero().squeeze(1)
    mask_NATK[real] = crossed_text_mask(valid_NT[real], seen_NK[real], heads)
    return mask_NATK
