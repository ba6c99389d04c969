"""Several processes for one `tpo train`: how many, what they are told, and how a failure ends all of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tpo_core.cli import launch


def test_no_more_processes_than_this_machine_has_threads_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert [launch.processes_here(wanted) for wanted in (1, 2, 3, 8)] == [1, 2, 3, 3]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [launch.processes_here(wanted) for wanted in (1, 2, 8)] == [1, 2, 2]
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert launch.processes_here(8) == 1


PROGRAM = """
import os, sys, time
rank = os.environ["RANK"]
open(sys.argv[1] + rank, "w").write(" ".join(os.environ[k] for k in ("WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")))
print("said by", rank, flush=True)
if sys.argv[2] == rank:
    sys.exit(f"broken in {rank}")
time.sleep(0.1 if sys.argv[2] == "-" else 60)
"""


@pytest.mark.parametrize(("broken", "code"), [("-", 0), ("0", 1), ("1", 1)])
def test_all_end_when_one_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], broken: str, code: int
) -> None:
    monkeypatch.setattr(launch, "_SELF", PROGRAM)
    monkeypatch.setattr(launch, "GRACE", 0.5)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    assert launch.watch([str(tmp_path / "rank"), broken], 2) == code
    assert [(tmp_path / f"rank{rank}").read_text() for rank in range(2)] == ["2 0 127.0.0.1", "2 1 127.0.0.1"]
    out, err = capfd.readouterr()
    assert out == "said by 0\n"
    assert err == ("" if broken == "-" else f"broken in {broken}\n")


BECOMES = """
import sys, torch
from tpo_core.cli import launch
print("torch" in sys.modules, flush=True)
launch._WATCH = (
    "import os, sys; from tpo_core.cli.launch import watch; "
    "print('torch' in sys.modules, sys.argv[1:], os.environ['WORLD_SIZE'], os.environ['MASTER_ADDR']); "
    "print(os.environ['MASTER_PORT'].isdigit()); "
    "sys.exit(7)"
)
launch.launch(["train", "a b"], 2)
"""


def test_what_waits_is_small_and_has_the_arguments_and_the_exit_code() -> None:
    done = subprocess.run([sys.executable, "-c", BECOMES], capture_output=True, text=True, check=False)
    assert done.returncode == 7, done.stderr
    assert done.stdout.splitlines() == ["True", "False ['2', 'train', 'a b'] 2 127.0.0.1", "True"]


@pytest.mark.long
def test_two_processes_learn_what_one_learns(tmp_path: Path) -> None:
    """The same command with one thread (one process) and with two: the same losses. Questions shared by two: the same answers."""
    losses = []
    for threads in ("1", "2"):
        output = tmp_path / threads
        command = [sys.executable, "-c", launch._SELF, "train", "--heads", "region", "--output", str(output), "--json"]
        command += ["recipe.samples=60", "recipe.scale=0.02", "trainer.eval_samples=4", "trainer.report=false"]
        environment = {key: value for key, value in os.environ.items() if key != "WORLD_SIZE"} | {"OMP_NUM_THREADS": threads}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        summary = json.loads(done.stdout.splitlines()[-1])
        assert summary["steps"] >= 3
        losses.append([json.loads(line)["loss"] for line in (output / "metrics.jsonl").read_text().splitlines()])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    answers = []
    for count in ("1", "2"):
        output = tmp_path / f"eval{count}"
        command = [
            sys.executable,
            "-c",
            launch._SELF,
            "eval",
            str(tmp_path / "1"),
            "--output",
            str(output),
            "--json",
            "--processes",
            count,
            "--batch-size",
            "4",
        ]
        environment = {key: value for key, value in os.environ.items() if key != "WORLD_SIZE"} | {"OMP_NUM_THREADS": count}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        rows = [json.loads(line) for line in (output / "predictions.jsonl").read_text().splitlines()]
        answers.append([(row["id"], row["prediction"]["text"]) for row in rows])
        assert json.loads(done.stdout) == json.loads((output / "figures.json").read_text())
    assert len(answers[0]) > 16
    assert answers[0] == answers[1]
