"""Objects as Points (Zhou, Wang, Krähenbühl 2019). N queries, G x G heat map, K boxes."""

from collections.abc import Sequence

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from tpo_core import Codec, Head, HeadConfig, Metric
from tpo_core.types import Answer, ClipView, Queries, Target, Tensors, Widths


class CentreConfig(HeadConfig):
    side: int = Field(24, ge=4, description="rows and columns of the heat map")
    width: int = Field(64, ge=1, description="channels")
    threshold: float = Field(0.3, gt=0, lt=1, description="least score of a box that is answered")
    size_weight: float = Field(0.1, ge=0, description="lambda_size of the paper")


class Fields(BaseModel):
    model_config = ConfigDict(extra="forbid")
    size: tuple[int, int]
    boxes: list[tuple[float, float, float, float]]


class CentreCodec(Codec[CentreConfig]):
    schema = Fields
    kinds = frozenset({"image"})
    ragged = frozenset({"centre", "extent"})
    terms = ("heat", "offset", "size")

    def encode(self, target: Target, clip: ClipView) -> list[Tensors]:
        """Return ``centre`` (K, 2) and ``extent`` (K, 2) in cells of the map."""
        cells_K4 = torch.tensor(target["boxes"]).reshape(-1, 4) * self.config.side / torch.tensor(clip.media.size * 2)
        low_K2, high_K2 = cells_K4.chunk(2, -1)
        return [{"centre": (low_K2 + high_K2) / 2, "extent": high_K2 - low_K2}]

    def counts(self, encoded: Tensors) -> dict[str, float]:
        return dict.fromkeys(self.terms, float(len(encoded["centre"])))

    def decode(self, output: Tensors, clip: ClipView) -> Answer:
        """Keep the peaks of the heat map: a 3 x 3 maximum takes the place of non-maximum suppression (section 3)."""
        heat_GG = output["heat"].float().sigmoid()
        peak_GG = heat_GG * (heat_GG == F.max_pool2d(heat_GG[None], 3, 1, 1)[0])
        rows, columns = (peak_GG > self.config.threshold).nonzero(as_tuple=True)
        centre_K2 = torch.stack([columns, rows], -1) + output["offset"][:, rows, columns].T.double()
        extent_K2 = output["extent"][:, rows, columns].T.double()
        boxes_K4 = (
            torch.cat([centre_K2 - extent_K2 / 2, centre_K2 + extent_K2 / 2], -1) / self.config.side * torch.tensor(clip.media.size * 2)
        )
        scores = [round(float(value), 4) for value in peak_GG[rows, columns]]
        return {"boxes": [[round(value, 2) for value in box] for box in boxes_K4.tolist()], "scores": scores}


