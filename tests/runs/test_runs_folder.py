"""A run's folder: what is saved comes back, heads without a package are left out, other runs and other backbones are refused."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from toys_runs import BACKBONE, CONFIG, HEADS, assert_same_state, info, same, state, trainer

from tpo_core.errors import CheckpointError
from tpo_core.runs import (
    MetricsLog,
    RunFolder,
    RunState,
    check_backbone,
    find_checkpoint,
    load_run_state,
    package_versions,
    whole_state,
    without_heads,
)
from tpo_core.runs.content import join_names, split_names


def test_everything_comes_back(tmp_path: Path) -> None:
    folder = RunFolder.open(tmp_path / "run", info(), resume=False)
    path = folder.save(state(), trainer())
    assert path.name == "checkpoint-105"
    assert sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()) == [
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        "backbone.safetensors",
        "digests.json",
        "heads/mask.safetensors",
        "heads/region.safetensors",
        "heads/track.safetensors",
        "run.json",
        "tokens.safetensors",
        "trainer/optimizer.safetensors",
        "trainer/rng.safetensors",
        "trainer/trainer.json",
    ]
    loaded = load_run_state(tmp_path / "run", installed=HEADS, backbone=BACKBONE, trainer=True)
    assert_same_state(loaded.state, state())
    assert loaded.info == info(created=loaded.info.created, stage=trainer().mark)
    assert loaded.trainer is not None
    assert loaded.trainer.mark == trainer().mark
    assert loaded.trainer.balance == {"lm": 0.5}
    assert all(same(a, b) for a, b in zip(loaded.trainer.rng, trainer().rng, strict=True))
    assert same(loaded.trainer.optimizer["lora/a.weight"], trainer().optimizer["lora/a.weight"])
    assert (loaded.absent, loaded.notes) == ({}, ())


def test_a_run_without_adapter_or_trained_backbone(tmp_path: Path) -> None:
    folder = RunFolder.open(tmp_path, info(), resume=False)
    plain = RunState(tokens=state().tokens, heads=state().heads)
    path = folder.save(plain, trainer())
    assert not (path / "adapter").exists()
    assert not (path / "backbone.safetensors").exists()
    assert_same_state(load_run_state(path, installed=HEADS).state, plain)


def test_a_head_whose_package_is_gone_is_left_out_and_the_others_do_not_change(tmp_path: Path) -> None:
    RunFolder.open(tmp_path, info(), resume=False).save(state(), trainer())
    loaded = load_run_state(tmp_path, installed=("region", "mask"))
    assert loaded.notes == (
        "head 'track' of this run is left out: it came with tpo-head-track 1.2, which is not installed; pip install tpo-head-track==1.2",
    )
    assert set(loaded.absent) == {"track"}
    full = state()
    assert same(loaded.state.heads["region"], full.heads["region"])
    assert set(loaded.state.heads) == set(loaded.state.tokens) == {"region", "mask"}
    assert same(loaded.state.adapter, full.adapter)
    config = loaded.config()
    assert set(config["heads"]) == {"region", "mask"}
    assert config["heads"]["mask"]["init_from"] is None
    assert config["stages"] == [{"name": "joint", "steps": 10, "heads": ["region"], "train": {"lora": 1.0}}]
    assert loaded.info.config == CONFIG


def test_nothing_changes_where_no_head_is_gone() -> None:
    assert without_heads(CONFIG, ()) == CONFIG


def test_a_stages_weight_of_a_head_goes_with_the_head() -> None:
    stage = {**CONFIG["stages"][0], "weights": {"track": 0.1, "mask": 0.5}}
    left = without_heads({**CONFIG, "stages": [stage]}, ["track"])["stages"][0]
    assert left["weights"] == {"mask": 0.5}
    assert stage["weights"] == {"track": 0.1, "mask": 0.5}


def test_a_stages_rate_of_muon_goes_with_the_head() -> None:
    stage = {**CONFIG["stages"][0], "muon": {"heads.track": 0.1, "lora": 0.5}}
    assert without_heads({**CONFIG, "stages": [stage]}, ["track"])["stages"][0]["muon"] == {"lora": 0.5}


def test_a_stage_that_trained_such_a_head_alone_goes_with_it() -> None:
    alone = {**CONFIG["stages"][0], "name": "alone", "train": {"heads.track": 1.0}, "muon": {"heads.track": 0.5}}
    stages = [*CONFIG["stages"], alone]
    assert [stage["name"] for stage in without_heads({**CONFIG, "stages": stages}, ["track"])["stages"]] == ["joint"]
    alone["train"] = {"lora": None, "heads.track": 1.0}
    assert len(without_heads({**CONFIG, "stages": stages}, ["track"])["stages"]) == 1, "null is frozen"
    alone["train"] = {"heads.track": 1.0}
    assert without_heads({**CONFIG, "stages": stages}, ["mask"])["stages"][1]["train"] == {"heads.track": 1.0}


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    folder = RunFolder.open(tmp_path, info(), resume=False, keep=2)
    for step in (1, 2, 3, 9, 10):
        folder.save(state(step), trainer(step))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-109", "checkpoint-110", "run.json"]


def test_a_finished_run_lies_at_the_top(tmp_path: Path) -> None:
    folder = RunFolder.open(tmp_path, info(), resume=False)
    for step in (9, 10):
        folder.save(state(step), trainer(step))
    folder.finish({"heads": {"region": {"miou": 0.5}}})
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        "adapter",
        "backbone.safetensors",
        "checkpoint-109",
        "digests.json",
        "heads",
        "run.json",
        "summary.json",
        "tokens.safetensors",
        "trainer",
    }
    assert json.loads((tmp_path / "summary.json").read_text()) == {"heads": {"region": {"miou": 0.5}}}
    loaded = load_run_state(tmp_path, installed=HEADS, trainer=True)
    assert loaded.path == tmp_path
    assert_same_state(loaded.state, state(10))
    assert loaded.info.stage.finished
    again = RunFolder.open(tmp_path, info(), resume=True)
    newest = again.latest(installed=HEADS)
    assert newest is not None
    assert newest.info.stage.global_step == 110


def test_the_trainers_state_may_be_deleted_before_sharing(tmp_path: Path) -> None:
    folder = RunFolder.open(tmp_path, info(), resume=False)
    path = folder.save(state(), trainer())
    for file in (path / "trainer").iterdir():
        file.unlink()
    assert_same_state(load_run_state(path, installed=HEADS).state, state())
    with pytest.raises(CheckpointError, match=r"no complete checkpoint; skipped .*: trainer/optimizer.safetensors is missing"):
        load_run_state(path, installed=HEADS, trainer=True)


def test_an_output_folder_that_holds_another_run(tmp_path: Path) -> None:
    RunFolder.open(tmp_path, info(), resume=False)
    with pytest.raises(
        CheckpointError, match=r"holds a run already \(without a checkpoint yet\); add --resume .* or choose another --output"
    ):
        RunFolder.open(tmp_path, info(), resume=False)
    folder = RunFolder.open(tmp_path, info(), resume=True)
    assert folder.latest(installed=HEADS) is None
    folder.save(state(), trainer())
    with pytest.raises(CheckpointError, match=r"holds a run already \(with checkpoint-105\)"):
        RunFolder.open(tmp_path, info(), resume=False)
    folder.finish({})
    with pytest.raises(CheckpointError, match=r"holds a run already \(ended at step 105\)"):
        RunFolder.open(tmp_path, info(), resume=False)


def test_a_folder_with_other_files_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "playground").mkdir()
    RunFolder.open(tmp_path, info(), resume=False)
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match=r"file: cannot be made a folder \(File exists\); choose another --output"):
        RunFolder.open(tmp_path / "file", info(), resume=False)


def changed(**parts: Any) -> dict[str, Any]:
    return {**CONFIG, **parts}


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"config": changed(seed=1)}, r"is a run of another recipe: seed was 0, is 1; --resume needs the same one"),
        (
            {"config": changed(stages=[{**CONFIG["stages"][0], "steps": 20, "name": "x"}])},
            r"stages.0.name was 'joint', is 'x' \(and 1 more\)",
        ),
        ({"config": changed(heads={"region": {"weight": 1.0}})}, r"heads.track was \{'init_from': None\}, is None"),
        ({"data": {"a": "9999"}}, "the records of source 'a' changed since the run began"),
        (
            {"backbone": BACKBONE.model_copy(update={"path": "other/model", "hidden": 128})},
            r"is a run on some/model \(llava_onevision, width 64, .*\), this is other/model \(llava_onevision, width 128, ",
        ),
    ],
)
def test_resuming_with_something_else(tmp_path: Path, other: dict[str, Any], message: str) -> None:
    RunFolder.open(tmp_path, info(), resume=False)
    with pytest.raises(CheckpointError, match=message):
        RunFolder.open(tmp_path, info(**other), resume=True)


def test_machinery_may_change_on_resume_and_versions_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = RunFolder.open(tmp_path, info(), resume=False)
    config = changed(output="elsewhere", trainer={"keep": 9}, data={**CONFIG["data"], "workers": 0})
    moved = BACKBONE.model_copy(update={"path": "moved/model"})
    with caplog.at_level(logging.WARNING):
        again = RunFolder.open(tmp_path, info(config=config, versions={"tpo": "0.2"}, backbone=moved), resume=True)
    assert again.info == first.info
    assert "resuming with tpo 0.2; the run began with 0.1" in caplog.text


def test_a_checkpoint_of_another_backbone(tmp_path: Path) -> None:
    RunFolder.open(tmp_path, info(), resume=False).save(state(), trainer())
    found = find_checkpoint(tmp_path)
    assert found is not None
    check_backbone(found, BACKBONE.model_copy(update={"path": "moved"}))
    other = BACKBONE.model_copy(update={"model_type": "qwen3_vl", "path": "Qwen/Qwen3-VL"})
    with pytest.raises(CheckpointError) as caught:
        load_run_state(tmp_path, installed=HEADS, backbone=other)
    text = str(caught.value)
    assert "was trained on some/model (llava_onevision, width 64, vocabulary 1000, config abcdef01)" in text
    assert "this is Qwen/Qwen3-VL (qwen3_vl, width 64, vocabulary 1000, config abcdef01); use the model it was trained on" in text


def test_peft_reads_the_adapter(tmp_path: Path) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict

    class Tiny(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q_proj = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.q_proj(x)

    torch.manual_seed(0)
    base = Tiny()
    weights = {name: value.clone() for name, value in base.state_dict().items()}
    model = get_peft_model(base, LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj"], init_lora_weights=False))
    config = {key: sorted(value) if isinstance(value, set) else value for key, value in model.peft_config["default"].to_dict().items()}
    saved = RunState(
        adapter=whole_state(get_peft_model_state_dict(model)), adapter_config=config, tokens=state().tokens, heads=state().heads
    )
    path = RunFolder.open(tmp_path, info(), resume=False).save(saved, trainer())
    again = Tiny()
    again.load_state_dict(weights)
    loaded = PeftModel.from_pretrained(again, str(path / "adapter"))
    x = torch.randn(3, 4)
    assert torch.equal(loaded(x), model(x))
    assert not torch.equal(loaded(x), nn.functional.linear(x, weights["q_proj.weight"], weights["q_proj.bias"]))


def test_metrics_are_cut_where_a_run_goes_on(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    assert log.rows() == []
    log.cut(3)
    for step in range(1, 6):
        log.append({"step": step, "loss": float("nan") if step == 2 else step / 2})
    with log.path.open("a") as file:
        file.write('{"step": 6, "lo')
    assert [row["step"] for row in log.rows()] == [1, 2, 3, 4, 5]
    log.cut(3)
    log.append({"step": 4, "loss": 0.0})
    assert log.path.read_text().splitlines() == [
        '{"step": 1, "loss": 0.5}',
        '{"step": 2, "loss": null}',
        '{"step": 3, "loss": 1.5}',
        '{"step": 4, "loss": 0.0}',
    ]


def test_versions_name_what_counts() -> None:
    versions = package_versions()
    assert versions["torch"] == torch.__version__.partition("+")[0] or versions["torch"] == torch.__version__
    assert {"transformers", "peft", "accelerate", "safetensors"} <= set(versions)


names = st.text("abc._", min_size=1, max_size=6)


@settings(deadline=None)
@given(st.dictionaries(names, st.dictionaries(names, st.integers(0, 9), min_size=1, max_size=3), max_size=4))
def test_names_join_and_split(groups: dict[str, dict[str, int]]) -> None:
    tensors = {owner: {name: torch.tensor(value) for name, value in held.items()} for owner, held in groups.items()}
    back = split_names(join_names(tensors))
    assert {owner: {n: int(v) for n, v in held.items()} for owner, held in back.items()} == groups
    slashed = {f"lora/{owner}": held for owner, held in tensors.items()}
    last = split_names(join_names(slashed), last=True)
    assert {owner: {n: int(v) for n, v in held.items()} for owner, held in last.items()} == {f"lora/{o}": h for o, h in groups.items()}
