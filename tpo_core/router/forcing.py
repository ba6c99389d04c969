"""Generation of task tokens: slots follow their start token by force, and a start token is allowed only where they still fit."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tpo_core.router.vocabulary import TaskVocabulary


class TaskTokenForcing:
    """A logits processor (called by transformers as ``processor(ids_BL, scores_BV)``); stateless, so beams and left padding do no harm.

    The state at a slot is known one step after the slot was chosen, so a start token needs room for its slots and one token more; without
    it the last slot would never be fed and its state would be lost. Slots are forced whatever the bias is.

    Args:
        vocabulary: ids of the task tokens.
        prompt_length: length of the (padded) prompt. budget: new tokens at most.
        allowed: per row, the heads that it may call; None: all.
        banned: ids that are never generated (vision placeholders).
        start_bias: added to the scores of start tokens (a logit bias); below 0, a head is called only where the model is surer.
    """

    def __init__(
        self,
        vocabulary: TaskVocabulary,
        *,
        prompt_length: int,
        budget: int,
        allowed: Sequence[frozenset[str]] | None = None,
        banned: tuple[int, ...] = (),
        start_bias: float = 0.0,
    ) -> None:
        follow = vocabulary.successors()
        self._follow = torch.full((vocabulary.size,), -1, dtype=torch.long)
        for token, successor in follow.items():
            self._follow[token - vocabulary.rows] = successor
        self._rows = vocabulary.rows
        self._need = {vocabulary.start_id(n): 2 + vocabulary.slots[n] for n in vocabulary.names}
        self._banned = list(banned)
        self._starts = torch.tensor([vocabulary.start_id(n) for n in vocabulary.names])
        rows = [frozenset(vocabulary.names)] if allowed is None else allowed
        self._added_BH = torch.tensor([[start_bias if n in row else -torch.inf for n in vocabulary.names] for row in rows])
        self._prompt_length = prompt_length
        self._budget = budget

    def __call__(self, ids_BL: Tensor, scores_BV: Tensor) -> Tensor:
        left = self._budget - (ids_BL.shape[1] - self._prompt_length)
        banned = [token for token, need in self._need.items() if need > left] + self._banned
        if banned:
            scores_BV = scores_BV.clone()
            scores_BV[:, banned] = -torch.inf
        # Beam search repeats every row.
        added_BH = self._added_BH.to(scores_BV).repeat_interleave(ids_BL.shape[0] // len(self._added_BH), dim=0)
        starts = self._starts.to(scores_BV.device)
        scores_BV = scores_BV.index_copy(1, starts, scores_BV[:, starts] + added_BH)
        task_B = ids_BL[:, -1] - self._rows
        inside_B = (task_B >= 0) & (task_B < len(self._follow))
        next_B = self._follow.to(ids_BL.device)[task_B.clamp(0, len(self._follow) - 1)]
        forced_B = inside_B & (next_B >= 0)
        only = torch.full_like(scores_BV, -torch.inf).scatter_(1, next_B.clamp(min=0)[:, None], 0.0)
        return torch.where(forced_B[:, None], only, scores_BV)
