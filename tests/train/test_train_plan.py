"""Groups, rates, schedule, lengths and freezing: values by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from accelerate.utils import DistributedType, LoggerType
from torch import nn
from toys_train import Toy, loader, make_batch, reach, stage

from tpo_core.config import TrainerConfig
from tpo_core.errors import ConfigError, TrainError
from tpo_core.train import (
    Trainer,
    assert_distributed,
    describe_rates,
    fixed_parameters,
    freeze,
    freeze_unreached,
    make_accelerator,
    micro_batches,
    rate_factor,
    resolve_muon_rates,
    resolve_rates,
    stage_steps,
)
from tpo_core.train.optimizer import build_optimizer

GROUPS = ("vision", "connector", "llm", "lora", "tokens", "heads.mask", "heads.region")


@pytest.mark.parametrize(
    ("train", "heads", "expected"),
    [
        ({"lora": 1.0}, None, {"lora": 1.0}),
        ({"heads": 1.0}, None, {"heads.mask": 1.0, "heads.region": 1.0}),
        ({"heads": 1.0, "heads.mask": 2.0}, None, {"heads.mask": 2.0, "heads.region": 1.0}),
        ({"heads": 1.0, "heads.mask": None}, None, {"heads.region": 1.0}),
        ({"heads": 1.0, "tokens": 3.0}, ["mask"], {"tokens": 3.0, "heads.mask": 1.0}),
        ({"vision": None, "llm": 2.0}, None, {"llm": 2.0}),
    ],
)
def test_rates_by_group(train: dict[str, float | None], heads: list[str] | None, expected: dict[str, float]) -> None:
    config = stage(train=train, heads=None if heads is None else tuple(heads))
    assert resolve_rates(config, GROUPS) == expected


def test_a_group_that_the_model_has_not() -> None:
    with pytest.raises(
        ConfigError, match=r"stage 'joint': train names the group 'lora', which this model has not.* It has: llm, heads.mask"
    ):
        resolve_rates(stage(train={"lora": 1.0}), ["llm", "heads.mask"])
    with pytest.raises(ConfigError, match=r"Did you mean 'heads.mask'\?"):
        resolve_rates(stage(train={"heads.masc": 1.0}), ["llm", "heads.mask"])


def test_rates_in_words() -> None:
    assert describe_rates({"lora": 2e-5, "heads.region": 1e-4}) == "lora 2e-05, heads.region 0.0001"


def test_schedule_by_hand() -> None:
    config = stage(warmup=2, min_lr_ratio=0.1)
    assert [rate_factor(config, step, 6) for step in range(3)] == [pytest.approx(1 / 3), pytest.approx(2 / 3), 1.0]
    assert rate_factor(config, 4, 6) == pytest.approx(0.1 + 0.9 * 0.5)
    assert rate_factor(config, 6, 6) == pytest.approx(0.1)
    assert rate_factor(stage(warmup=0.5), 1, 4) == pytest.approx(2 / 3)
    assert rate_factor(stage(schedule="constant", warmup=1), 0, 10) == 0.5
    assert rate_factor(stage(schedule="constant", warmup=1), 9, 10) == 1.0
    assert rate_factor(stage(), 5, 10) == pytest.approx(0.5 * (1 + math.cos(math.pi / 2)))


def test_length_of_a_stage() -> None:
    assert stage_steps(stage(steps=7), 0) == 7
    assert stage_steps(stage(steps=None, epochs=2.5, batch_size=8), 100) == 32
    assert stage_steps(stage(steps=None, epochs=0.01, batch_size=8), 100) == 1
    with pytest.raises(TrainError, match="has no samples to learn from"):
        stage_steps(stage(steps=None, epochs=1.0), 0)


def test_dealing_out_a_step() -> None:
    assert micro_batches(stage(batch_size=20), 1) == (1, 20)
    assert micro_batches(stage(batch_size=20, micro_batch=5), 2) == (2, 5)
    assert micro_batches(stage(batch_size=8, micro_batch=8), 4) == (1, 2)
    with pytest.raises(TrainError, match="batch_size 20 does not divide over 3 processes"):
        micro_batches(stage(batch_size=20), 3)
    with pytest.raises(TrainError, match="gets 10 of 20 samples per step, which is not a multiple of micro_batch 4"):
        micro_batches(stage(batch_size=20, micro_batch=4), 2)


def trainable(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_freezing_by_group_keeps_what_an_author_froze() -> None:
    model = Toy()
    model.heads["mask"].head[0].weight.requires_grad_(False)
    fixed = fixed_parameters(model)
    assert fixed == {"heads.mask/heads.mask.head.0.weight"}
    assert freeze(model, {"heads.mask", "lora"}, fixed=fixed) == {"lora": 48, "heads.mask": 5 + 10 + 2}
    assert trainable(model) == {
        "lora.weight",
        "norm.weight",
        "norm.bias",
        "heads.mask.head.0.bias",
        "heads.mask.head.2.weight",
        "heads.mask.head.2.bias",
    }
    freeze(model, {"tokens"}, fixed=fixed)
    assert trainable(model) == {"tokens.mask", "tokens.region"}


def test_the_dry_step_freezes_what_no_path_reaches_and_changes_nothing_else() -> None:
    model = Toy(dropout=0.5)
    model.counter = nn.BatchNorm1d(3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(3)
    model.eval()
    assert freeze_unreached(model, [make_batch(range(3)), make_batch(range(3, 6), only="chat")]) == [
        "counter.bias",
        "counter.weight",
        "unreached.bias",
        "unreached.weight",
    ]
    assert float(torch.rand(1)) == float(torch.rand(1, generator=torch.Generator().manual_seed(3)))
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not {"unreached.weight", "counter.bias"} & trainable(model)
    assert "lora.weight" in trainable(model)
    with pytest.raises(TrainError, match="the dry step got no batch"):
        freeze_unreached(model, [])


def test_optimizer_groups() -> None:
    model = reach(Toy())
    optimizer = build_optimizer(model, {"lora": 0.5, "heads.mask": 0.25}, stage(weight_decay=0.1))
    found = [(entry["group"], entry["lr"], entry["weight_decay"], entry["names"]) for entry in optimizer.param_groups]
    assert found == [
        ("lora", 0.5, 0.1, ["lora.weight"]),
        ("lora", 0.5, 0.0, ["norm.weight", "norm.bias"]),
        ("heads.mask", 0.25, 0.1, ["heads.mask.head.0.weight", "heads.mask.head.2.weight"]),
        ("heads.mask", 0.25, 0.0, ["heads.mask.head.0.bias", "heads.mask.head.2.bias"]),
    ]
    with pytest.raises(TrainError, match="nothing to train, all parameters of connector are frozen"):
        build_optimizer(model, {"connector": 1.0}, stage())


def test_muon_moves_the_matrices_of_the_groups_that_ask_for_it() -> None:
    model = reach(Toy())
    model.heads["mask"].head.append(nn.Embedding(3, 2))
    optimizer = build_optimizer(model, {"lora": 0.5, "heads.mask": 0.25}, stage(weight_decay=0.1), muon={"heads.mask": 0.02})
    found = [(entry["group"], entry["lr"], entry.get("muon", False), entry["names"]) for entry in optimizer.param_groups]
    assert found == [
        ("lora", 0.5, False, ["lora.weight"]),
        ("lora", 0.5, False, ["norm.weight", "norm.bias"]),
        ("heads.mask", 0.25, False, ["heads.mask.head.3.weight"]),
        ("heads.mask", 0.25, False, ["heads.mask.head.0.bias", "heads.mask.head.2.bias"]),
        ("heads.mask", 0.02, True, ["heads.mask.head.0.weight", "heads.mask.head.2.weight"]),
    ]


def test_a_step_of_muon_is_a_rotation_of_the_length_that_the_rate_says() -> None:
    """A gradient with singular values 10, 1, .1 moves all three directions alike; the vector beside it moves as AdamW moves it."""
    model = reach(Toy())
    weight, bias = model.heads["mask"].head[0].weight, model.heads["mask"].head[0].bias
    optimizer = build_optimizer(model, {"heads.mask": 0.25}, stage(weight_decay=0.0), muon={"heads.mask": 0.02})
    left, _, right = torch.linalg.svd(torch.randn(5, 6, generator=torch.Generator().manual_seed(1)), full_matrices=False)
    weight.grad = left @ torch.diag(torch.tensor([10.0, 3.0, 1.0, 0.3, 0.1])) @ right
    bias.grad = torch.tensor([1.0, -2.0, 3.0, -4.0, 5.0])
    before = weight.detach().clone(), bias.detach().clone()
    optimizer.step()
    turned = torch.linalg.svdvals(before[0] - weight.detach())
    # 0.2 * sqrt(longer side) * rate, to the accuracy of five Newton-Schulz steps in half precision.
    assert ((turned / (0.2 * 6**0.5 * 0.02) > 0.5) & (turned / (0.2 * 6**0.5 * 0.02) < 1.3)).all()
    assert torch.allclose(before[1] - bias.detach(), 0.25 * bias.grad.sign())


def test_rates_reach_muon_after_its_state_was_loaded() -> None:
    """Accelerate loads an optimizer's state into it when it prepares it: the rates set afterwards must still count."""
    model = reach(Toy())
    optimizer = build_optimizer(model, {"heads.mask": 0.25}, stage(weight_decay=0.0), muon={"heads.mask": 0.02})
    optimizer.load_state_dict(optimizer.state_dict())
    for entry in optimizer.param_groups:
        entry["lr"] = 0.0
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.heads["mask"].parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())
    assert {key for held in optimizer.state.values() for key in held} == {"step", "exp_avg", "exp_avg_sq", "momentum_buffer"}


