from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_run import recipe, region_rows, write_rows

from tpo_core import load_run
from tpo_core.errors import CheckpointError, ConfigError, DataError, HeadNotFound, TrainError
from tpo_core.jobs.assembly import restore_state
from tpo_core.jobs.listen import JobListener
from tpo_core.jobs.recipes import read_recipe
from tpo_core.jobs.train import TrainJob
from tpo_core.plugins import Plugins, load_plugins
from tpo_core.runs import load_run_state


def train(mapping, *, resume=False, listener=None, test=True):
    plugins = load_plugins()
    loaded = read_recipe(mapping, plugins, heads=None, overrides=())
    return TrainJob(loaded, plugins, resume=resume, test=test, listener=listener or JobListener(), cpu=True).run()


class Stop(BaseException):
    """Not an Exception: what observers raise is logged and does not steer."""


class StopAfter(JobListener):
    """Pulls the plug after so many optimiser steps."""

    def __init__(self, step: int) -> None:
        self.step = step

    def step_ends(self, report):
        if report.global_step == self.step:
            raise Stop


def weights(path: Path) -> dict[str, torch.Tensor]:
    run = load_run(path, device="cpu")
    return {name: value.clone() for name, value in run.assembly.model.state_dict().items()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, backbones):
    folder = tmp_path_factory.mktemp("finished")
    mapping = recipe(folder, backbones["qwen3_vl"])
    return mapping, train(mapping), Path(mapping["output"])


def test_a_run_leaves_figures_predictions_and_a_picture(finished):
    _, summary, output = finished
    assert json.loads((output / "summary.json").read_text()) == summary
    assert set(summary["heads"]["region"]) == set(summary["chance"]["region"])
    assert set(summary["conversation"]) == set(summary["blind"]) == {"held"}
    assert summary["assignment"]["sources"] == {"held": summary["assignment"]["right"]}
    assert summary["steps"] == 7
    assert summary["seconds"] > 0
    assert summary["peak_rss_bytes"] > 2**20
    rows = [json.loads(line) for line in (output / "predictions.jsonl").read_text().splitlines()]
    assert len(rows) == 6
    assert (output / "picture.png").is_file()
    metrics = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in metrics] == list(range(1, 8))
    assert all(row["loss"] > 0 for row in metrics)
    names = {path.name for path in output.iterdir()}
    assert {"run.json", "adapter", "tokens.safetensors", "heads", "trainer", "metrics.jsonl", "summary.json"} <= names
    assert not list(output.rglob("*.bin"))
    assert not list(output.rglob("*.pt"))


def test_a_finished_run_is_only_reported(finished):
    mapping, summary, _ = finished
    assert train(mapping, resume=True) == summary


def test_a_folder_that_holds_a_run_is_not_overwritten(finished):
    mapping, _, output = finished
    before = weights(output)
    with pytest.raises(CheckpointError, match=r"holds a run already"):
        train(mapping)
    after = weights(output)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_run_cut_off_goes_on_as_if_nothing_had_happened(finished, tmp_path, backbones):
    """Stopped in the middle of stage two, resumed from the last checkpoint: the same weights, bit for bit (LoRA dropout included)."""
    _, _, whole = finished
    mapping = recipe(tmp_path, backbones["qwen3_vl"])
    with pytest.raises(Stop):
        train(mapping, listener=StopAfter(6), test=False)
    train(mapping, resume=True, test=False)
    expected, found = weights(whole), weights(Path(mapping["output"]))
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 8))


def test_loading_gives_the_trained_model_back(finished, backbones):
    from tpo_core import build_model, load_backbone

    _, _, output = finished
    run = load_run(output, device="cpu")
    assert run.heads == ("region",)
    assert run.missing == {}
    fresh = build_model(load_backbone(backbones["qwen3_vl"]), [load_plugins().load_head("region")])
    trained = run.assembly.model.slot("region").head.state_dict()
    assert any(not torch.equal(trained[k], v) for k, v in fresh.model.slot("region").head.state_dict().items())
    lora = [p for n, p in run.assembly.model.backbone.groups()["lora"].items() if "lora_B" in n]
    assert max(float(p.abs().max()) for p in lora) > 0


def test_a_run_predicts_and_draws(finished, tmp_path):
    mapping, _, output = finished
    run = load_run(output, device="cpu")
    picture = Path(mapping["data"]["train"][0]["path"]).parent / "red.png"
    answer = run.predict(image=picture, prompt="where is it 1?")
    assert answer.to_json()["text"] == answer.text
    record = run.question("where is it 1?", image=picture)
    canvas = run.draw(record, answer)[0]
    canvas.picture(title="x").save(tmp_path / "x.png")
    boxed = run.predict(image=picture, prompt="this one", box=[1, 1, 20, 20])
    assert isinstance(boxed.ids, tuple)


