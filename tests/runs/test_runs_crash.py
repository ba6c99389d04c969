"""Whatever happens while a checkpoint is written, the last good one survives: every crash point, SIGKILL, a full disk, damage."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tpo_core.errors import CheckpointError
from tpo_core.runs import (
    BackboneIdentity,
    HeadOrigin,
    RunFolder,
    RunInfo,
    RunState,
    StageMark,
    TrainerState,
    checkpoints,
    find_checkpoint,
    load_run_state,
)

INFO = RunInfo(
    created="2026-01-01T00:00:00+00:00",
    config={"seed": 0},
    versions={},
    heads={"region": HeadOrigin(package="tpo", version="1")},
    backbone=BackboneIdentity(path="m", model_type="toy", hidden=4, vocabulary=9, digest="00"),
)


def save(folder: RunFolder, step: int, *, size: int = 8) -> None:
    """A checkpoint whose every tensor is the step's number."""
    full = torch.full((size,), float(step))
    state = RunState(
        adapter={"a": full.clone()},
        adapter_config={"r": 1},
        tokens={"region": {"in": full.clone()}},
        heads={"region": {"w": full.clone()}},
        backbone={"v": full.clone()},
    )
    mark = StageMark(name="s", step=step, steps=100, global_step=step)
    folder.save(state, TrainerState(mark, {"g/p": {"exp_avg": full.clone()}}, [{"torch": full.clone()}]))


def assert_whole(path: Path) -> int:
    """The newest complete checkpoint holds one step's numbers throughout; return the step."""
    loaded = load_run_state(path, installed=("region",), trainer=True)
    step = float(loaded.info.stage.global_step)
    assert loaded.trainer is not None
    held = [
        loaded.state.adapter["a"],
        loaded.state.tokens["region"]["in"],
        loaded.state.heads["region"]["w"],
        loaded.state.backbone["v"],
        loaded.trainer.optimizer["g/p"]["exp_avg"],
        loaded.trainer.rng[0]["torch"],
    ]
    assert all(bool((tensor == step).all()) for tensor in held)
    return int(step)


def fork(action: Callable[[], object]) -> int:
    """Run something in a forked child, which never comes back here; return its process id."""
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


def in_child(action: Callable[[], object]) -> int:
    """Run something in a forked child and return its exit code."""
    return os.waitstatus_to_exitcode(os.waitpid(fork(action), 0)[1])


def die_at(count: int) -> None:
    """From now on, end the process without any clean-up at the count-th call that changes or flushes the disk."""
    left = [count]

    def patched(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                os._exit(9)
            return real(*args, **options)

        return call

    for name in ("replace", "fsync", "link", "unlink", "rmdir", "mkdir", "rename"):
        setattr(os, name, patched(getattr(os, name)))


def every_crash_point(start: Path, action: Callable[[RunFolder], None], allowed: set[int], stride: int) -> int:
    """Crash an action at each of its calls; after each the folder must open, hold an allowed step, and take a new checkpoint.

    Return how many points were passed. With a stride only every so many of them are tried.
    """
    for count in range(1, 500, stride):
        path = start.with_name(f"crash{count}")
        shutil.copytree(start, path)

        def run(path: Path = path, count: int = count) -> None:
            folder = RunFolder.open(path, INFO, resume=True, keep=1)
            die_at(count)
            action(folder)

        code = in_child(run)
        again = RunFolder.open(path, INFO, resume=True, keep=1)
        assert assert_whole(path) in allowed
        assert not [p.name for p in path.iterdir() if ".tmp-" in p.name]
        save(again, 3)
        assert assert_whole(path) == 3
        shutil.rmtree(path)
        if code == 0:
            return count - 1
        assert code == 9
    raise AssertionError("the action never ended")


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run with a checkpoint at step 1. Flushing is left out: nothing here cuts the power."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    save(RunFolder.open(tmp_path / "run", INFO, resume=False), 1)
    return tmp_path / "run"


STRIDES = (7, pytest.param(1, marks=pytest.mark.long))


@pytest.mark.parametrize("stride", STRIDES)
def test_every_crash_point_of_a_save(start: Path, stride: int) -> None:
    assert every_crash_point(start, lambda folder: save(folder, 2), {1, 2}, stride) > 20


@pytest.mark.parametrize("stride", STRIDES)
def test_every_crash_point_of_finishing(start: Path, stride: int) -> None:
    assert every_crash_point(start, lambda folder: folder.finish({}), {1}, stride) > 20


def test_sigkill_at_any_time(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    path = tmp_path / "run"
    folder = RunFolder.open(path, INFO, resume=False)
    save(folder, 1)
    for _ in range(5):
        reached = assert_whole(path)
        folder = RunFolder.open(path, INFO, resume=True)

        def save_on(folder: RunFolder = folder, reached: int = reached) -> None:
            for step in range(reached + 1, reached + 1000):
                save(folder, step, size=100_000)

        child = fork(save_on)
        try:
            deadline = time.monotonic() + 60
            while checkpoints(path)[0][0] == reached and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(float(torch.rand(1, generator=generator)) * 0.05)
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        assert assert_whole(path) > reached
    RunFolder.open(path, INFO, resume=True)
    assert not [p.name for p in path.iterdir() if ".tmp-" in p.name]


def test_a_full_disk(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run"
    folder = RunFolder.open(path, INFO, resume=False)
    save(folder, 1)

    def fill() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        save(folder, 2, size=100_000)

    assert in_child(fill) == 1
    message = capfd.readouterr().err
    assert "checkpoint-2: cannot be written (" in message
    assert f"free some space and --resume. The last good one is {path / 'checkpoint-1'}" in message
    assert sorted(p.name for p in path.iterdir()) == ["checkpoint-1", "run.json"]
    assert assert_whole(path) == 1


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: (path / "digests.json").unlink(), "it has no readable digests.json, so it was not finished"),
        (lambda path: (path / "heads/region.safetensors").unlink(), "heads/region.safetensors is missing"),
        (lambda path: os.truncate(path / "tokens.safetensors", 20), "tokens.safetensors has 20 bytes, "),
        (lambda path: flip(path / "trainer/rng.safetensors"), "trainer/rng.safetensors was changed after it was written"),
        (lambda path: (path / "digests.json").write_text("{}"), "it has no readable digests.json"),
    ],
)
def test_the_newest_complete_one_is_taken_and_the_skipped_named(tmp_path: Path, damage: Callable[[Path], object], reason: str) -> None:
    folder = RunFolder.open(tmp_path, INFO, resume=False)
    save(folder, 1)
    save(folder, 2)
    damage(tmp_path / "checkpoint-2")
    found = find_checkpoint(tmp_path, trainer=True)
    assert found is not None
    assert found.path.name == "checkpoint-1"
    assert found.notes[0].startswith(f"skipped {tmp_path / 'checkpoint-2'}: {reason}")
    assert assert_whole(tmp_path) == 1
    save(folder, 2)
    assert assert_whole(tmp_path) == 2


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def test_all_damaged_is_an_error_that_lists_them(tmp_path: Path) -> None:
    folder = RunFolder.open(tmp_path, INFO, resume=False)
    save(folder, 1)
    flip(tmp_path / "checkpoint-1/tokens.safetensors")
    with pytest.raises(CheckpointError, match=r"no complete checkpoint; skipped .*checkpoint-1: tokens.safetensors was changed"):
        find_checkpoint(tmp_path)
