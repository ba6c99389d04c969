"""Hooks on the two modules that every MLLM has: the input embedding and the output embedding.

Nothing of the backbone is edited: outside of `TokenHooks.active` the hooks do nothing at all.

Legend: B rows, L positions, D width, V rows of the vocabulary, K kept positions, R rows of the task table, H heads.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass
class Pass:
    """What one forward (or one generation) writes and reads.

    Args:
        table_RD: rows for ids beyond the vocabulary: task tokens, then this batch's spatial prompts.
        starts_HD: output rows of the start tokens.
        keep_K: flat positions whose logits are wanted, or None for all.
        append: write the start logits behind the backbone's own (generation), with -inf for slots; otherwise they are kept apart.
        blocked: slots and prompts: how many columns of -inf follow the start logits when appending.
        vocabulary: number of ids that the tokenizer knows; logits of the padded rows above are -inf when appending.
    """

    table_RD: Tensor
    starts_HD: Tensor
    keep_K: Tensor | None = None
    append: bool = False
    blocked: int = 0
    vocabulary: int | None = None
    hidden_BLD: Tensor | None = None
    starts_KH: Tensor | None = None
    states: list[Tensor] = field(default_factory=list)
    embeds_BLD: Tensor | None = None


class TokenHooks:
    """Installed once per model, after LoRA; `rows` is the first id beyond the vocabulary."""

    def __init__(self, embedding: nn.Module, output: nn.Module, decoder: nn.Module, rows: int) -> None:
        self._rows = rows
        self._pass: Pass | None = None
        self._ids: Tensor | None = None
        self._handles = [
            embedding.register_forward_pre_hook(self._before_embedding, with_kwargs=True),
            embedding.register_forward_hook(self._after_embedding),
            decoder.register_forward_pre_hook(self._before_decoder, with_kwargs=True),
            decoder.register_forward_hook(self._after_decoder),
            output.register_forward_pre_hook(self._before_output),
            output.register_forward_hook(self._after_output),
        ]

    def remove(self) -> None:
        """Take the hooks off the model."""
        for handle in self._handles:
            handle.remove()

    @contextmanager
    def active(self, current: Pass) -> Iterator[Pass]:
        """Write and read task tokens in every forward inside the block."""
        self._pass = current
        try:
            yield current
        finally:
            self._pass = self._ids = None

    def _before_embedding(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        if self._pass is None:
            return None
        ids = args[0] if args else next(iter(kwargs.values()))
        self._ids = ids
        # The look-up needs a legal row; `_after_embedding` overwrites it.
        legal = torch.where(ids >= self._rows, torch.zeros_like(ids), ids)
        if args:
            return (legal, *args[1:]), kwargs
        return args, {next(iter(kwargs)): legal}

    def _after_embedding(self, module: nn.Module, args: Any, out: Tensor) -> Tensor | None:
        if self._pass is None or self._ids is None:
            return None
        task = self._ids - self._rows
        rows = functional.embedding(task.clamp(min=0), self._pass.table_RD).to(out.dtype)
        return torch.where((task >= 0).unsqueeze(-1), rows, out)

    def _before_decoder(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self._pass is not None and self._pass.embeds_BLD is None:
            self._pass.embeds_BLD = kwargs.get("inputs_embeds")

    def _after_decoder(self, module: nn.Module, args: Any, out: Any) -> None:
        if self._pass is None or not self._pass.append:
            return
        hidden_BLD = out.last_hidden_state if hasattr(out, "last_hidden_state") else out[0]
        if not self._pass.states:
            self._pass.hidden_BLD = hidden_BLD
        self._pass.states.append(hidden_BLD[:, -1])

    def _before_output(self, module: nn.Module, args: Any) -> Any:
        if self._pass is None or self._pass.append:
            return None
        hidden_BLD = args[0]
        self._pass.hidden_BLD = hidden_BLD
        kept_1KD = hidden_BLD
        if self._pass.keep_K is not None:
            kept_1KD = hidden_BLD.flatten(0, -2).index_select(0, self._pass.keep_K).unsqueeze(0)
        self._pass.starts_KH = kept_1KD.flatten(0, -2) @ self._pass.starts_HD.to(kept_1KD.dtype).T
        return (kept_1KD, *args[1:])

    def _after_output(self, module: nn.Module, args: Any, out: Tensor) -> Tensor | None:
        current = self._pass
        if current is None or not current.append:
            return None
        lead = out.shape[:-1]
        starts = args[0] @ current.starts_HD.to(args[0].dtype).T
        if out.shape[-1] < self._rows:
            out = torch.cat([out, out.new_full((*lead, self._rows - out.shape[-1]), -torch.inf)], dim=-1)
        if current.vocabulary is not None and current.vocabulary < self._rows:
            out = out.clone()
            out[..., current.vocabulary : self._rows] = -torch.inf
        blocked = out.new_full((*lead, current.blocked), -torch.inf)
        return torch.cat([out, starts.to(out.dtype), blocked], dim=-1)
