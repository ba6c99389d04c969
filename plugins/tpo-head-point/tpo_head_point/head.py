"""Every vision token proposes a point, matched to the annotated ones (Carion et al. 2020). N queries, P tokens, K points."""

from collections.abc import Sequence

import torch
from pydantic import BaseModel, ConfigDict, Field
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional as F

from tpo_core import Codec, Head, HeadConfig
from tpo_core.types import Answer, ClipView, FrameFeatures, MediaInfo, Queries, Target, Tensors, Widths


class PointConfig(HeadConfig):
    width: int = Field(64, ge=1, description="width of the hidden layers")
    trust: float = Field(0.5, ge=0, description="weight of a proposal's score in the matching, against distance in shares of the picture")


class Fields(BaseModel):
    model_config = ConfigDict(extra="forbid")
    size: tuple[int, int]
    points: list[tuple[float, float]]


class PointCodec(Codec[PointConfig]):
    schema = Fields
    ragged = frozenset({"points"})
    kinds = frozenset({"image"})
    terms = ("l1", "exists")

    def check(self, target: Target, media: MediaInfo) -> None:
        inside = all(0 <= x <= media.size[0] and 0 <= y <= media.size[1] for x, y in target["points"])
        if tuple(target["size"]) != media.size or not inside:
            raise ValueError(f"points {target['points']} of a picture of {target['size']} do not lie in this one of {media.size}")

    def encode(self, target: Target, clip: ClipView) -> list[Tensors]:
        return [{"points": torch.tensor(target["points"]).reshape(-1, 2) / torch.tensor(clip.media.size)}]

    def counts(self, encoded: Tensors) -> dict[str, float]:
        return {"l1": float(len(encoded["points"])), "exists": 1.0}

    def decode(self, output: Tensors, clip: ClipView) -> Answer:
        score_P = output["logit"].float().sigmoid()
        points_P2 = output["point"].double() * torch.tensor(clip.media.size)
        kept = [p for p in score_P.argsort(descending=True).tolist() if score_P[p] > 0.5]
        return {
            "points": [[round(v, 2) for v in points_P2[p].tolist()] for p in kept],
            "scores": [round(float(score_P[p]), 4) for p in kept],
        }

    def describe(self, answers: Sequence[Answer]) -> str:
        return f"points {[tuple(point) for answer in answers for point in answer['points']]}"


class PointHead(Head[PointConfig]):
    def __init__(self, config: PointConfig, widths: Widths) -> None:
        super().__init__(config, widths)
        self.state = nn.Linear(config.slots * widths.hidden, 2 * config.width)
        self.token = nn.Linear(widths.features, config.width)
        self.out = nn.Sequential(nn.GELU(), nn.Linear(config.width, config.width), nn.GELU(), nn.Linear(config.width, 3))

    def forward(self, queries: Queries, targets: Tensors | None = None) -> Tensors:
        """Return ``point`` (N, P, 2), shares of width and height, and ``logit`` (N, P) of its being one of those asked for."""
        assert queries.features is not None
        features = queries.features.select(queries.media_N)
        scale_N1W, shift_N1W = self.state(queries.states_NSD.flatten(1)).unsqueeze(1).chunk(2, -1)
        raw_NP3 = self.out(self.token(features.frames_MTPV[:, 0]) * (1 + scale_N1W) + shift_N1W).float()
        centre_NP2, cell_N12 = places(features)
        point_NP2 = (centre_NP2 + raw_NP3[..., :2].tanh() * cell_N12).clamp(0, 1)
        return {"point": point_NP2, "logit": raw_NP3[..., 2].masked_fill(~features.valid_MTP[:, 0], -20.0)}

    def loss(self, output: Tensors, targets: Tensors) -> Tensors:
        """Return the L1 distance of matched points, and the cross entropy of existence over all proposals; both (N,), summed."""
        wanted_NP, near_N = torch.zeros_like(output["logit"]), []
        for n, (point_P2, logit_P) in enumerate(zip(output["point"], output["logit"])):
            true_K2 = targets["points"][n][targets["points_valid"][n]]
            far_PK = torch.cdist(point_P2, true_K2, p=1)
            cost_PK = far_PK - self.config.trust * logit_P.sigmoid()[:, None] + 100.0 * (logit_P[:, None] <= -20)
            rows, columns = linear_sum_assignment(cost_PK.detach().cpu().numpy())
            wanted_NP[n, rows] = 1.0
            near_N.append(far_PK[rows, columns].sum())
        exists_NP = F.binary_cross_entropy_with_logits(output["logit"], wanted_NP, reduction="none")
        return {"l1": torch.stack(near_N), "exists": exists_NP.sum(1)}

    def ideal(self, targets: Tensors) -> Tensors:
        return {"point": targets["points"], "logit": 40.0 * targets["points_valid"].float() - 20.0}


def places(features: FrameFeatures) -> tuple[Tensor, Tensor]:
    """Return the centres (N, P, 2) of the tokens' cells and the cells' sizes (N, 1, 2), shares of width and height."""
    cells_N12 = features.grid_M2.flip(-1).unsqueeze(1).to(features.frames_MTPV.device)
    index_1P = torch.arange(features.frames_MTPV.shape[2], device=cells_N12.device).unsqueeze(0)
    columns_N1 = cells_N12[..., 0]
    place_NP2 = torch.stack([index_1P % columns_N1, index_1P // columns_N1], -1)
    return (place_NP2 + 0.5) / cells_N12, 1 / cells_N12
