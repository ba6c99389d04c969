"""The loop of a stage: idle heads, resume to the bit, what is not finite, observers, rows of metrics."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from toys_train import TERMS, Listed, Toy, loader, make_batch, reach, stage, watch_gradients

from tpo_core.errors import CheckpointError, TrainError
from tpo_core.runs.state import TrainerState
from tpo_core.train import Observer, StagePlan, StepBatches, StepHook, StepReport, Trainer
from tpo_core.train.step import count_step


def make(model: Toy, steps: int, batches: Any, **options: Any) -> Trainer:
    config = options.pop("config", stage())
    return Trainer(reach(model), stage=config, steps=steps, accelerator=Accelerator(cpu=True), batches=batches, **options)


def weights(model: Toy) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_an_idle_head_stays_to_the_bit_in_spite_of_momentum_and_decay() -> None:
    both = [make_batch(range(12))]
    region = [make_batch(range(12), only="region")]
    model = Toy()
    first = make(model, 2, Listed([both, both]), config=stage(weight_decay=0.5))
    first.run()
    state = first.state()
    first.close()
    before = weights(model)
    second = make(model, 4, Listed([both, both, region, region]), config=stage(weight_decay=0.5), start=replaced(state, steps=4))
    second.run()
    after = weights(model)
    assert state.optimizer["heads.mask/heads.mask.head.0.weight"]["exp_avg"].abs().sum() > 0
    for name in before:
        still = name.startswith(("heads.mask", "tokens.mask", "unreached"))
        assert torch.equal(before[name], after[name]) is still, name


def replaced(state: TrainerState, *, steps: int) -> TrainerState:
    mark = state.mark.model_copy(update={"steps": steps})
    return TrainerState(mark, state.optimizer, state.rng, state.balance)


@pytest.mark.parametrize(("workers", "muon"), [(0, {}), (2, {}), (0, {"heads": 0.02, "lora": 0.02})])
def test_resume_is_exact(workers: int, muon: dict[str, float]) -> None:
    """Six steps in one go, and three, a checkpoint, three: the same weights, moments and random numbers, with dropout."""
    config = stage(micro_batch=5, warmup=2, min_lr_ratio=0.1, muon=muon)
    straight = Toy(dropout=0.3)
    saved: list[tuple[TrainerState, dict[str, torch.Tensor]]] = []

    def save(state: TrainerState) -> Path | None:
        saved.append((state, weights(straight)))
        return None

    trainer = make(straight, 6, loader(config), config=config, seed=5, save=save, checkpoint_every=3)
    trainer.run()
    ending = torch.rand(3)
    assert [state.mark.step for state, _ in saved] == [3, 6]
    middle, middle_weights = saved[0]
    assert middle.mark.position == 60
    torch.manual_seed(77)
    resumed = Toy(seed=9, dropout=0.3)
    resumed.load_state_dict(middle_weights)
    again = make(resumed, 6, loader(config, workers=workers), config=config, seed=5, start=middle)
    assert again.run() == trainer.mark
    assert torch.equal(torch.rand(3), ending)
    assert all(torch.equal(straight.state_dict()[name], value) for name, value in resumed.state_dict().items())
    end, straight_end = again.state(), saved[1][0]
    for name, held in straight_end.optimizer.items():
        assert all(torch.equal(held[key], end.optimizer[name][key]) for key in held)


def test_what_came_before_a_stage_does_not_matter_to_it() -> None:
    def run(noise: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(noise)
        model = Toy(dropout=0.5)
        make(model, 2, loader(stage()), seed=1, index=2).run()
        return weights(model)

    left, right = run(1), run(2)
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_only_the_groups_of_the_stage_move() -> None:
    model = Toy()
    before = weights(model)
    make(model, 2, loader(stage()), config=stage(train={"lora": 0.1, "heads.region": 0.1})).run()
    moved = {name for name, value in weights(model).items() if not torch.equal(value, before[name])}
    assert moved == {"lora.weight", "norm.weight", "norm.bias"} | {f"heads.region.head.{i}.{p}" for i in (0, 2) for p in ("weight", "bias")}


def test_learning_rates_and_steps_by_hand() -> None:
    """The first AdamW step moves each number by its learning rate, if nothing decays and eps is small."""
    model = Toy()
    before = weights(model)
    config = stage(weight_decay=0.0, warmup=1, eps=1e-12, clip_norm=None)
    trainer = make(model, 1, Listed([[make_batch(range(6))]]), config=config)
    trainer.run()
    after = weights(model)
    for name, rate in {"words.weight": 0.01, "lora.weight": 0.02, "tokens.region": 0.03, "heads.region.head.2.bias": 0.04}.items():
        torch.testing.assert_close((after[name] - before[name]).abs(), torch.full_like(after[name], rate * 0.5), rtol=1e-3, atol=1e-6)


def test_gradients_are_clipped_to_the_norm() -> None:
    batches = [[make_batch(range(6))]]
    free = make(Toy(), 1, Listed(batches), config=stage(clip_norm=None))
    free_seen = watch_gradients(free)
    free.run()
    rows: list[Mapping[str, Any]] = []
    clipped = make(Toy(), 1, Listed(batches), config=stage(clip_norm=0.01), log=rows.append)
    seen = watch_gradients(clipped)
    clipped.run()
    norm = torch.stack([g.norm() for g in free_seen[0].values()]).norm()
    assert rows[0]["grad_norm"] == pytest.approx(float(norm), rel=1e-5)
    for name, gradient in seen[0].items():
        torch.testing.assert_close(gradient, free_seen[0][name] * (0.01 / norm), rtol=1e-5, atol=1e-9)


def test_a_loss_that_is_not_finite_stops_before_anything_changes() -> None:
    bad = make_batch(range(6, 12))
    bad.extra["x"][1] = float("nan")
    model = Toy()
    trainer = make(model, 3, Listed([[make_batch(range(6)), make_batch(range(20, 26))], [make_batch(range(6)), bad]]))
    states: list[dict[str, torch.Tensor]] = []
    trainer.optimizer.optimizer.register_step_post_hook(lambda *_: states.append(weights(model)))  # type: ignore[attr-defined]
    with pytest.raises(TrainError) as caught:
        trainer.run()
    text = str(caught.value)
    assert text.startswith("step 2: loss, lm, assign, mask/bce not finite; among the samples 's6', 's7', 's8'")
    assert "'s0'" not in text
    assert len(states) == 1
    assert all(torch.equal(states[0][name], value) for name, value in weights(model).items())


def test_a_gradient_that_is_not_finite_stops_too() -> None:
    model = Toy()
    trainer = make(model, 1, Listed([[make_batch(range(3))]]))
    model.lora.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(TrainError, match=r"step 1: the gradient's norm is (inf|nan); this process had 's0', 's1', 's2'"):
        trainer.run()


def test_metrics_of_a_step() -> None:
    rows: list[Mapping[str, Any]] = []
    config = stage(micro_batch=5, warmup=1)
    trainer = make(Toy(), 4, loader(config), config=config, log=rows.append, log_every=3, global_step=10)
    trainer.run()
    assert [(row["stage"], row["step"], row["stage_step"]) for row in rows] == [("joint", 13, 3), ("joint", 14, 4)]
    row = rows[0]
    whole = make_batch(range(40, 60))
    assert row["samples"] == 20
    assert row["tokens"] == float(whole.mask_BL.sum())
    assert row["lr/heads.mask"] == pytest.approx(2 * row["lr/lora"])
    assert row["loss"] == pytest.approx(
        row["lm"] + 0.5 * row["assign"] + row["mask/bce"] + 2 * row["region/l1"] + row["region/l2"], rel=1e-5
    )
    assert row["samples_per_s"] > 0


def test_observers_watch_and_cannot_break_the_run(caplog: pytest.LogCaptureFixture) -> None:
    events: list[str] = []

    class Watcher(Observer):
        def stage_begins(self, plan: StagePlan) -> None:
            events.append(f"begin {plan.name} {plan.steps} {plan.trained['lora']} {plan.rates['heads.mask']}")

        def step_ends(self, report: StepReport) -> None:
            events.append(f"step {report.step}")

        def checkpoint_saved(self, path: Path) -> None:
            events.append(f"saved {path}")

        def stage_ends(self, plan: StagePlan) -> None:
            events.append("end")

    calls: list[int] = []

    def broken(*, step: int, metrics: Mapping[str, float]) -> None:
        calls.append(step)
        raise RuntimeError("plugin trouble")

    with caplog.at_level(logging.ERROR):
        make(
            Toy(),
            2,
            loader(stage()),
            observers=[StepHook(broken, "some-plugin"), Watcher()],
            save=lambda state: Path(f"checkpoint-{state.mark.global_step}"),
        ).run()
    assert events == ["begin joint 2 48 0.04", "step 1", "step 2", "saved checkpoint-2", "end"]
    assert calls == [1]
    assert "observer some-plugin raised and is switched off" in caplog.text
    assert "plugin trouble" in caplog.text


def test_resume_refuses_another_stage_and_unknown_parameters() -> None:
    trainer = make(Toy(), 1, loader(stage()))
    trainer.run()
    state = trainer.state()
    with pytest.raises(TrainError, match="the checkpoint is at step 1 of 1 of stage 'joint', this is stage 'joint' of 5 steps"):
        make(Toy(), 5, loader(stage()), start=state)
    with pytest.raises(CheckpointError, match=r"holds 4 parameters that do not train here, such as heads.mask/heads.mask.head.0.bias"):
        make(Toy(), 1, loader(stage()), start=state, config=stage(train={"llm": 1.0, "lora": 1.0, "tokens": 1.0, "heads.region": 1.0}))
    state.optimizer["lora/lora.weight"]["exp_avg"] = torch.zeros(2, 2)
    with pytest.raises(CheckpointError, match=r"exp_avg of shape \(2, 2\) for lora/lora.weight, here it is \(6, 6\)"):
        make(Toy(), 1, loader(stage()), start=state)


def test_a_finished_stage_has_nothing_left_to_do() -> None:
    model = Toy()
    trainer = make(model, 2, loader(stage()))
    trainer.run()
    before = weights(model)
    saves: list[TrainerState] = []
    again = make(model, 2, loader(stage()), start=trainer.state(), save=lambda state: saves.append(state))  # type: ignore[func-returns-value]
    assert again.run().finished
    assert saves == []
    assert all(torch.equal(before[name], value) for name, value in weights(model).items())


def test_more_processes_than_the_checkpoint_had(caplog: pytest.LogCaptureFixture) -> None:
    trainer = make(Toy(), 1, loader(stage()))
    state = trainer.state()
    with caplog.at_level(logging.WARNING):
        make(Toy(), 1, loader(stage()), start=TrainerState(state.mark, {}, []))
    assert "holds the random state of 0 processes, process 0 begins with a fresh one" in caplog.text


def test_counts_that_no_head_owns_and_data_that_end() -> None:
    batch = make_batch(range(3))
    batch.counts["track/box"] = 1.0
    with pytest.raises(TrainError, match="a batch counts 'track/box', but the model has only lm, assign, mask/bce"):
        make(Toy(), 1, Listed([[batch]])).run()
    with pytest.raises(TrainError, match="the data ended at step 1 of 2 of stage 'joint'"):
        make(Toy(), 2, Listed([[make_batch(range(3))]])).run()


def test_the_accelerator_must_not_divide() -> None:
    with pytest.raises(TrainError, match="divides by gradient_accumulation_steps"):
        Trainer(Toy(), stage=stage(), steps=1, accelerator=Accelerator(cpu=True, gradient_accumulation_steps=4), batches=Listed([]))


def test_after_closing_the_model_is_plain_again() -> None:
    model = Toy()
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    plain = model.forward
    trainer = Trainer(reach(model), stage=stage(), steps=1, accelerator=accelerator, batches=loader(stage()))
    assert model.forward != plain
    trainer.run()
    trainer.close()
    assert model.forward == plain
    assert all(parameter.grad is None for parameter in model.parameters())


def test_counts_of_a_step_by_hand() -> None:
    """Sums over micro-batches; a term without a count divides by 1, and a fraction is not enlarged away."""
    first, second = make_batch([0, 3], only="region"), make_batch([6], only="region")
    second.counts["region/l2"] = 0.25
    totals = count_step(StepBatches([first, second], bad=2), (*TERMS,), Accelerator(cpu=True))
    assert totals.counts == {"lm": 3.0, "assign": 3.0, "mask/bce": 0.0, "region/l1": 1.0 + 4.0 + 3.0, "region/l2": 2.25}
    assert totals.denominators == {"lm": 3.0, "assign": 3.0, "mask/bce": 1.0, "region/l1": 8.0, "region/l2": 2.25}
    assert (totals.samples, totals.tokens, totals.bad) == (3.0, 1.0 + 4.0 + 2.0, 2.0)