def test_muon_needs_groups_that_train() -> None:
    groups = ["lora", "heads.mask", "heads.region"]
    some = stage(train={"lora": 1.0, "heads": 2.0}, muon={"heads": 0.1, "heads.region": 0.2})
    assert resolve_muon_rates(some, groups) == {"heads.mask": 0.1, "heads.region": 0.2}
    assert resolve_muon_rates(stage(train={"lora": 1.0}), groups) == {}
    with pytest.raises(ConfigError, match=r"muon names the group 'lora', which does not train; give it a rate under train too"):
        resolve_muon_rates(stage(train={"heads": 1.0}, muon={"lora": 0.1}), groups)
    with pytest.raises(ConfigError, match=r"muon names the group 'heads.masc', which this model has not"):
        resolve_muon_rates(stage(train={"heads": 1.0}, muon={"heads.masc": 0.1}), groups)


def test_a_parameter_in_two_groups_is_refused() -> None:
    class Shared(Toy):
        def groups(self) -> dict[str, dict[str, nn.Parameter]]:
            return {"llm": {"words.weight": self.words.weight}, "tokens": {"out": self.words.weight}}

    with pytest.raises(TrainError, match=r"stands in two groups, as llm/words[.]weight and tokens/out"):
        build_optimizer(Shared(), {"llm": 1.0, "tokens": 1.0}, stage())


