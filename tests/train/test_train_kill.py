"""A run that is killed at any moment and resumed ends in the same bits as one that was left alone."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from toys_train import Toy, loader, reach, stage

from tpo_core.runs import BackboneIdentity, HeadOrigin, MetricsLog, RunFolder, RunInfo, RunState, TrainerState, load_run_state, whole_state
from tpo_core.train import Trainer

STEPS = 24
INFO = RunInfo(
    created="2026-01-01T00:00:00+00:00",
    config={},
    versions={},
    heads={name: HeadOrigin(package="tpo", version="1") for name in ("mask", "region")},
    backbone=BackboneIdentity(path="toy", model_type="toy", hidden=6, vocabulary=3, digest="00"),
)


def capture(model: Toy) -> RunState:
    heads = {name: whole_state(slot.state_dict()) for name, slot in model.heads.items()}
    tokens = {name: {"in": parameter.detach().clone()} for name, parameter in model.tokens.items()}
    rest = {name: value for name, value in model.state_dict().items() if not name.startswith(("heads.", "tokens."))}
    return RunState(tokens=tokens, heads=heads, backbone=whole_state(rest))


def restore(model: Toy, state: RunState) -> None:
    flat = dict(state.backbone)
    flat |= {f"tokens.{name}": held["in"] for name, held in state.tokens.items()}
    flat |= {f"heads.{name}.{key}": value for name, held in state.heads.items() for key, value in held.items()}
    model.load_state_dict(flat)


def train(path: Path, *, pause: float = 0.0) -> None:
    """Train to the end, from wherever the folder is."""
    folder = RunFolder.open(path, INFO, resume=True)
    loaded = folder.latest(installed=("mask", "region"))
    model = reach(Toy(seed=1, dropout=0.3))
    start = None
    if loaded is not None:
        restore(model, loaded.state)
        start = loaded.trainer
    config = stage(micro_batch=10, warmup=4)

    def save(state: TrainerState) -> Path:
        return folder.save(capture(model), state)

    def log(row: object) -> None:
        folder.metrics.append(row)  # type: ignore[arg-type]
        time.sleep(pause)

    Trainer(
        model,
        stage=config,
        steps=STEPS,
        batches=loader(config),
        accelerator=Accelerator(cpu=True),
        seed=3,
        start=start,
        save=save,
        checkpoint_every=3,
        log=log,
    ).run()


def fork(action: Callable[[], object]) -> int:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            action()
            code = 0
        except BaseException as error:
            print(error, file=sys.stderr)
        finally:
            os._exit(code)
    return child


def test_killed_runs_end_in_the_same_bits(tmp_path: Path) -> None:
    train(tmp_path / "straight")
    generator = torch.Generator().manual_seed(1)
    path = tmp_path / "killed"
    log = MetricsLog(path / "metrics.jsonl")
    kills = 0
    for target in (5, 11, 17):
        child = fork(lambda: train(path, pause=0.01))
        try:
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline and max([0, *(row["step"] for row in log.rows())]) < target:
                time.sleep(0.002)
            time.sleep(float(torch.rand(1, generator=generator)) * 0.02)
        finally:
            os.kill(child, signal.SIGKILL)
            kills += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert kills == 3
    train(path)
    left, right = (load_run_state(folder, installed=("mask", "region"), trainer=True) for folder in (tmp_path / "straight", path))
    assert left.info.stage == right.info.stage
    assert left.info.stage.step == STEPS
    assert left.trainer is not None
    assert right.trainer is not None
    held = [
        (left.state.backbone, right.state.backbone),
        *((left.state.heads[name], right.state.heads[name]) for name in ("mask", "region")),
        *((left.state.tokens[name], right.state.tokens[name]) for name in ("mask", "region")),
        *((left.trainer.optimizer[name], right.trainer.optimizer[name]) for name in left.trainer.optimizer),
        *zip(left.trainer.rng, right.trainer.rng, strict=True),
    ]
    for mine, theirs in held:
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    straight = MetricsLog(tmp_path / "straight" / "metrics.jsonl").rows()
    timed = ("seconds", "samples_per_s", "tokens_per_s")
    plain = [[{k: v for k, v in row.items() if k not in timed} for row in rows] for rows in (straight, log.rows())]
    assert plain[0] == plain[1]
    assert [row["step"] for row in plain[1]] == list(range(1, STEPS + 1))