class Without(Plugins):
    """What is installed, but for some heads: as after `pip uninstall`."""

    def __init__(self, plugins: Plugins, absent: str) -> None:
        self.__dict__ |= plugins.__dict__
        self._absent = absent

    def heads(self):
        return {name: card for name, card in super().heads().items() if name != self._absent}


def test_a_run_loads_without_one_heads_package(tmp_path, backbones):
    mapping = recipe(
        tmp_path, backbones["qwen3_vl"], heads={"region": {}, "temporal": {"hidden": 16, "attention_heads": 2, "inner_width": 16}}
    )
    train(mapping, test=False)
    whole = load_run(mapping["output"], device="cpu")
    part = load_run(mapping["output"], device="cpu", plugins=Without(load_plugins(), "temporal"))
    assert part.heads == ("region",)
    assert "tpo" in part.missing["temporal"]
    kept = part.assembly.model.state_dict()
    full = whole.assembly.model.state_dict()
    assert not any("temporal" in name for name in kept)
    for name, value in kept.items():
        assert torch.equal(value, full[name]), name


def test_a_checkpoint_of_another_backbone_is_refused(finished, backbones):
    _, _, output = finished
    with pytest.raises(CheckpointError, match=r"was trained on .*qwen3_vl.*this is .*qwen2_5_vl"):
        load_run(output, model=str(backbones["qwen2_5_vl"]))


def test_bad_rows_are_set_aside_and_the_run_goes_on(tmp_path, backbones):
    rows = region_rows()
    rows[1]["targets"][0]["boxes"] = [[10, 10, 500, 30]]
    rows[3]["messages"][0]["content"][0]["path"] = "missing.png"
    mapping = recipe(tmp_path, backbones["qwen3_vl"], rows=rows)
    summary = train(mapping, test=False)
    report = [json.loads(line) for line in (tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()]
    assert {row["where"].rpartition(":")[2] for row in report} == {"2", "4"}
    assert summary["bad_rows"] == 2
    assert any("lies outside" in row["reason"] for row in report)
    assert any("missing.png" in row["reason"] for row in report)


def test_too_many_bad_rows_stop_the_run(tmp_path, backbones):
    rows = region_rows()
    for row in rows[4:]:
        row["messages"][0]["content"][0]["path"] = "missing.png"
    mapping = recipe(tmp_path, backbones["qwen3_vl"], rows=rows)
    mapping["data"]["max_bad"] = 3
    with pytest.raises(TrainError, match="more than the cap of 3"):
        train(mapping, test=False)


def test_data_without_a_usable_row_says_why(tmp_path, backbones):
    rows = region_rows(3)
    for row in rows:
        row["messages"][0]["content"][0]["path"] = "missing.png"
    with pytest.raises(DataError, match=r"train.jsonl:3: .*missing.png"):
        train(recipe(tmp_path, backbones["qwen3_vl"], rows=rows), test=False)


def test_policy_raise_stops_at_the_first_bad_row(tmp_path, backbones):
    rows = region_rows(6)
    rows[0]["targets"][0]["boxes"] = [[30, 10, 20, 30]]
    mapping = recipe(tmp_path, backbones["qwen3_vl"], rows=rows)
    mapping["data"]["policy"] = "raise"
    with pytest.raises(DataError, match=r"train.jsonl:1: .*empty or reversed"):
        train(mapping, test=False)


def test_wrong_recipes_are_one_sentence(tmp_path, backbones):
    mapping = recipe(tmp_path, backbones["qwen3_vl"])
    with pytest.raises(HeadNotFound, match="regoin"):
        train({**mapping, "heads": {"regoin": {}}})
    wrong = json.loads(json.dumps(mapping))
    wrong["stages"][0]["batchsize"] = 4
    with pytest.raises(ConfigError, match="batch_size"):
        train(wrong)
    (tmp_path / "empty.jsonl").write_text("")
    empty = json.loads(json.dumps(mapping))
    empty["data"]["train"][0]["path"] = str(tmp_path / "empty.jsonl")
    with pytest.raises(DataError, match=r"empty\.jsonl"):
        train(empty)


def test_stages_begin_from_a_folder(finished, tmp_path, backbones):
    _, _, output = finished
    mapping = recipe(tmp_path, backbones["qwen3_vl"])
    stage = {**mapping["stages"][0], "from": str(output), "steps": 1, "train": {"heads": 1e-30}}
    train({**mapping, "stages": [stage]}, test=False)
    expected, found = weights(output), weights(Path(mapping["output"]))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=name)