@pytest.mark.parametrize(
    ("kind", "fsdp2", "expected", "message"),
    [
        (DistributedType.NO, False, "fsdp2", "asks for fsdp2, but Accelerate set up none"),
        (DistributedType.MULTI_CPU, False, "fsdp2", "asks for fsdp2, but Accelerate set up ddp"),
        (DistributedType.FSDP, False, "auto", "set up fsdp1, which this trainer cannot use: set fsdp_version to 2"),
        (DistributedType.DEEPSPEED, False, "auto", "set up deepspeed, which this trainer cannot use: it divides and steps by itself"),
        (DistributedType.FSDP, True, "ddp", "asks for ddp, but Accelerate set up fsdp2"),
    ],
)
def test_another_strategy_than_asked_for(kind: DistributedType, fsdp2: bool, expected: str, message: str) -> None:
    accelerator = SimpleNamespace(distributed_type=kind, is_fsdp2=fsdp2, num_processes=2)
    with pytest.raises(TrainError, match=message):
        assert_distributed(accelerator, expected)


@pytest.mark.parametrize(
    ("kind", "fsdp2", "expected"),
    [(DistributedType.NO, False, "none"), (DistributedType.MULTI_GPU, False, "ddp"), (DistributedType.FSDP, True, "fsdp2")],
)
def test_the_strategy_asked_for(kind: DistributedType, fsdp2: bool, expected: str) -> None:
    accelerator = SimpleNamespace(distributed_type=kind, is_fsdp2=fsdp2, num_processes=2)
    assert_distributed(accelerator, expected)
    assert_distributed(accelerator, "auto")


