"""The toy head with one fault each. A class's name says which check must catch it."""

import numpy as np
import torch
from pydantic import ConfigDict
from torch import nn
from toy_head import SpotCodec, SpotConfig, SpotHead, SpotMetric, SpotPrompt, draw


class ConfigLax(SpotConfig):
    model_config = ConfigDict(extra="ignore")


class ConfigDemanding(SpotConfig):
    width: int


class CodecCounts(SpotCodec):
    calls = 0

    def encode(self, target, clip):
        self.calls += 1
        return [{"points": row["points"] + 0.001 * self.calls} for row in super().encode(target, clip)]


class CodecMutates(SpotCodec):
    def encode(self, target, clip):
        encoded = super().encode(target, clip)
        target["points"].reverse()
        return encoded


class CodecGivesArrays(SpotCodec):
    def inputs(self, clip):
        return {"colour": super().inputs(clip)["colour"].numpy()}


class CodecGivesOne(SpotCodec):
    def encode(self, target, clip):
        return tuple(super().encode(target, clip))


class CodecDrawsFreely(SpotCodec):
    def inputs(self, clip):
        return {"colour": super().inputs(clip)["colour"] + float(np.random.default_rng().random())}


class CodecForgetsAbsence(SpotCodec):
    def is_absent(self, target):
        return False


class CodecHoldsLambda(SpotCodec):
    def __init__(self, config, view):
        super().__init__(config, view)
        self.scale = lambda x: x


class CodecForgets(SpotCodec):
    def __getstate__(self):
        return {}

    def encode(self, target, clip):
        factor = 1.0 if "config" in self.__dict__ else 2.0
        return [{"points": row["points"] * factor} for row in super().encode(target, clip)]


class MetricOtherChance(SpotMetric):
    def chance(self):
        return {"hits": 0.0}


class MetricOtherPrimary(SpotMetric):
    def compute(self):
        return {"accuracy": 0.5} if self.hits else {}


class MetricDividesByNothing(SpotMetric):
    def compute(self):
        return {"hit": sum(self.hits) / max(len(self.hits), 1)}


class MetricNan(SpotMetric):
    def chance(self):
        return {"hit": float("nan")} if self.hits else {}


class BatchSqueezes(SpotHead):
    def forward(self, queries, targets=None):
        return {"spot": super().forward(queries)["spot"].squeeze()}


class BatchRaises(SpotHead):
    def forward(self, queries, targets=None):
        return {"spot": super().forward(queries)["spot"] + targets["points"][:, 0]}


class LossIsMean(SpotHead):
    def loss(self, output, targets):
        return {"l1": super().loss(output, targets)["l1"].mean()}


class LossIsNan(SpotHead):
    def loss(self, output, targets):
        return {"l1": super().loss(output, targets)["l1"] * float("inf") * 0}


class CountsOtherTerm(SpotCodec):
    def counts(self, encoded):
        return {"points": float(len(encoded["points"]))}


class LossOtherTerm(SpotHead):
    def loss(self, output, targets):
        return {"distance": super().loss(output, targets)["l1"]}


class CountsNegative(SpotCodec):
    def counts(self, encoded):
        return {"l1": -1.0}


class WeightsOtherTerm(SpotHead):
    term_weights = {"l2": 3.0}


class WeightsRaise(SpotHead):
    @property
    def term_weights(self):
        raise RuntimeError("no weights")


class DecodeSwapsAxes(SpotCodec):
    def decode(self, output, clip):
        height, width = clip.media.size
        x, y = output["spot"].tolist()
        return {"spot": [x * width, y * height]}


class IdealRounds(SpotHead):
    def ideal(self, targets):
        return {"spot": super().ideal(targets)["spot"].round()}


class PredictGivesNumpy(SpotCodec):
    def decode(self, output, clip):
        return {"spot": [np.float32(value) for value in super().decode(output, clip)["spot"]]}


class PredictChanges(SpotCodec):
    def decode(self, output, clip):
        answer = super().decode(output, clip)
        output["spot"].add_(1)
        return answer


class PredictTwoChunks(SpotCodec):
    def chunks(self, clip):
        yield from super().chunks(clip)
        yield from super().chunks(clip)


def draw_needs_answer(canvas, answers, target):
    draw(canvas, [answers[0]], target)


def draw_takes_two(canvas, answers):
    draw(canvas, answers, None)


class GradientCut(SpotHead):
    def read(self, queries):
        queries = queries.__class__(**{**queries.__dict__, "states_NSD": queries.states_NSD.detach()})
        return super().read(queries)


class GradientOfOneSlot(SpotHead):
    def read(self, queries):
        states = torch.cat([queries.states_NSD[:, :1], torch.zeros_like(queries.states_NSD[:, 1:])], 1)
        return super().read(queries.__class__(**{**queries.__dict__, "states_NSD": states}))


class GradientNan(SpotHead):
    def read(self, queries):
        return super().read(queries) + (queries.states_NSD.flatten(1).sum(1, keepdim=True) * 0).sqrt()


