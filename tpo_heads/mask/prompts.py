"""What stands between language model and SAM2: the adapter out of it, and the encoder of boxes and points into it.

Legend: N queries, Q prompts, S slots, D width of the language model, P prompt tokens, C width of SAM2's prompts.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from tpo_core.types import Tensors


class Adapter(nn.Module):
    """Task embeddings -> SAM2 prompt tokens, by an MLP with ReLU (paper, section 3.1; release: 4096-4096-768, three tokens).

    Args:
        depth: linear layers; all but the last keep the width.
    """

    def __init__(self, hidden: int, slots: int, tokens: int, width: int, depth: int) -> None:
        super().__init__()
        self.shape = (tokens, width)
        sizes = [hidden * slots] + [hidden] * (depth - 1)
        layers: list[nn.Module] = []
        for size_in, size_out in pairwise(sizes):
            layers += [nn.Linear(size_in, size_out), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], tokens * width))

    @torch.no_grad()
    def start_at(self, values_PC: Tensor) -> None:
        """Make the last layer give nearly these tokens at first, whatever it is asked."""
        last = self.layers[-1]
        assert isinstance(last, nn.Linear)
        last.weight.mul_(0.1)
        last.bias.copy_(values_PC.flatten())

    @property
    def dtype(self) -> torch.dtype:
        """Return the type of the weights."""
        return next(self.parameters()).dtype

    def forward(self, states_NSD: Tensor) -> Tensor:
        """Return prompt tokens (N, P, C)."""
        tokens: Tensor = self.layers(states_NSD.flatten(1)).unflatten(1, self.shape)
        return tokens


class Presence(nn.Module):
    """Task embeddings -> what they say of whether the object is there at all: a logit, zero at first."""

    def __init__(self, hidden: int, slots: int) -> None:
        super().__init__()
        self.read = nn.Linear(hidden * slots, 1)
        nn.init.zeros_(self.read.weight)
        nn.init.zeros_(self.read.bias)

    def forward(self, states_NSD: Tensor) -> Tensor:
        """Return logits (N,)."""
        logits: Tensor = self.read(states_NSD.to(self.read.weight.dtype).flatten(1)).squeeze(1)
        return logits


class PromptEncoder(nn.Module):
    """A box or a point of the question -> the embedding that stands for it there (release: Linear 4-2048, ReLU, Linear 2048-4096)."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        half = max(1, hidden // 2)
        self.box = nn.Sequential(nn.Linear(4, half), nn.ReLU(), nn.Linear(half, hidden))
        self.point = nn.Sequential(nn.Linear(2, half), nn.ReLU(), nn.Linear(half, hidden))

    def forward(self, prompts: Tensors) -> Tensor:
        """Return (Q, D) for the codec's ``box`` (Q, 4), ``point`` (Q, 2) and ``is_box`` (Q,)."""
        return torch.where(prompts["is_box"][:, None], self.box(prompts["box"]), self.point(prompts["point"]))
