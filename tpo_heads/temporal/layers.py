"""Building blocks of the temporal head: attention, feed-forward, residual branches.

Legend: N queries, T positions of a sequence, C hidden width, A attention heads, c = C / A.
Boolean masks say what may be seen (True = seen), as in torch's `scaled_dot_product_attention`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def sine_code(values: Tensor, width: int) -> Tensor:
    """Return (..., width): sines and cosines, alternating, of values in 0-1, over wavelengths from 1 to 10000; always float32."""
    index = torch.arange(width, device=values.device)
    wavelength = 10000.0 ** (2 * (index // 2) / width)
    angle = values.float()[..., None] * (2 * math.pi) / wavelength
    return torch.stack((angle[..., 0::2].sin(), angle[..., 1::2].cos()), dim=-1).flatten(-2)


class Dropout(nn.Module):
    """`torch.nn.Dropout` with a mask that costs a fifth on a CPU: sixteen random bits an entry, all drawn at once."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, values: Tensor) -> Tensor:
        """Return the values, in training some set to 0 and the others scaled up."""
        if not self.training or self.rate == 0:
            return values
        if values.device.type != "cpu" or torch.compiler.is_compiling():
            return F.dropout(values, self.rate, training=True)
        count = values.numel()
        bits = torch.empty((count + 3) // 4, dtype=torch.int64).random_(-(2**63), None).view(torch.int16)[:count]
        kept = (bits >= round(self.rate * 2**16) - 2**15).to(values.dtype).mul_(1 / (1 - self.rate))
        dropped: Tensor = values * kept.view(values.shape)
        return dropped


class _OneSlope(torch.autograd.Function):
    """PReLU with one slope on a CPU, where torch's own backward makes a full-size gradient of the one slope and then adds it up."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(values)
        ctx.slope = float(slope)
        return F.leaky_relu(values, ctx.slope)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        (values,) = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        below = values.clamp(max=0).flatten()
        slope = torch.dot(gradient.flatten().float(), below.float()).reshape(1)
        return torch.ops.aten.leaky_relu_backward(gradient, values, ctx.slope, False), slope.to(values.dtype)


class PReLU(nn.Module):
    """x where it is positive, else slope * x; the slope is learnt."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.full((1,), 0.25))

    def forward(self, values: Tensor) -> Tensor:
        """Return a tensor of the same shape."""
        slope = self.slope.to(values.dtype)
        if values.device.type != "cpu" or torch.compiler.is_compiling():
            return F.prelu(values, slope)
        out: Tensor = _OneSlope.apply(values, slope)
        return out


def attend(query_NATc: Tensor, key_NATc: Tensor, value_NATc: Tensor, seen: Tensor | None, dropout: Dropout) -> Tensor:
    """Return softmax(query key / sqrt(c)) value, (N, A, T, c); `seen` broadcasts to (N, A, T, T)."""
    rate = dropout.rate if dropout.training else 0.0
    if rate == 0 or query_NATc.device.type != "cpu":
        return F.scaled_dot_product_attention(query_NATc, key_NATc, value_NATc, attn_mask=seen, dropout_p=rate)
    score = (query_NATc * query_NATc.shape[-1] ** -0.5) @ key_NATc.transpose(-1, -2)
    if seen is not None:
        score = score.masked_fill(~seen, -math.inf)
    mixed_NATc: Tensor = dropout(score.softmax(-1)) @ value_NATc
    return mixed_NATc


class Perceptron(nn.Module):
    """Linear layers with ReLU between them, computed in float32 whatever the precision around it (spans and scores need it)."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, values: Tensor) -> Tensor:
        """Return (..., last width) in float32."""
        with torch.autocast(values.device.type, enabled=False):
            values = values.float()
            for index, layer in enumerate(self.layers):
                assert isinstance(layer, nn.Linear)
                values = F.linear(values if index == 0 else F.relu(values), layer.weight.float(), layer.bias.float())
        return values


class InputProjection(nn.Module):
    """(LayerNorm, dropout, linear) twice, ReLU between: raw features -> hidden width."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.linear1 = nn.LayerNorm(width), nn.Linear(width, hidden)
        self.norm2, self.linear2 = nn.LayerNorm(hidden), nn.Linear(hidden, hidden)
        self.dropout = Dropout(dropout)

    def forward(self, values: Tensor) -> Tensor:
        """Return (..., C) for (..., width)."""
        inner = F.relu(self.linear1(self.dropout(self.norm1(values))))
        out: Tensor = self.linear2(self.dropout(self.norm2(inner)))
        return out


class Residual(nn.Module):
    """LayerNorm of (input + branch); in training a whole branch of one query is left out at random (stochastic depth)."""

    def __init__(self, width: int, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.norm = nn.LayerNorm(width)

    def forward(self, x_NTC: Tensor, branch_NTC: Tensor) -> Tensor:
        """Return (N, T, C)."""
        out: Tensor = self.norm(self.add(x_NTC, branch_NTC))
        return out

    def add(self, x_NTC: Tensor, branch_NTC: Tensor) -> Tensor:
        """Return the sum before the norm."""
        if self.training and self.rate > 0:
            keep_N11 = torch.empty(branch_NTC.shape[0], 1, 1, device=branch_NTC.device, dtype=branch_NTC.dtype)
            keep_N11.bernoulli_(1 - self.rate).div_(1 - self.rate)
            return torch.addcmul(x_NTC, branch_NTC, keep_N11)
        return x_NTC + branch_NTC


class FeedForward(nn.Module):
    """Linear, PReLU with one slope, dropout, linear."""

    def __init__(self, width: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(width, inner), nn.Linear(inner, width)
        self.activation = PReLU()
        self.dropout = Dropout(dropout)

    def forward(self, x_NTC: Tensor) -> Tensor:
        """Return (N, T, C)."""
        out: Tensor = self.linear2(self.dropout(self.activation(self.linear1(x_NTC))))
        return out


class EncoderLayer(nn.Module):
    """Post-norm self-attention layer whose parts can be called apart, so that only the rows that are read later are computed."""

    def __init__(self, width: int, heads: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, Dropout(dropout)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.residual1, self.residual2 = Residual(width, dropout), Residual(width, dropout)
        self.feed_forward = FeedForward(width, inner, dropout)

    def project(self, x_NTC: Tensor, place_NTC: Tensor) -> tuple[Tensor, Tensor]:
        """Return queries with keys (N, T, 2C), which see the places, and values (N, T, C), which do not."""
        width = x_NTC.shape[-1]
        weight, bias = self.qkv.weight, self.qkv.bias
        seen = F.linear(x_NTC + place_NTC, weight[: 2 * width], bias[: 2 * width])
        return seen, F.linear(x_NTC, weight[2 * width :], bias[2 * width :])

    def finish(self, x_NTC: Tensor, query_NTC: Tensor, key_NTC: Tensor, value_NTC: Tensor, seen: Tensor | None) -> Tensor:
        """Return the layer's output (N, T, C) for the rows given as x and query; keys and values may be more rows."""
        q, k, v = (_split(part, self.heads) for part in (query_NTC, key_NTC, value_NTC))
        mixed_NATc = attend(q, k, v, seen, self.dropout)
        x_NTC = self.residual1(x_NTC, self.out(mixed_NATc.transpose(1, 2).flatten(2)))
        out: Tensor = self.residual2(x_NTC, self.feed_forward(x_NTC))
        return out

    def forward(self, x_NTC: Tensor, place_NTC: Tensor, seen: Tensor | None) -> Tensor:
        """Return (N, T, C); `seen` broadcasts to (N, A, T, T)."""
        query_key, value = self.project(x_NTC, place_NTC)
        query, key = query_key.chunk(2, dim=-1)
        return self.finish(x_NTC, query, key, value, seen)


class TextAttentionLayer(nn.Module):
    """Adaptive cross-attention: clips look at dummies and words, and take up words only; no query, key or value projections.

    Legend: L words, K dummies; the dummies are the first K keys.
    """

    def __init__(self, width: int, heads: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = Dropout(dropout)
        self.out = nn.Linear(width, width)
        self.residual1, self.residual2 = Residual(width, dropout), Residual(width, dropout)
        self.feed_forward = FeedForward(width, inner, dropout)

    def forward(self, x_NTC: Tensor, place_NTC: Tensor, key_NACK: Tensor, word_NALc: Tensor, seen_N11K: Tensor) -> tuple[Tensor, Tensor]:
        """Return clips (N, T, C) and the attention averaged over heads (N, T, K + L), float32, each row of which sums to 1."""
        query_NATc = _split(x_NTC + place_NTC, self.heads)
        score = query_NATc @ key_NACK * query_NATc.shape[-1] ** -0.5
        weight_NATK = score.float().masked_fill(~seen_N11K, -math.inf).softmax(-1)
        words = self.dropout(weight_NATK)[..., -word_NALc.shape[2] :].to(word_NALc.dtype)
        branch = self.out((words @ word_NALc).transpose(1, 2).flatten(2))
        return self._finish(x_NTC, branch), weight_NATK.mean(1)

    def without_text(self, x_NTC: Tensor) -> Tensor:
        """Return (N, T, C) where there is nothing to look at: the attention gives zero, of which `out` leaves its bias."""
        return self._finish(x_NTC, self.out.bias.expand_as(x_NTC))

    def _finish(self, x_NTC: Tensor, branch_NTC: Tensor) -> Tensor:
        # As published, the second residual starts before the first norm, unlike in `EncoderLayer`.
        x_NTC = self.residual1.add(x_NTC, branch_NTC)
        out: Tensor = self.residual2(x_NTC, self.feed_forward(self.residual1.norm(x_NTC)))
        return out


def split_text(text_NKC: Tensor, place_NKC: Tensor, heads: int, dummies: int) -> tuple[Tensor, Tensor]:
    """Return what every `TextAttentionLayer` needs of the text: keys (N, A, c, K + L) and word values (N, A, L, c)."""
    return _split(text_NKC + place_NKC, heads).transpose(-1, -2), _split(text_NKC[:, dummies:], heads)


def _split(x_NTC: Tensor, heads: int) -> Tensor:
    return x_NTC.view(*x_NTC.shape[:-1], heads, -1).transpose(1, 2)
