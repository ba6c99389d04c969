"""Keeping what a frozen language model gives: the same numbers, without the passes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_run import recipe, region_rows, write_rows

from tpo_core.errors import CheckpointError, ConfigError
from tpo_core.jobs.dry_run import DryRun
from tpo_core.jobs.listen import JobListener
from tpo_core.jobs.recipes import read_recipe
from tpo_core.jobs.train import TrainJob
from tpo_core.media.medium import Medium
from tpo_core.model import TPOModel
from tpo_core.plugins import load_plugins

FAMILIES = ("qwen3_vl", "llava_onevision", "idefics3")


def heads_alone(folder: Path, backbone: Path, *, steps: int = 7, **stage: object) -> dict:
    """A stage over two epochs and a half in which the region head alone trains."""
    mapping = recipe(folder, backbone, lora=None, trainer={"report": False})
    mapping["stages"] = [{**mapping["stages"][0], "steps": steps, "train": {"heads": 1e-2}, **stage}]
    return mapping


def run(mapping: dict, **options: object) -> list[dict[str, float]]:
    plugins = load_plugins()
    TrainJob(read_recipe(mapping, plugins, heads=None, overrides=()), plugins, cpu=True, test=False, **options).run()
    return [json.loads(line) for line in (Path(mapping["output"]) / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def passes(monkeypatch):
    """How many samples pass through the language model."""
    seen: list[int] = []
    plain = TPOModel._language

    def counted(self, batch, vision):
        seen.append(len(batch))
        return plain(self, batch, vision)

    monkeypatch.setattr(TPOModel, "_language", counted)
    return seen


@pytest.fixture
def decoded(monkeypatch):
    """How many frames are read of media."""
    seen: list[int] = []
    plain = Medium.frames

    def counted(self, indices):
        seen.append(len(indices))
        return plain(self, indices)

    monkeypatch.setattr(Medium, "frames", counted)
    return seen


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("workers", [0, 2])
def test_kept_states_change_no_number(family, workers, backbones, tmp_path):
    plain = heads_alone(tmp_path / "plain", backbones[family])
    kept = heads_alone(tmp_path / "kept", backbones[family], keep_states=64.0)
    kept["data"]["workers"] = workers
    for expected, found in zip(run(plain), run(kept), strict=True):
        for key in ("loss", "lm", "assign", "region/l1", "grad_norm"):
            assert found[key] == pytest.approx(expected[key], rel=2e-4, abs=1e-6), (expected["step"], key)


def test_a_sample_passes_the_language_model_once_and_is_decoded_once(backbones, tmp_path, passes, decoded):
    kept = heads_alone(tmp_path, backbones["qwen3_vl"], steps=9, keep_states=64.0)
    run(kept)
    # Four samples of the dry step, then each of the twelve once: 36 draws are three epochs.
    assert sum(passes) == 4 + 12
    assert sum(decoded) == 4 + 12


def test_without_room_everything_is_computed_again(backbones, tmp_path, passes):
    run(heads_alone(tmp_path, backbones["qwen3_vl"], steps=9, keep_states=0.001))
    assert sum(passes) == 4 + 36


def test_a_batch_may_hold_both_kinds(backbones, tmp_path, passes):
    """Twelve samples in batches of five: the third batch holds the last two fresh ones and three of the next epoch."""
    plain = heads_alone(tmp_path / "plain", backbones["qwen3_vl"], batch_size=5)
    expected = run(plain)
    passes.clear()
    found = run(heads_alone(tmp_path / "kept", backbones["qwen3_vl"], batch_size=5, keep_states=64.0))
    assert [row["loss"] for row in found] == pytest.approx([row["loss"] for row in expected], rel=2e-4)
    assert sum(passes) == 4 + 12
    assert any(0 < size < 5 for size in passes[1:])


def test_the_folder_of_states_goes_with_the_stage(backbones, tmp_path):
    class Watch(JobListener):
        seen = 0

        def step_ends(self, report):
            self.seen = max(self.seen, len(list((tmp_path / "run" / "states" / "first").glob("toy-*.safetensors"))))

    watch = Watch()
    run(heads_alone(tmp_path, backbones["qwen3_vl"], keep_states=64.0), listener=watch)
    assert watch.seen == 12
    assert not (tmp_path / "run" / "states").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": {"heads": 1e-3, "tokens": 1e-3}}, "but tokens.region trains; train heads alone"),
        ({"train": {"heads": 1e-3, "lora": 1e-3}}, "but lora trains"),
    ],
)
def test_a_stage_that_trains_more_than_heads_is_refused(change, message, backbones, tmp_path):
    mapping = heads_alone(tmp_path, backbones["qwen3_vl"], keep_states=1.0)
    mapping |= {"lora": {"r": 4, "alpha": 8.0}}
    mapping["stages"] = [{**mapping["stages"][0], **change}]
    with pytest.raises(ConfigError, match=message):
        run(mapping)
    plugins = load_plugins()
    found = DryRun(read_recipe(mapping, plugins, heads=None, overrides=()), plugins).run()
    assert any(message in problem for problem in found["problems"])


def test_dropout_before_the_heads_is_refused(backbones, tmp_path):
    mapping = heads_alone(tmp_path, backbones["qwen3_vl"], keep_states=1.0)
    mapping |= {"lora": {"r": 4, "alpha": 8.0, "dropout": 0.1}}
    mapping["stages"] = [
        {**mapping["stages"][0], "name": "begin", "steps": 1, "train": {"lora": 1e-3}, "keep_states": None},
        *mapping["stages"],
    ]
    with pytest.raises(ConfigError, match=r"drops out at random; set lora\.dropout to 0"):
        run(mapping)


@pytest.mark.parametrize(
    ("last", "message"),
    [
        ({"train": {"heads": 1e-3, "lora": 1e-3}}, "keep_states keeps what comes before the heads, but lora trains"),
        ({"muon": {"lora": 1e-3}}, "muon names the group 'lora', which does not train"),
    ],
)
def test_a_mistake_in_the_last_stage_is_told_before_the_first_one_trains(last, message, backbones, tmp_path):
    mapping = heads_alone(tmp_path, backbones["qwen3_vl"], keep_states=1.0)
    mapping |= {"lora": {"r": 4, "alpha": 8.0}}
    only = mapping["stages"][0]
    mapping["stages"] = [{**only, "name": "begin", "keep_states": None}, {**only, **last}]
    with pytest.raises(ConfigError, match=message):
        run(mapping)
    assert not list(tmp_path.rglob("metrics.jsonl"))
    assert not list(tmp_path.rglob("checkpoint-*"))


def test_a_spatial_prompt_is_learnt_from_each_time(backbones, tmp_path, passes):
    """What embeds it is part of the head, and trains: such samples are not kept, and the prompt module gets its gradient."""
    rows = region_rows()
    for row in rows[:2]:
        box = {
            "id": "p",
            "role": "prompt",
            "kind": "box",
            "for": "t0",
            "media": 0,
            "size": row["targets"][0]["size"],
            "boxes": [[1, 1, 9, 9]],
        }
        row["targets"].insert(0, box)
        row["messages"][0]["content"].insert(1, {"type": "target", "id": "p"})
    losses = {}
    for name, keep in (("plain", None), ("kept", 64.0)):
        mapping = heads_alone(tmp_path / name, backbones["qwen3_vl"], steps=9, keep_states=keep)
        write_rows(Path(mapping["data"]["train"][0]["path"]), rows)
        passes.clear()
        losses[name] = [row["loss"] for row in run(mapping)]
    assert losses["kept"] == pytest.approx(losses["plain"], rel=2e-4)
    assert sum(passes) == 4 + 10 + 3 * 2


def test_a_broken_file_is_named(backbones, tmp_path):
    from tpo_core.prepare.kept import StateFolder

    folder = StateFolder(tmp_path, 1.0)
    (tmp_path / "toy-0.safetensors").write_bytes(b"half")
    with pytest.raises(CheckpointError, match=r"toy-0.safetensors: broken states"):
        folder.get("toy-0")
