"""A head that keeps its contract: the middle of the points of a target, from two slots, the words, the features and a colour."""

import torch
from pydantic import BaseModel, ConfigDict
from torch import nn

from tpo_core import Codec, Head, HeadConfig, Metric


class SpotConfig(HeadConfig):
    slots: int = 2


class SpotTarget(BaseModel):
    model_config = ConfigDict(extra="forbid")
    size: tuple[int, int]
    points: list[tuple[float, float]]
    frame: int | None = None


class SpotCodec(Codec):
    schema = SpotTarget
    ragged = frozenset({"points"})
    terms = ("l1",)

    def is_absent(self, target):
        return not target["points"]

    def inputs(self, clip):
        return {"colour": torch.from_numpy(clip.media.frames(clip.frame_indices[:1])).float().mean((0, 1, 2)) / 255}

    def encode(self, target, clip):
        points = torch.tensor(target["points"], dtype=torch.float32).reshape(-1, 2)
        return [{"points": points / torch.tensor(clip.media.size)}] if len(points) else []

    def encode_prompt(self, prompt, clip):
        if prompt.kind != "point":
            raise ValueError(f"the spot head takes a point, got {prompt.kind}")
        return {"at": torch.tensor(prompt["point"], dtype=torch.float32) / torch.tensor(clip.media.size)}

    def counts(self, encoded):
        return {"l1": float(len(encoded["points"]))}

    def decode(self, output, clip):
        width, height = clip.media.size
        x, y = output["spot"].tolist()
        return {"spot": [x * width, y * height]}


class SpotPrompt(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.linear = nn.Linear(2, width)

    def forward(self, tensors):
        return self.linear(tensors["at"])


class SpotHead(Head):
    def __init__(self, config, widths):
        super().__init__(config, widths)
        self.states = nn.Linear(config.slots * widths.hidden, 8)
        self.words = nn.Linear(widths.words, 8)
        self.features = nn.Linear(widths.features, 8)
        self.colour = nn.Linear(3, 8)
        self.drop = nn.Dropout(0.2)
        self.out = nn.Linear(8, 2)
        self.prompt = SpotPrompt(widths.hidden)

    def read(self, queries):
        valid = queries.words_valid_NW.unsqueeze(-1)
        words = (queries.words_NWD * valid).sum(1) / valid.sum(1)
        per_query = queries.features.select(queries.media_N)
        weight = per_query.valid_MTP.unsqueeze(-1)
        vision = (per_query.frames_MTPV * weight).sum((1, 2)) / weight.sum((1, 2))
        colour = queries.inputs["colour"][queries.media_N]
        mixed = self.states(queries.states_NSD.flatten(1)) + self.words(words) + self.features(vision) + self.colour(colour)
        return self.drop(torch.tanh(mixed))

    def forward(self, queries, targets=None):
        return {"spot": self.out(self.read(queries)).float()}

    def loss(self, output, targets):
        gap = (output["spot"][:, None] - targets["points"]).abs().sum(-1)
        return {"l1": (gap * targets["points_valid"]).sum(1)}

    def ideal(self, targets):
        valid = targets["points_valid"].unsqueeze(-1)
        return {"spot": (targets["points"] * valid).sum(1) / valid.sum(1)}


class SpotMetric(Metric):
    def __init__(self):
        self.hits = []

    def update(self, answers, target):
        points = target["points"]
        if not points or not answers:
            self.hits.append(float(not points and not answers))
            return
        middle = [sum(p[axis] for p in points) / len(points) for axis in (0, 1)]
        self.hits.append(float(max(abs(a - b) for a, b in zip(answers[0]["spot"], middle)) < 0.5))

    def compute(self):
        return {"hit": sum(self.hits) / len(self.hits)} if self.hits else {}

    def chance(self):
        return {"hit": 0.0} if self.hits else {}


def draw(canvas, answers, target):
    canvas.draw_points(canvas.frames[0], [answer["spot"] for answer in answers])
