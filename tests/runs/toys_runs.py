"""A run's parts, made up: what is known of it, its weights and its trainer's state."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tpo_core.runs import BackboneIdentity, HeadOrigin, RunInfo, RunState, StageMark, TrainerState, utc_now

HEADS = ("region", "track", "mask")
BACKBONE = BackboneIdentity(path="some/model", model_type="llava_onevision", hidden=64, vocabulary=1000, digest="abcdef0123456789")
CONFIG: dict[str, Any] = {
    "seed": 0,
    "output": "runs/a",
    "heads": {"region": {"weight": 1.0}, "track": {"init_from": None}, "mask": {"init_from": "track"}},
    "data": {"workers": 2, "train": [{"name": "a", "weight": 1.0}]},
    "stages": [{"name": "joint", "steps": 10, "heads": ["region", "track"], "train": {"lora": 1.0, "heads.track": 1.0}}],
    "trainer": {"keep": 2},
}


def info(**changes: Any) -> RunInfo:
    base = RunInfo(
        created=utc_now(),
        config=CONFIG,
        versions={"tpo": "0.1"},
        heads={name: HeadOrigin(package=f"tpo-head-{name}", version="1.2") for name in ("region", "track", "mask")},
        backbone=BACKBONE,
        data={"a": "1234"},
    )
    return base.model_copy(update=changes)


def state(seed: int = 0, *, backbone: bool = True) -> RunState:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return RunState(
        adapter={
            "base_model.model.layers.0.q_proj.lora_A.weight": draw(2, 4),
            "base_model.model.layers.0.q_proj.lora_B.weight": draw(4, 2),
        },
        adapter_config={"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]},
        tokens={name: {"in": draw(2, 4), "out": draw(1, 4)} for name in ("region", "track", "mask")},
        heads={"region": {"mlp.0.weight": draw(3, 4)}, "track": {"w": draw(2).to(torch.bfloat16), "count": torch.tensor(7)}, "mask": {}},
        backbone={"vision.layer.weight": draw(2, 2)} if backbone else {},
    )


def trainer(step: int = 5) -> TrainerState:
    return TrainerState(
        mark=StageMark(index=1, name="joint", step=step, steps=10, global_step=step + 100, position=step * 16),
        optimizer={"lora/a.weight": {"exp_avg": torch.full((2, 2), float(step)), "step": torch.tensor(3.0)}},
        rng=[{"torch": torch.arange(6, dtype=torch.uint8)}, {"torch": torch.arange(6, dtype=torch.uint8) + 1}],
        balance={"lm": 0.5},
    )


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(left[n].dtype == right[n].dtype and torch.equal(left[n], right[n]) for n in left)


def assert_same_state(left: RunState, right: RunState) -> None:
    assert same(left.adapter, right.adapter)
    assert left.adapter_config == right.adapter_config
    assert same(left.backbone, right.backbone)
    for mine, theirs in ((left.tokens, right.tokens), (left.heads, right.heads)):
        assert mine.keys() == theirs.keys()
        assert all(same(mine[name], theirs[name]) for name in mine)