class CentreHead(Head[CentreConfig]):
    def __init__(self, config: CentreConfig, widths: Widths) -> None:
        super().__init__(config, widths)
        self.state = nn.Linear(config.slots * widths.hidden, 2 * config.width)
        self.token = nn.Linear(widths.features, config.width)
        self.inner = nn.Conv2d(config.width, config.width, 3, padding=1)
        self.outer = nn.Conv2d(config.width, 5, 1)
        with torch.no_grad():
            self.outer.bias.copy_(torch.tensor([-2.19, 0.5, 0.5, 4.0, 4.0]))  # a prior of 0.1 on the heat map, as published

    @property
    def term_weights(self) -> dict[str, float]:
        return {"size": self.config.size_weight}

    def forward(self, queries: Queries, targets: Tensors | None = None) -> Tensors:
        """Return ``heat`` (N, G, G) logits, ``offset`` and ``extent`` (N, 2, G, G) in cells."""
        assert queries.features is not None
        features = queries.features.select(queries.media_N)
        scale_N1W, shift_N1W = self.state(queries.states_NSD.flatten(1)).unsqueeze(1).chunk(2, -1)
        hidden_NPW = F.relu(self.token(features.frames_MTPV[:, 0]) * (1 + scale_N1W) + shift_N1W)
        grids = zip(hidden_NPW, features.grid_M2.tolist())
        maps_NWGG = torch.cat([self.spread(hidden_PW, rows, columns) for hidden_PW, (rows, columns) in grids])
        raw_N5GG = self.outer(F.relu(self.inner(maps_NWGG))).float()
        return {"heat": raw_N5GG[:, 0], "offset": raw_N5GG[:, 1:3], "extent": raw_N5GG[:, 3:]}

    def spread(self, hidden_PW: Tensor, rows: int, columns: int) -> Tensor:
        hidden_1WRC = hidden_PW[: rows * columns].T.reshape(1, -1, rows, columns)
        return F.interpolate(hidden_1WRC, size=(self.config.side,) * 2, mode="bilinear", align_corners=False)

    def loss(self, output: Tensors, targets: Tensors) -> Tensors:
        """Return the penalty-reduced focal loss (equation 1), and the L1 of offset and size (equations 2 and 3), summed; (N,)."""
        truth = self.ideal(targets)
        heat_NGG, wanted_NGG, at_NGG = output["heat"], truth["gauss"], truth["at"]
        positive = at_NGG * F.softplus(-heat_NGG) * (1 - heat_NGG.sigmoid()).square()
        negative = (1 - wanted_NGG).pow(4) * F.softplus(heat_NGG) * heat_NGG.sigmoid().square() * (1 - at_NGG)
        gaps = {name: (output[name] - truth[name]).abs() * at_NGG[:, None] for name in ("offset", "extent")}
        return {"heat": (positive + negative).sum((1, 2)), "offset": gaps["offset"].sum((1, 2, 3)), "size": gaps["extent"].sum((1, 2, 3))}

    def ideal(self, targets: Tensors) -> Tensors:
        """Splat the boxes: a Gaussian at each centre (sigma a sixth of the box's sides), offset and size in the centre's cell."""
        side, valid_NK = self.config.side, targets["centre_valid"].float()
        cell_NK2 = targets["centre"].floor().clamp(0, side - 1)
        place_G = torch.arange(side, device=cell_NK2.device)
        sigma_NK2 = (targets["extent"] / 6).clamp(min=0.5)
        bells = [(-((place_G - cell_NK2[..., i : i + 1]) ** 2) / (2 * sigma_NK2[..., i : i + 1] ** 2)).exp() for i in (0, 1)]
        gauss_NKGG = bells[1][..., :, None] * bells[0][..., None, :] * valid_NK[..., None, None]
        here_NKGG = (
            (place_G[:, None] == cell_NK2[..., 1, None, None]) & (place_G == cell_NK2[..., 0, None, None]) & (valid_NK[..., None, None] > 0)
        )
        first_NKGG = (here_NKGG & (here_NKGG.cumsum(1) == 1)).float()  # of two boxes in one cell the first counts
        empty_NGG = first_NKGG.new_zeros(len(valid_NK), side, side)
        written = {
            name: torch.einsum("nkgh,nkc->ncgh", first_NKGG, values)
            for name, values in (("offset", targets["centre"] - cell_NK2), ("extent", targets["extent"]))
        }
        at_NGG = first_NKGG.sum(1)
        return {**written, "at": at_NGG, "gauss": gauss_NKGG.amax(1) if gauss_NKGG.shape[1] else empty_NGG, "heat": 40 * at_NGG - 20}


class CentreMetric(Metric):
    """``recall`` of boxes at IoU 0.5, penalised by answers too many: hits / max(boxes, answers), averaged over targets."""

    def __init__(self) -> None:
        self.rows: list[tuple[list[list[float]], list[list[float]], list[int]]] = []

    def update(self, answers: Sequence[Answer], target: Target) -> None:
        self.rows.append(([box for answer in answers for box in answer["boxes"]], target["boxes"], target["size"]))

    def compute(self) -> dict[str, float]:
        return {"recall": sum(hits(found, truth) for found, truth, _ in self.rows) / len(self.rows)} if self.rows else {}

    def chance(self) -> dict[str, float]:
        middles = [([[w / 4, h / 4, 3 * w / 4, 3 * h / 4]], truth) for _, truth, (w, h) in self.rows]
        return {"recall": sum(hits(*pair) for pair in middles) / len(middles)} if middles else {}


def hits(found: list[list[float]], truth: list[list[float]]) -> float:
    if not found or not truth:
        return float(len(found) == len(truth))
    from torchvision.ops import box_iou

    iou_FT = box_iou(torch.tensor(found), torch.tensor(truth, dtype=torch.float32))
    return float((iou_FT >= 0.5).any(0).sum()) / max(len(found), len(truth))
