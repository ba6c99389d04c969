"""The memory of several processes: what they share is counted once."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from tpo_core.jobs import train
from tpo_core.jobs.memory import peak_bytes, shared_bytes


def test_libraries_that_another_process_holds_are_shared() -> None:
    program = "import torch, sys; print('here', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "here\n"
        held = shared_bytes()
        other.communicate("")
    assert 50 * 2**20 < held < peak_bytes()


def test_what_the_others_share_with_the_main_process_is_not_counted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "peak_bytes", lambda: 100)
    monkeypatch.setattr(train, "shared_bytes", lambda: 30)
    monkeypatch.setattr(train, "add_over_processes", lambda values, accelerator: 3 * values)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    job = object.__new__(train.TrainJob)
    job._accelerator = SimpleNamespace(num_processes=3, device=torch.device("cpu"))
    assert job._used_elsewhere()[1] == 2 * (100 - 30)