class MixingCentres(SpotHead):
    def read(self, queries):
        read = super().read(queries)
        return read - 0.5 * read.mean(0, keepdim=True)


class MixingDivides(SpotHead):
    def loss(self, output, targets):
        return {"l1": super().loss(output, targets)["l1"] / targets["points_valid"].sum()}


class MixingDividesByRows(SpotHead):
    def loss(self, output, targets):
        return {"l1": super().loss(output, targets)["l1"] / len(output["spot"])}


class MixingReadsPadding(SpotHead):
    def loss(self, output, targets):
        return {"l1": (output["spot"][:, None] - targets["points"]).abs().sum((1, 2))}


class MixingOnlyInTraining(SpotHead):
    def read(self, queries):
        read = super().read(queries)
        return read - 0.5 * read.mean(0, keepdim=True) if self.training else read


class MixingAllowed(MixingDivides):
    mixing_terms = frozenset({"l1"})


class TargetsLeak(SpotHead):
    def forward(self, queries, targets=None):
        spot = super().forward(queries)["spot"]
        return {"spot": spot if targets is None else 0.9 * spot + 0.1 * self.ideal(targets)["spot"]}


class EvalDrops(SpotHead):
    def read(self, queries):
        return nn.functional.dropout(super().read(queries), 0.5, training=True)


class Bf16MixesTypes(SpotHead):
    def read(self, queries):
        count, slots, width = queries.states_NSD.shape
        index = torch.arange(count).repeat_interleave(slots)
        total = torch.zeros(count, width).index_add(0, index, queries.states_NSD.flatten(0, 1))
        return super().read(queries) + total.mean(1, keepdim=True)


class Bf16Saturates(SpotHead):
    def loss(self, output, targets):
        precision = torch.bfloat16 if torch.is_autocast_enabled("cpu") else torch.float32
        sure = (output["spot"].to(precision) * 0 + 9).sigmoid()
        return {"l1": super().loss(output, targets)["l1"] - (1 - sure).log().sum(1)}


class Bf16Leaves(SpotHead):
    def forward(self, queries, targets=None):
        return {"spot": self.out(self.read(queries))}


class DecodeByNumpy(SpotCodec):
    def decode(self, output, clip):
        return {"spot": [float(value) for value in output["spot"].numpy() * clip.media.size]}


class StateOutside(SpotHead):
    def __init__(self, config, widths):
        super().__init__(config, widths)
        self.offset = torch.randn(2)

    def forward(self, queries, targets=None):
        return {"spot": super().forward(queries)["spot"] + self.offset}


class StateShared(SpotHead):
    def __init__(self, config, widths):
        super().__init__(config, widths)
        self.again = self.out


class WrapperLazy(SpotHead):
    def __init__(self, config, widths):
        super().__init__(config, widths)
        self.states = nn.LazyLinear(8)


class WrapperNotFinite(SpotHead):
    def __init__(self, config, widths):
        super().__init__(config, widths)
        self.log_scale = nn.Parameter(torch.full((1,), -float("inf")))

    def forward(self, queries, targets=None):
        return {"spot": super().forward(queries)["spot"] + self.log_scale.exp()}


class RngNumpy(SpotCodec):
    def encode(self, target, clip):
        np.random.rand()
        return super().encode(target, clip)


class RngSeeds(SpotCodec):
    def inputs(self, clip):
        torch.manual_seed(3)
        return super().inputs(clip)


class RngHead(SpotHead):
    def loss(self, output, targets):
        np.random.rand()
        return super().loss(output, targets)


class PromptNone(SpotHead):
    def __init__(self, config, widths):
        super().__init__(config, widths)
        self.prompt = None


class PromptNarrow(SpotHead):
    def __init__(self, config, widths):
        super().__init__(config, widths)
        self.prompt = SpotPrompt(widths.hidden - 1)


class Centring(SpotPrompt):
    def forward(self, tensors):
        rows = super().forward(tensors)
        return rows - 0.5 * rows.mean(0, keepdim=True)


class PromptMixes(SpotHead):
    def __init__(self, config, widths):
        super().__init__(config, widths)
        self.prompt = Centring(widths.hidden)


class Constant(SpotPrompt):
    def forward(self, tensors):
        return super().forward(tensors).detach()


class PromptFrozen(SpotHead):
    def __init__(self, config, widths):
        super().__init__(config, widths)
        self.prompt = Constant(widths.hidden)


class PromptTakesAll(SpotCodec):
    def encode_prompt(self, prompt, clip):
        return super().encode_prompt(prompt.model_copy(update={"kind": "point"}), clip)


class PromptDraws(SpotCodec):
    calls = 0

    def encode_prompt(self, prompt, clip):
        self.calls += 1
        return {"at": super().encode_prompt(prompt, clip)["at"] + 0.001 * self.calls}


class PromptRaises(SpotCodec):
    def encode_prompt(self, prompt, clip):
        raise ValueError("no prompts today")
