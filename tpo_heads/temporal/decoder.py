"""The moment decoder, DAB style: each query carries a window (centre, width) that every layer refines and that steers attention.

Legend: N queries of the head (rows), Q moment queries, T clips, C hidden width, A attention heads, c = C / A, J decoder layers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tpo_heads.temporal.layers import Dropout, FeedForward, Perceptron, Residual, attend, sine_code


def inverse_sigmoid(values: Tensor, eps: float = 1e-3) -> Tensor:
    """Return the logit of values in 0-1, which are kept `eps` away from both ends."""
    values = values.clamp(0, 1)
    return torch.log(values.clamp(min=eps) / (1 - values).clamp(min=eps))


@dataclass(frozen=True)
class Memory:
    """What the moment queries look at: clips, their places, and which are there (N, 1, T)."""

    content_NTC: Tensor
    place_NTC: Tensor
    seen_N1T: Tensor


class CrossAttention(nn.Module):
    """Few moment queries look at many clips.

    Keys and values are never formed: their weights are applied to the Q queries instead of the T clips, which is the same product in
    another order. Key biases would add one number to all scores of a query, which the softmax cancels, so there are none.
    """

    def __init__(self, width: int, heads: int, dropout: float, *, first: bool) -> None:
        super().__init__()
        self.heads, self.first = heads, first
        self.query = nn.Linear(2 * width if first else width, width)
        self.place_query = nn.Linear(width, width)
        self.key, self.place_key = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.dropout = Dropout(dropout)

    def forward(self, x_NQC: Tensor, code_NQC: Tensor, window_NQC: Tensor, memory: Memory) -> Tensor:
        """Return (N, Q, C); `code` is a query's own embedding of its window (first layer only), `window` its scaled sine code."""
        rows, queries, width = x_NQC.shape
        content = self.query(torch.cat((x_NQC, code_NQC), -1) if self.first else x_NQC)
        window = self.place_query(window_NQC)
        on_content = self._fold(content, self.key.weight)
        on_place = self._fold(window + content if self.first else window, self.place_key.weight)
        content_NTC = memory.content_NTC
        both_NTC = torch.cat((content_NTC, memory.place_NTC), -1)
        score = torch.cat((on_content, on_place), -1) @ both_NTC.transpose(1, 2)
        scale = (2 * width // self.heads) ** -0.5
        weight = self.dropout((score.float() * scale).masked_fill(~memory.seen_N1T, -math.inf).softmax(-1))
        mixed_NAQC = (weight.to(content_NTC.dtype) @ content_NTC).view(rows, self.heads, queries, width)
        value_AcC, bias_Ac = self.value.weight.view(self.heads, -1, width), self.value.bias.view(self.heads, 1, -1)
        share = weight.sum(-1).to(mixed_NAQC.dtype).view(rows, self.heads, queries, 1)
        out_NAQc = torch.einsum("naqd,acd->naqc", mixed_NAQC, value_AcC.to(mixed_NAQC.dtype)) + share * bias_Ac
        out: Tensor = self.out(out_NAQc.transpose(1, 2).flatten(2))
        return out

    def _fold(self, query_NQC: Tensor, weight_CC: Tensor) -> Tensor:
        """Return each head's query times that head's rows of a key weight, (N, A * Q, C)."""
        query_NQAc = query_NQC.view(*query_NQC.shape[:2], self.heads, -1)
        weight_AcC = weight_CC.view(self.heads, -1, weight_CC.shape[1]).to(query_NQC.dtype)
        return torch.einsum("nqac,acd->naqd", query_NQAc, weight_AcC).flatten(1, 2)


class QueryAttention(nn.Module):
    """Self-attention among the moment queries."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, Dropout(dropout)
        self.query_key = nn.Linear(2 * width, 2 * width)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x_NQC: Tensor, code_NQC: Tensor) -> Tensor:
        """Return (N, Q, C)."""
        parts = (*self.query_key(torch.cat((x_NQC, code_NQC), -1)).chunk(2, -1), self.value(x_NQC))
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        mixed = attend(q, k, v, None, self.dropout)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out


class FirstQueryAttention(nn.Module):
    """What self-attention gives in the first layer, where every query's content is zero: one constant, whatever is attended to."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.constant = nn.Parameter(torch.zeros(width))
        self.out = nn.Linear(width, width)

    def forward(self, x_NQC: Tensor, code_NQC: Tensor) -> Tensor:
        """Return (N, Q, C)."""
        out: Tensor = self.out(self.constant.to(x_NQC.dtype)).expand_as(x_NQC)
        return out


class DecoderLayer(nn.Module):
    """Self-attention, cross-attention, feed-forward; post-norm."""

    def __init__(self, width: int, heads: int, inner: int, dropout: float, *, first: bool) -> None:
        super().__init__()
        self.among = FirstQueryAttention(width) if first else QueryAttention(width, heads, dropout)
        self.across = CrossAttention(width, heads, dropout, first=first)
        self.feed_forward = FeedForward(width, inner, dropout)
        self.residual1, self.residual2, self.residual3 = (Residual(width, dropout) for _ in range(3))

    def forward(self, x_NQC: Tensor, code_NQC: Tensor, window_NQC: Tensor, memory: Memory) -> Tensor:
        """Return (N, Q, C); the arguments are those of `CrossAttention`."""
        x_NQC = self.residual1(x_NQC, self.among(x_NQC, code_NQC))
        x_NQC = self.residual2(x_NQC, self.across(x_NQC, code_NQC, window_NQC, memory))
        out: Tensor = self.residual3(x_NQC, self.feed_forward(x_NQC))
        return out


def even_windows(queries: int) -> Tensor:
    """Return the logits (Q, 2) of windows of a quarter of the clip, their centres spread evenly over it.

    The published code draws them at random, so that some parts of the time have no window near them. On small worlds that costs hundreds of
    steps (docs/temporal-head.md).
    """
    centre_Q = (torch.arange(queries) + 0.5) / queries
    return torch.logit(torch.stack((centre_Q, torch.full_like(centre_Q, 0.25)), -1))


class MomentDecoder(nn.Module):
    """Q learnt windows, refined layer by layer."""

    def __init__(self, width: int, heads: int, inner: int, dropout: float, *, layers: int, queries: int) -> None:
        super().__init__()
        self.width = width
        self.anchors = nn.Embedding(queries, 2)
        with torch.no_grad():
            self.anchors.weight.copy_(even_windows(queries))
        self.layers = nn.ModuleList(DecoderLayer(width, heads, inner, dropout, first=j == 0) for j in range(layers))
        self.norm = nn.LayerNorm(width)
        self.encode_window = Perceptron((width, width, width))
        self.scale_window = Perceptron((width, width, width)) if layers > 1 else None
        self.guess_width = Perceptron((width, width, 1))
        self.refine = Perceptron((width, width, width, 2)) if layers > 1 else None

    def forward(self, memory_NTC: Tensor, place_NTC: Tensor, valid_NT: Tensor) -> tuple[Tensor, Tensor]:
        """Return hidden states (J, N, Q, C) and the windows (J, N, Q, 2), cxw in 0-1, that each layer started from."""
        rows = memory_NTC.shape[0]
        window_NQ2 = self.anchors.weight.float().sigmoid().expand(rows, -1, -1)
        x_NQC = memory_NTC.new_zeros(rows, window_NQ2.shape[1], self.width)
        starts, hidden = [window_NQ2], []
        memory = Memory(memory_NTC, place_NTC, valid_NT[:, None])
        for index, layer in enumerate(self.layers):
            sine_NQC = torch.cat([sine_code(window_NQ2[..., i], self.width // 2) for i in (0, 1)], -1)
            code_NQC = self.encode_window(sine_NQC).to(x_NQC.dtype)
            if index > 0 and self.scale_window is not None:
                sine_NQC = sine_NQC * self.scale_window(x_NQC)
            width_NQ1 = self.guess_width(x_NQC).sigmoid() / window_NQ2[..., 1:].clamp(min=1e-6)
            scaled_NQC = (sine_NQC * width_NQ1).to(x_NQC.dtype)
            x_NQC = layer(x_NQC, code_NQC, scaled_NQC, memory)
            hidden.append(self.norm(x_NQC))
            if index + 1 < len(self.layers) and self.refine is not None:
                starts.append((self.refine(x_NQC) + inverse_sigmoid(window_NQ2)).sigmoid())
                window_NQ2 = starts[-1].detach()
        return torch.stack(hidden), torch.stack(starts)
