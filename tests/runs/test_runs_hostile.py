"""A run's folder that is none, is broken or was made with bad intent: nothing is executed, and the message names the file."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from toys_runs import HEADS, assert_same_state, info, state, trainer

from tpo_core.errors import CheckpointError
from tpo_core.runs import RunFolder, find_checkpoint, load_run_state


def test_paths_that_are_no_run(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder; give the folder of a run"):
        find_checkpoint(tmp_path / "absent")
    with pytest.raises(CheckpointError, match=r"holds no run \(no run.json\)"):
        find_checkpoint(tmp_path)
    RunFolder.open(tmp_path, info(), resume=False)
    assert find_checkpoint(tmp_path) is None
    with pytest.raises(CheckpointError, match="the run has no checkpoint yet; train it first"):
        load_run_state(tmp_path, installed=HEADS)


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path) -> None:
    path = RunFolder.open(tmp_path / "run", info(), resume=False).save(state(), trainer())
    marker = tmp_path / "executed"
    payload = pickle.dumps(Evil(marker))
    pickle.loads(payload)
    assert marker.exists()
    marker.unlink()
    for name in ("pytorch_model.bin", "adapter/adapter_model.bin", "trainer/optimizer.bin", "heads/region.pt", "custom_checkpoint_0.pkl"):
        (path / name).write_bytes(payload)
    assert_same_state(load_run_state(path, installed=HEADS, trainer=True).state, state())
    for name in ("tokens.safetensors", "heads/region.safetensors", "trainer/rng.safetensors"):
        (path / name).write_bytes(payload)
        with pytest.raises(CheckpointError):
            load_run_state(path, installed=HEADS, trainer=True)
    assert not marker.exists()


def test_names_that_lead_out_of_the_folder(tmp_path: Path) -> None:
    path = RunFolder.open(tmp_path, info(), resume=False).save(state(), trainer())
    text = (path / "run.json").read_text().replace('"track": {', '"../track": {')
    (path / "run.json").write_text(text)
    (path / "digests.json").write_text('{"files": {}}')
    with pytest.raises(CheckpointError, match=r"run.json: heads.../track"):
        load_run_state(path, installed=HEADS)
    (path / "digests.json").write_text('{"files": {"../../etc/passwd": {"bytes": 1, "sha256": "x"}}}')
    with pytest.raises(CheckpointError, match=r"names '../../etc/passwd', which lies outside the folder"):
        load_run_state(path, installed=HEADS)


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 1}', "[" * 10000, '{"created": NaN}', ""])
def test_a_broken_run_json(tmp_path: Path, text: str) -> None:
    path = RunFolder.open(tmp_path, info(), resume=False).save(state(), trainer())
    (path / "run.json").write_text(text)
    (path / "digests.json").write_text('{"files": {}}')
    with pytest.raises(CheckpointError, match="it was written by another version, or is broken"):
        load_run_state(path, installed=HEADS)


def test_tokens_of_a_head_that_the_run_does_not_name(tmp_path: Path) -> None:
    path = RunFolder.open(tmp_path, info(), resume=False).save(state(), trainer())
    save_file({"stranger/in": torch.zeros(1)}, path / "tokens.safetensors")
    (path / "digests.json").write_text('{"files": {}}')
    with pytest.raises(CheckpointError, match=r"holds tokens of stranger, which run.json does not name"):
        load_run_state(path, installed=HEADS)
