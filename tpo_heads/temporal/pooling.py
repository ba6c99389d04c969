"""A frame's vision tokens -> one vector per time step, for the source `backbone`.

Legend: M media, N queries, W words, T time steps, P tokens of a frame, V width of the tokens, D width of the language model,
C hidden width, A attention heads, c = C / A, X any width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tpo_core.types import FrameFeatures, Widths
from tpo_heads.temporal.config import TemporalConfig

POWER_FLOOR = 1e-4
"""Below this mean square, a clip in which nothing changes is not blown up."""


class MeanPooling(nn.Module):
    """The mean of a frame's tokens, whatever was asked."""

    def __init__(self, config: TemporalConfig, widths: Widths) -> None:
        super().__init__()
        self.width: int = widths.features

    def forward(self, features: FrameFeatures, media_N: Tensor, state_ND: Tensor, words_NWD: Tensor, seen_NW: Tensor) -> Tensor:
        """Return (N, T, V)."""
        there_MTP1 = features.valid_MTP[..., None].to(features.frames_MTPV.dtype)
        mean_MTV = (features.frames_MTPV * there_MTP1).sum(2) / there_MTP1.sum(2).clamp(min=1)
        return mean_MTV[media_N]


class QueryPooling(nn.Module):
    """Attention of the question over a frame's tokens, beside their mean and what is unlike the rest of the clip; then FiLM.

    What to look for is drawn from the question's words: every attention head weighs them by a learnt preference for what a word means (a
    colour, a shape), and asks with their mean. So a head finds the thing that is named before the language model has learnt to put it
    into the task embedding; a question without words is asked with that embedding. What was found, and the frame's mean, are given once as
    they are and once as their deviation from the clip's mean, scaled to root mean square 1: an event is what changes. The task embedding
    chooses a scale and a shift of it all (FiLM).
    """

    def __init__(self, config: TemporalConfig, widths: Widths) -> None:
        super().__init__()
        self.heads = config.attention_heads
        self.width: int = 4 * config.hidden
        self.norm_tokens, self.tokens = nn.LayerNorm(widths.features), nn.Linear(widths.features, config.hidden)
        self.norm_words, self.prefer = nn.LayerNorm(widths.hidden), nn.Linear(widths.hidden, config.attention_heads, bias=False)
        self.words = nn.Linear(widths.hidden, config.hidden)
        self.norm_pooled = nn.LayerNorm(2 * config.hidden)
        self.norm_state, self.film = nn.LayerNorm(widths.hidden), nn.Linear(widths.hidden, 2 * self.width)

    def forward(self, features: FrameFeatures, media_N: Tensor, state_ND: Tensor, words_NWD: Tensor, seen_NW: Tensor) -> Tensor:
        """Return (N, T, 4C)."""
        # Projected per medium, before queries on one medium multiply it.
        token_MTPC = self.tokens(self.norm_tokens(features.frames_MTPV))
        there_NTP = features.valid_MTP[media_N]
        token_NTPAc = token_MTPC[media_N].unflatten(-1, (self.heads, -1))
        query_NAc = self._query(state_ND, words_NWD, seen_NW) * token_NTPAc.shape[-1] ** -0.5
        score_NTAP = torch.einsum("nac,ntpac->ntap", query_NAc, token_NTPAc).float()
        # A padded frame has no token at all: it gets a finite score, and its result is not read.
        there_NT1P = there_NTP[:, :, None] | ~there_NTP.any(-1)[:, :, None, None]
        weight_NTAP = score_NTAP.masked_fill(~there_NT1P, -math.inf).softmax(-1).to(token_NTPAc.dtype)
        found_NTC = torch.einsum("ntap,ntpac->ntac", weight_NTAP, token_NTPAc).flatten(-2)
        share_MTP = features.valid_MTP / features.valid_MTP.sum(-1, keepdim=True).clamp(min=1)
        mean_MTC = torch.einsum("mtp,mtpc->mtc", share_MTP.to(token_MTPC.dtype), token_MTPC)
        pooled_NTX = self.norm_pooled(torch.cat((found_NTC, mean_MTC[media_N]), -1))
        pooled_NTX = torch.cat((pooled_NTX, deviation(pooled_NTX, there_NTP.any(-1))), -1)
        scale_N1X, shift_N1X = self.film(self.norm_state(state_ND))[:, None].chunk(2, -1)
        out: Tensor = pooled_NTX * (1 + scale_N1X) + shift_N1X
        return out

    def _query(self, state_ND: Tensor, words_NWD: Tensor, seen_NW: Tensor) -> Tensor:
        """Return what each attention head looks for, (N, A, c)."""
        words_NWD = torch.cat((words_NWD.to(state_ND.dtype), state_ND[:, None]), 1)
        seen_NW = torch.cat((seen_NW, ~seen_NW.any(1, keepdim=True)), 1)
        words_NWD = self.norm_words(words_NWD)
        liking_NWA = self.prefer(words_NWD).float().masked_fill(~seen_NW[..., None], -math.inf).softmax(1)
        words_NWAc = self.words(words_NWD).unflatten(-1, (self.heads, -1))
        query_NAc: Tensor = torch.einsum("nwa,nwac->nac", liking_NWA.to(words_NWAc.dtype), words_NWAc)
        return query_NAc


def deviation(values_NTX: Tensor, valid_NT: Tensor) -> Tensor:
    """Return how time steps differ from their mean, scaled to root mean square 1 over a row's valid steps; 0 on the others, (N, T, X)."""
    weight_NT1 = valid_NT[..., None].float()
    count_N11 = weight_NT1.sum(1, keepdim=True).clamp(min=1)
    mean_N1X = (values_NTX.float() * weight_NT1).sum(1, keepdim=True) / count_N11
    apart_NTX = (values_NTX.float() - mean_N1X) * weight_NT1
    power_N11 = apart_NTX.square().mean(-1, keepdim=True).sum(1, keepdim=True) / count_N11
    return (apart_NTX * (power_N11 + POWER_FLOOR).rsqrt()).to(values_NTX.dtype)
