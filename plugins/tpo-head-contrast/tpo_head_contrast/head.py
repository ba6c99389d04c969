"""Task embedding and a second view of the same medium, brought together by InfoNCE (van den Oord et al. 2018; SimCLR, Chen et al. 2020).

N queries, K media, E width of the shared space, G side of the second view in pixels.
"""

from collections.abc import Sequence

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from tpo_core import Codec, Head, HeadConfig
from tpo_core.types import Answer, ClipView, Queries, Target, Tensors, Widths


class ContrastConfig(HeadConfig):
    width: int = Field(32, ge=1, description="width of the shared space")
    side: int = Field(32, ge=8, multiple_of=8, description="pixels of the second view's side")
    temperature: float = Field(0.1, gt=0, description="of the softmax over the other views of the micro-batch")


class Fields(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ContrastCodec(Codec[ContrastConfig]):
    schema = Fields
    needs_features = False
    terms = ("nce",)

    def inputs(self, clip: ClipView) -> Tensors:
        """Return ``view`` (3, G, G) uint8: in training a random frame, crop and brightness; else the middle of the middle frame."""
        rng, (width, height) = clip.rng(), clip.media.size
        share, *place, frame, light = rng.uniform((0.7, 0, 0, 0, 0.8), (1, 1, 1, 1, 1.2)) if clip.training else (0.85, 0.5, 0.5, 0.5, 1)
        index = clip.frame_indices[int(frame * len(clip.frame_indices))]
        wide, high = max(1, round(share * width)), max(1, round(share * height))
        left, top = round(place[0] * (width - wide)), round(place[1] * (height - high))
        pixels_HW3 = torch.from_numpy(clip.media.frames([index])[0][top : top + high, left : left + wide].copy())
        view = F.interpolate(pixels_HW3.permute(2, 0, 1)[None].float(), size=(self.config.side,) * 2, mode="area")[0]
        return {"view": (view * light).clamp(0, 255).byte()}

    def encode(self, target: Target, clip: ClipView) -> list[Tensors]:
        """Return ``code`` (E,): the medium's own colours, which stand for a perfect embedding in `ContrastHead.ideal`; not learnt from."""
        view_3GG = self.inputs(ClipView(clip.media, frame_indices=clip.frame_indices))["view"].float()
        code_C = F.adaptive_avg_pool2d(view_3GG, 4).flatten() - view_3GG.mean()
        return [{"code": F.pad(code_C, (0, max(0, self.config.width - len(code_C))))[: self.config.width]}]

    def decode(self, output: Tensors, clip: ClipView) -> Answer:
        return {name: [round(value, 5) for value in output[name].double().tolist()] for name in ("token", "view")}

    def describe(self, answers: Sequence[Answer]) -> str:
        return f"an embedding of {len(answers[0]['token'])} numbers" if answers else "nothing"


class ContrastHead(Head[ContrastConfig]):
    mixing_terms = frozenset({"nce"})

    def __init__(self, config: ContrastConfig, widths: Widths) -> None:
        super().__init__(config, widths)
        self.token = nn.Sequential(nn.Linear(config.slots * widths.hidden, 64), nn.GELU(), nn.Linear(64, config.width))
        layers = [(3, 16, config.side // 8), (16, 32, 2), (32, 32, 2)]
        convolutions = [m for i, o, step in layers for m in (nn.Conv2d(i, o, 3, stride=max(1, step), padding=1), nn.GELU())]
        self.view = nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(512, config.width))

    def forward(self, queries: Queries, targets: Tensors | None = None) -> Tensors:
        """Return ``token`` and ``view`` (N, E) of length 1, and ``media`` (N,): queries on one medium are no negatives of each other."""
        pixels_K = queries.inputs["view"].to(queries.states_NSD.dtype) / 127.5 - 1
        view_KE = self.view(pixels_K.to(next(self.view.parameters()).dtype))
        return {
            "token": F.normalize(self.token(queries.states_NSD.flatten(1)).float(), dim=-1),
            "view": F.normalize(view_KE.float(), dim=-1)[queries.media_N],
            "media": queries.media_N,
        }

    def loss(self, output: Tensors, targets: Tensors) -> Tensors:
        """Return the cross entropy of each query's own view among all of the micro-batch, both ways, (N,)."""
        twins_NN = output["media"][:, None] == output["media"][None]
        alike_NN = (output["token"] @ output["view"].T) / self.config.temperature
        alike_NN = alike_NN.masked_fill(twins_NN & ~torch.eye(len(twins_NN), dtype=torch.bool, device=twins_NN.device), -1e4)
        own_N = torch.arange(len(alike_NN), device=alike_NN.device)
        both: list[Tensor] = [F.cross_entropy(logits, own_N, reduction="none") for logits in (alike_NN, alike_NN.T)]
        return {"nce": (both[0] + both[1]) / 2}

    def ideal(self, targets: Tensors) -> Tensors:
        code_NE = F.normalize(targets["code"], dim=-1)
        return {"token": code_NE, "view": code_NE, "media": torch.arange(len(code_NE))}