def test_a_head_is_added_to_a_finished_run(finished, tmp_path, backbones):
    """A stage may begin from a run that never had one of its heads: that one starts anew, with another's tokens where it is told to."""
    _, _, output = finished
    told: list[str] = []

    class Hear(JobListener):
        def say(self, text):
            told.append(text)

    mapping = recipe(tmp_path, backbones["qwen3_vl"])
    mapping["heads"]["temporal"] = {"kind": "mlp", "hidden": 8, "init_from": "region"}
    stage = {**mapping["stages"][0], "from": str(output), "steps": 1, "train": {"heads": 1e-30}}
    train({**mapping, "stages": [stage]}, test=False, listener=Hear())
    assert any("has no head 'temporal'" in text for text in told)
    found, before = weights(Path(mapping["output"])), weights(output)
    torch.testing.assert_close(found["tokens.inputs.temporal"], before["tokens.inputs.region"])
    torch.testing.assert_close(found["tokens.outputs.region"], before["tokens.outputs.region"])
    with pytest.raises(CheckpointError, match="nothing was saved for it"):
        restore_state(
            load_run(Path(mapping["output"]), device="cpu").assembly, load_run_state(output, installed=["region", "temporal"]).state
        )


def test_a_stage_weighs_losses_in_its_own_way(tmp_path, backbones):
    mapping = recipe(tmp_path, backbones["qwen3_vl"])
    mapping["stages"][0] |= {"weights": {"region": 0.25}, "assign": 3.0}
    train(mapping, test=False)
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        assert row["assign"] > 0.1
        words = row["lm"] + row["assign"] * (3 if row["stage"] == "first" else 1)
        boxes = 5 * row["region/l1"] + 2 * row["region/giou"]
        assert boxes > 0.1
        assert row["loss"] == pytest.approx(words + boxes * (0.25 if row["stage"] == "first" else 1), rel=1e-4)


def test_what_no_path_reaches_is_frozen_and_told(tmp_path, backbones):
    told = []

    class Tell(JobListener):
        def frozen(self, stage, names):
            told.append((stage, list(names)))

    mapping = recipe(tmp_path, backbones["llava_onevision"])
    mapping["stages"] = [{**mapping["stages"][0], "steps": 1, "train": {"vision": 1e-4, "connector": 1e-4, "tokens": 1e-3, "heads": 1e-3}}]
    train(mapping, test=False, listener=Tell())
    stage, names = told[0]
    assert stage == "first"
    assert names
    assert all("vision" in name or "newline" in name for name in names)
    saved = set(json.loads((tmp_path / "run" / "run.json").read_text())["heads"])
    assert saved == {"region"}
    assert (tmp_path / "run" / "backbone.safetensors").is_file()


def test_native_rows_of_another_folder_need_permission(tmp_path, backbones):
    rows = region_rows(3)
    data = write_rows(tmp_path / "elsewhere" / "train.jsonl", rows)
    rows = json.loads(json.dumps(rows).replace("red.png", "../elsewhere/red.png").replace("blue.png", "../elsewhere/blue.png"))
    mapping = recipe(tmp_path, backbones["qwen3_vl"], rows=rows)
    mapping["data"]["policy"] = "raise"
    with pytest.raises(DataError, match="outside"):
        train(mapping, test=False)
    assert data.exists()


class Heard(JobListener):
    """Keeps what was said."""

    def __init__(self) -> None:
        self.words: list[str] = []

    def say(self, text: str) -> None:
        self.words.append(text)


def test_pulls_are_measured_where_tasks_share_weights_that_train_and_the_rest_is_told(tmp_path, backbones):
    mapping = recipe(tmp_path, backbones["qwen3_vl"])
    mapping["loss"] = {"measure_every": 1}
    mapping["stages"] = [{**stage, "steps": 1} for stage in mapping["stages"][:2]]
    mapping["stages"][1]["train"] = {"heads": 1e-3}
    heard = Heard()
    train(mapping, listener=heard, test=False)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [any(name.startswith("pull/") for name in row) for row in rows] == [True, False]
    assert sum("not measured here" in words for words in heard.words) == 1


def test_a_head_of_weight_0_is_not_run(tmp_path, backbones, monkeypatch):
    from tpo_heads.region.head import RegionHead

    mapping = recipe(tmp_path, backbones["qwen3_vl"])
    mapping["stages"] = [{**mapping["stages"][0], "steps": 1, "weights": {"region": 0.0}}]
    seen: list[int] = []
    monkeypatch.setattr(RegionHead, "loss", lambda self, output, targets: seen.append(1) or {})
    train(mapping, test=False)
    (row,) = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert row["region/l1"] == 0
    assert not seen
