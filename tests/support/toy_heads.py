"""Small heads for tests of core: a box from the state alone, and a moment that reads frames and words."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tpo_core.contract import HeadConfig, HeadSpec
from tpo_core.head import Codec, Head, Metric
from tpo_core.plugins import LoadedHead
from tpo_core.types import Answer, ClipView, Queries, Target, Tensors, Widths


class BoxConfig(HeadConfig):
    pass


class BoxCodec(Codec[BoxConfig]):
    needs_features = False
    terms = ("l1",)

    def encode(self, target: Target, clip: ClipView) -> list[Tensors]:
        w, h = clip.media.size
        return [{"box_4": torch.tensor(b, dtype=torch.float32) / torch.tensor([w, h, w, h])} for b in target["boxes"]]

    def encode_prompt(self, prompt: Target, clip: ClipView) -> Tensors:
        w, h = clip.media.size
        return {"box_4": torch.tensor(prompt["boxes"][0], dtype=torch.float32) / torch.tensor([w, h, w, h])}

    def decode(self, output: Tensors, clip: ClipView) -> Answer:
        w, h = clip.media.size
        return {"box": (output["box_N4"] * torch.tensor([w, h, w, h])).tolist()}


class _BoxPrompt(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.net = nn.Linear(4, hidden)

    def forward(self, tensors: Tensors) -> Tensor:
        out: Tensor = self.net(tensors["box_4"])
        return out


class BoxHead(Head[BoxConfig]):
    def __init__(self, config: BoxConfig, widths: Widths) -> None:
        super().__init__(config, widths)
        self.net = nn.Linear(widths.hidden * config.slots, 4)
        self.prompt = _BoxPrompt(widths.hidden)

    def forward(self, queries: Queries, targets: Tensors | None = None) -> Tensors:
        return {"box_N4": self.net(queries.states_NSD.flatten(1)).sigmoid()}

    def loss(self, output: Tensors, targets: Tensors) -> Tensors:
        return {"l1": (output["box_N4"] - targets["box_4"]).abs().sum(-1)}


class MomentCodec(Codec[HeadConfig]):
    terms = ("frames",)
    kinds = frozenset({"video", "image"})

    def encode(self, target: Target, clip: ClipView) -> list[Tensors]:
        return [{"span_2": torch.tensor(target["spans"][0], dtype=torch.float32)}]

    def counts(self, encoded: Tensors) -> dict[str, float]:
        return {"frames": float(1 + int(encoded["span_2"][1] > 1.0))}

    def decode(self, output: Tensors, clip: ClipView) -> Answer:
        return {"scores": output["score_NT"].tolist()}


class MomentHead(Head[HeadConfig]):
    def __init__(self, config: HeadConfig, widths: Widths) -> None:
        super().__init__(config, widths)
        self.key = nn.Linear(widths.features, 8)
        self.query = nn.Linear(widths.hidden, 8)

    def forward(self, queries: Queries, targets: Tensors | None = None) -> Tensors:
        assert queries.features is not None
        features = queries.features.select(queries.media_N)
        frames = features.frames_MTPV.sum(2) / features.valid_MTP.sum(2).clamp(min=1).unsqueeze(-1)
        words = queries.words_NWD.sum(1) / queries.words_valid_NW.sum(1, keepdim=True).clamp(min=1)
        query = self.query(queries.states_NSD.mean(1) + words)
        valid = features.valid_MTP.any(-1)
        return {"score_NT": torch.einsum("ntk,nk->nt", self.key(frames), query), "time_NT2": features.time_MT2, "valid_NT": valid}

    def loss(self, output: Tensors, targets: Tensors) -> Tensors:
        span = targets["span_2"]
        middle = output["time_NT2"].mean(-1)
        inside = (middle >= span[:, :1]) & (middle < span[:, 1:])
        loss = nn.functional.binary_cross_entropy_with_logits(output["score_NT"], inside.float(), reduction="none")
        return {"frames": (loss * output["valid_NT"]).sum(-1)}


class NoMetric(Metric):
    def update(self, answers: Any, target: Target) -> None:
        return None

    def compute(self) -> dict[str, float]:
        return {}

    def chance(self) -> dict[str, float]:
        return {}


def _loaded(name: str, config: type[HeadConfig], head: type[Head[Any]], codec: type[Codec[Any]]) -> LoadedHead:
    spec = HeadSpec(
        name=name,
        summary="toy",
        config="toy_heads:BoxConfig",
        head="toy_heads:BoxHead",
        codec="toy_heads:BoxCodec",
        metric="toy_heads:NoMetric",
        primary="none",
    )
    return LoadedHead(spec, "toy", "0", config, head, codec, NoMetric)


def box_head(name: str = "box") -> LoadedHead:
    return _loaded(name, BoxConfig, BoxHead, BoxCodec)


def moment_head(name: str = "moment") -> LoadedHead:
    return _loaded(name, HeadConfig, MomentHead, MomentCodec)
