"""A decoder of its own on the shared vision features; scale-invariant log loss (Eigen et al. 2014). N queries, G x G map, W width."""

from collections.abc import Sequence

import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat
from torch import Tensor, nn
from torch.nn import functional as F

from tpo_core import Codec, Head, HeadConfig
from tpo_core.types import Answer, ClipView, MediaInfo, Queries, Target, Tensors, Widths


class DepthConfig(HeadConfig):
    side: int = Field(16, ge=4, multiple_of=4, description="rows and columns of the map")
    width: int = Field(48, ge=1, description="channels of the decoder")
    invariance: float = Field(0.5, ge=0, le=1, description="share of the mean log error that is forgiven; 1: scale does not count at all")


class Fields(BaseModel):
    model_config = ConfigDict(extra="forbid")
    size: tuple[int, int]
    grid: list[list[PositiveFloat | None]] = Field(min_length=1, description="distance in even cells, row by row; null: not known")


class DepthCodec(Codec[DepthConfig]):
    schema = Fields
    kinds = frozenset({"image"})
    terms = ("silog",)

    def check(self, target: Target, media: MediaInfo) -> None:
        if tuple(target["size"]) != media.size or len({len(row) for row in target["grid"]}) != 1 or not target["grid"][0]:
            raise ValueError(f"a grid of equal rows over a picture of {media.size} was expected, got one of size {target['size']}")

    def encode(self, target: Target, clip: ClipView) -> list[Tensors]:
        """Return ``log`` (G, G), the logarithm of the distance at the middle of each cell, and ``known`` (G, G)."""
        depth_RC = torch.tensor([[value or 0.0 for value in row] for row in target["grid"]])
        rows, columns = (((torch.arange(self.config.side) + 0.5) * count / self.config.side).long() for count in depth_RC.shape)
        depth_GG = depth_RC[rows][:, columns]
        return [{"log": depth_GG.clamp(min=1e-6).log(), "known": depth_GG > 0}]

    def decode(self, output: Tensors, clip: ClipView) -> Answer:
        return {"grid": [[round(value, 4) for value in row] for row in output["log"].double().clamp(-10, 10).exp().tolist()]}

    def describe(self, answers: Sequence[Answer]) -> str:
        return "; ".join(f"{min(map(min, answer['grid'])):.2f} to {max(map(max, answer['grid'])):.2f}" for answer in answers)


class DepthHead(Head[DepthConfig]):
    def __init__(self, config: DepthConfig, widths: Widths) -> None:
        super().__init__(config, widths)
        self.state = nn.Linear(config.slots * widths.hidden, 2 * config.width)
        self.token = nn.Linear(widths.features, config.width)
        self.inner = nn.Sequential(nn.GELU(), nn.Conv2d(config.width, config.width, 3, padding=1), nn.GELU())
        self.outer = nn.Sequential(nn.Conv2d(config.width, 16, 3, padding=1), nn.PixelShuffle(4))

    def forward(self, queries: Queries, targets: Tensors | None = None) -> Tensors:
        """Return ``log`` (N, G, G), the logarithm of the distance."""
        assert queries.features is not None
        features = queries.features.select(queries.media_N)
        scale_N1W, shift_N1W = self.state(queries.states_NSD.flatten(1)).unsqueeze(1).chunk(2, -1)
        hidden_NPW = self.token(features.frames_MTPV[:, 0]) * (1 + scale_N1W) + shift_N1W
        coarse_NWgg = torch.cat([self.spread(hidden_PW, *grid) for hidden_PW, grid in zip(hidden_NPW, features.grid_M2.tolist())])
        return {"log": self.outer(self.inner(coarse_NWgg))[:, 0].float()}

    def spread(self, hidden_PW: Tensor, rows: int, columns: int) -> Tensor:
        """Lay a picture's tokens out on their grid and bring it to a quarter of the map's side, (1, W, G / 4, G / 4)."""
        hidden_1WRC = hidden_PW[: rows * columns].T.reshape(1, -1, rows, columns)
        return F.interpolate(hidden_1WRC, size=(self.config.side // 4,) * 2, mode="bilinear", align_corners=False)

    def loss(self, output: Tensors, targets: Tensors) -> Tensors:
        """Return mean(d^2) - invariance * mean(d)^2 over the known cells of each query, d the difference of the logarithms."""
        known_NC = targets["known"].flatten(1).float()
        gap_NC = (output["log"] - targets["log"]).flatten(1) * known_NC
        count_N = known_NC.sum(1).clamp(min=1)
        return {"silog": gap_NC.square().sum(1) / count_N - self.config.invariance * (gap_NC.sum(1) / count_N).square()}

    def ideal(self, targets: Tensors) -> Tensors:
        return {"log": targets["log"]}