@pytest.mark.parametrize(("bf16", "expected"), [("auto", "no"), (False, "no"), (True, "bf16")])
def test_the_accelerator_of_a_run(tmp_path: object, bf16: object, expected: str) -> None:
    accelerator = make_accelerator(TrainerConfig.model_validate({"bf16": bf16}), logging_dir=str(tmp_path), cpu=True)
    assert (accelerator.gradient_accumulation_steps, accelerator.mixed_precision) == (1, expected)


def test_trackers_and_settings_that_cannot_be(tmp_path: object) -> None:
    with pytest.raises(ConfigError, match=r"no tracker 'tensorbord'. Did you mean 'tensorboard'\?"):
        make_accelerator(TrainerConfig(trackers=("tensorbord",)), logging_dir=str(tmp_path), cpu=True)
    with pytest.raises(ConfigError, match="the package of 'clearml' is not installed"):
        make_accelerator(TrainerConfig(trackers=("clearml",)), logging_dir=str(tmp_path), cpu=True)
    make_accelerator(TrainerConfig(), logging_dir=str(tmp_path), cpu=True)
    with pytest.raises(ConfigError, match="trainer: AcceleratorState has already been initialized"):
        make_accelerator(TrainerConfig(bf16=True), logging_dir=str(tmp_path), cpu=True)


def test_trackers_get_the_recipe_and_the_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Recorder(GeneralTracker):
        name = "tensorboard"
        requires_logging_directory = True
        seen: ClassVar[list[object]] = []

        def __init__(self, run_name: str, logging_dir: str) -> None:
            super().__init__()
            self.seen.append((run_name, logging_dir))

        @property
        def tracker(self) -> object:
            return self

        def store_init_configuration(self, values: dict[str, object]) -> None:
            self.seen.append(values)

        def log(self, values: dict[str, object], step: int | None = None) -> None:
            self.seen.append((step, values["loss"]))

    monkeypatch.setattr("accelerate.tracking._available_trackers", [LoggerType.TENSORBOARD])
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "tensorboard", Recorder)
    recipe = {"seed": 3, "lora": None, "stages": [{"name": "a", "heads": ["region", "mask"], "train": {"lora": 0.5}}]}
    config = TrainerConfig(trackers=("tensorboard",))
    accelerator = make_accelerator(config, logging_dir=str(tmp_path), cpu=True, run_config=recipe)
    rows: list[Mapping[str, Any]] = []
    Trainer(reach(Toy()), stage=stage(), steps=2, accelerator=accelerator, batches=loader(stage()), log=rows.append, global_step=5).run()
    assert Recorder.seen == [
        ("tpo", str(tmp_path)),
        {"seed": 3, "lora": "null", "stages.0.name": "a", "stages.0.heads": "region, mask", "stages.0.train.lora": 0.5},
        (6, rows[0]["loss"]),
        (7, rows[1]["loss"]),
    ]
