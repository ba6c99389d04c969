"""A frame's vision tokens -> one vector per time step, for the source `backbone`.

Legend: M media, N queries, T time steps, P tokens of a frame, V width of the tokens, C hidden width, A attention heads, c = C / A.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tpo_core.types import FrameFeatures, Widths
from tpo_heads.temporal.config import TemporalConfig


class MeanPooling(nn.Module):
    """The mean of a frame's tokens, whatever was asked."""

    def __init__(self, config: TemporalConfig, widths: Widths) -> None:
        super().__init__()
        self.width: int = widths.features

    def forward(self, features: FrameFeatures, media_N: Tensor, state_ND: Tensor) -> Tensor:
        """Return (N, T, V)."""
        there_MTP1 = features.valid_MTP[..., None].to(features.frames_MTPV.dtype)
        mean_MTV = (features.frames_MTPV * there_MTP1).sum(2) / there_MTP1.sum(2).clamp(min=1)
        return mean_MTV[media_N]


class QueryPooling(nn.Module):
    """Attention of the task embedding over a frame's tokens, beside their mean, then a scale and a shift that it chooses (FiLM).

    What the words ask for is looked up in each frame, so that the rest of the head sees it move, grow or vanish over time.
    """

    def __init__(self, config: TemporalConfig, widths: Widths) -> None:
        super().__init__()
        self.heads = config.attention_heads
        self.width: int = 2 * config.hidden
        self.norm_tokens, self.tokens = nn.LayerNorm(widths.features), nn.Linear(widths.features, config.hidden)
        self.norm_state, self.state = nn.LayerNorm(widths.hidden), nn.Linear(widths.hidden, config.hidden)
        self.norm_pooled, self.film = nn.LayerNorm(self.width), nn.Linear(widths.hidden, 2 * self.width)

    def forward(self, features: FrameFeatures, media_N: Tensor, state_ND: Tensor) -> Tensor:
        """Return (N, T, 2C)."""
        # Projected per medium, before queries on one medium multiply it.
        token_MTPC = self.tokens(self.norm_tokens(features.frames_MTPV))
        there_NTP = features.valid_MTP[media_N]
        token_NTPAc = token_MTPC[media_N].unflatten(-1, (self.heads, -1))
        state_ND = self.norm_state(state_ND)
        query_NAc = self.state(state_ND).unflatten(-1, (self.heads, -1)) * token_NTPAc.shape[-1] ** -0.5
        score_NTAP = torch.einsum("nac,ntpac->ntap", query_NAc, token_NTPAc).float()
        # A padded frame has no token at all: it gets a finite score, and its result is not read.
        there_NT1P = there_NTP[:, :, None] | ~there_NTP.any(-1)[:, :, None, None]
        weight_NTAP = score_NTAP.masked_fill(~there_NT1P, -math.inf).softmax(-1).to(token_NTPAc.dtype)
        found_NTC = torch.einsum("ntap,ntpac->ntac", weight_NTAP, token_NTPAc).flatten(-2)
        share_MTP = features.valid_MTP / features.valid_MTP.sum(-1, keepdim=True).clamp(min=1)
        mean_MTC = torch.einsum("mtp,mtpc->mtc", share_MTP.to(token_MTPC.dtype), token_MTPC)
        pooled_NTX = self.norm_pooled(torch.cat((found_NTC, mean_MTC[media_N]), -1))
        scale_N1X, shift_N1X = self.film(state_ND)[:, None].chunk(2, -1)
        out: Tensor = pooled_NTX * (1 + scale_N1X) + shift_N1X
        return out
