"""The region head: task embedding -> two-layer MLP -> box.

N queries, S slots, D width of the language model, K prompts. Boxes are shares of the image, in float32.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tpo_core.head import Head
from tpo_core.types import Queries, Tensors, Widths
from tpo_heads.boxes import cxcywh_to_xyxy, giou, xyxy_to_cxcywh
from tpo_heads.region.config import RegionConfig


class BoxMLP(nn.Module):
    """Linear, ReLU, Linear to four numbers, computed in float32: in bfloat16 a box is off by up to 3.75 of 1920 pixels."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, hidden)
        self.outer = nn.Linear(hidden, 4)

    def forward(self, states_NX: Tensor) -> Tensor:
        """Return (N, 4) in float32, whatever the precision of states and weights."""
        with torch.autocast(states_NX.device.type, enabled=False):
            hidden = F.relu(_linear_float32(self.inner, states_NX))
            return _linear_float32(self.outer, hidden)


class BoxPrompt(nn.Module):
    """A box in the question -> the embedding that stands for it: the paper's two-layer location encoder."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.inner = nn.Linear(4, hidden)
        self.outer = nn.Linear(hidden, width)

    def forward(self, tensors: Tensors) -> Tensor:
        """Return (K, D) for ``box_xyxy`` (K, 4)."""
        boxes_K4 = tensors["box_xyxy"].to(self.inner.weight.dtype)
        embedding_KD: Tensor = self.outer(F.relu(self.inner(boxes_K4)))
        return embedding_KD


class RegionHead(Head[RegionConfig]):
    """One box per query."""

    def __init__(self, config: RegionConfig, widths: Widths) -> None:
        super().__init__(config, widths)
        hidden = config.hidden or widths.hidden
        self.mlp = BoxMLP(config.slots * widths.hidden, hidden)
        self.prompt = BoxPrompt(widths.hidden, hidden)

    @property
    def term_weights(self) -> Mapping[str, float]:
        return self.config.factors

    def forward(self, queries: Queries, targets: Tensors | None = None) -> Tensors:
        """Return ``box_xyxy`` (N, 4), shares of the image; the raw form may be reversed or outside."""
        numbers_N4 = self.mlp(queries.states_NSD.flatten(1))
        if self.config.resolved_form == "xyxy_raw":
            return {"box_xyxy": numbers_N4}
        return {"box_xyxy": cxcywh_to_xyxy(numbers_N4.sigmoid())}

    def loss(self, output: Tensors, targets: Tensors) -> Tensors:
        """Return each term (N,): the mean over a box's four numbers (in the form that the last layer gives), and 1 - GIoU."""
        predicted_N4, true_N4 = output["box_xyxy"].float(), targets["box_xyxy"].float()
        gap_N4 = predicted_N4 - true_N4 if self.config.resolved_form == "xyxy_raw" else xyxy_to_cxcywh(predicted_N4 - true_N4)
        if self.config.loss == "mse":
            return {"mse": gap_N4.square().mean(-1)}
        return {"l1": gap_N4.abs().mean(-1), "giou": 1 - giou(predicted_N4, true_N4)}

    def ideal(self, targets: Tensors) -> Tensors:
        """Return the annotated boxes."""
        return {"box_xyxy": targets["box_xyxy"]}


def _linear_float32(layer: nn.Linear, values: Tensor) -> Tensor:
    return F.linear(values.float(), layer.weight.float(), layer.bias.float())
