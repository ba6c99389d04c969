from collections import Counter
from collections.abc import Sequence

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn
from torch.nn import functional as F

from tpo_core import Codec, Head, HeadConfig, Metric
from tpo_core.types import Answer, ClipView, Queries, Target, Tensors, Widths


class CountConfig(HeadConfig):
    width: int = Field(64, ge=1, description="width of the hidden layer")


class Fields(BaseModel):
    model_config = ConfigDict(extra="forbid")
    count: int = Field(ge=0)


class CountCodec(Codec[CountConfig]):
    schema = Fields
    kinds = frozenset({"image"})

    def encode(self, target: Target, clip: ClipView) -> list[Tensors]:
        return [{"count": torch.tensor(float(target["count"]))}]

    def decode(self, output: Tensors, clip: ClipView) -> Answer:
        return {"count": round(float(output["count"]))}


class CountHead(Head[CountConfig]):
    def __init__(self, config: CountConfig, widths: Widths) -> None:
        super().__init__(config, widths)
        self.state = nn.Linear(config.slots * widths.hidden, config.width)
        self.token = nn.Linear(widths.features, config.width)
        self.out = nn.Linear(config.width, 1)

    def forward(self, queries: Queries, targets: Tensors | None = None) -> Tensors:
        """Every vision token says how much of a thing it holds, and the task embedding says of which; a count is their sum, (N,)."""
        features = queries.features.select(queries.media_N)
        hidden_NPW = self.token(features.frames_MTPV[:, 0]) + self.state(queries.states_NSD.flatten(1)).unsqueeze(1)
        share_NP = self.out(F.gelu(hidden_NPW)).squeeze(-1).float().sigmoid()
        return {"count": (share_NP * features.valid_MTP[:, 0]).sum(1)}

    def loss(self, output: Tensors, targets: Tensors) -> Tensors:
        return {"loss": F.smooth_l1_loss(output["count"], targets["count"], reduction="none")}

    def ideal(self, targets: Tensors) -> Tensors:
        return {"count": targets["count"]}


class CountMetric(Metric):
    def __init__(self) -> None:
        self.pairs: list[tuple[int | None, int]] = []

    def update(self, answers: Sequence[Answer], target: Target) -> None:
        self.pairs.append((answers[0]["count"] if answers else None, target["count"]))

    def compute(self) -> dict[str, float]:
        return {"exact": sum(found == truth for found, truth in self.pairs) / len(self.pairs)} if self.pairs else {}

    def chance(self) -> dict[str, float]:
        most_common = Counter(truth for _, truth in self.pairs).most_common(1)
        return {"exact": most_common[0][1] / len(self.pairs)} if self.pairs else {}
