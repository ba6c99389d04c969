"""Figures after every stage: what a later stage cost can be read off the summary."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_run import recipe

from tpo_core.jobs import train
from tpo_core.jobs.assembly import capture_state
from tpo_core.jobs.listen import JobListener
from tpo_core.jobs.recipes import read_recipe
from tpo_core.jobs.train import TrainJob
from tpo_core.plugins import load_plugins
from tpo_core.predict import Predictor


class Stop(BaseException):
    """Not an Exception: what observers raise is logged and does not steer."""


class StopWhenStageBegins(JobListener):
    def __init__(self, name: str) -> None:
        self.name = name

    def stage_begins(self, plan):
        if plan.name == self.name:
            raise Stop


def job(mapping, **options) -> TrainJob:
    plugins = load_plugins()
    return TrainJob(read_recipe(mapping, plugins, heads=None, overrides=()), plugins, cpu=True, **options)


@pytest.fixture(scope="module")
def measured(tmp_path_factory, backbones):
    folder = tmp_path_factory.mktemp("measured")
    mapping = recipe(folder, backbones["qwen3_vl"], trainer={"checkpoint_every": 2, "eval_after_stage": True, "report": False})
    return mapping, job(mapping).run()


def test_the_summary_holds_figures_after_every_stage(measured):
    _, summary = measured
    assert list(summary["stages"]) == ["first", "second"]
    for figures in summary["stages"].values():
        assert set(figures) == {"heads", "conversation", "assignment"}
        assert set(figures["heads"]["region"]) == set(summary["heads"]["region"])
    assert summary["stages"]["second"] == {key: summary[key] for key in ("heads", "conversation", "assignment")}


def test_figures_after_a_stage_are_those_of_a_run_that_ends_there(measured, tmp_path, backbones):
    _, summary = measured
    mapping = recipe(tmp_path, backbones["qwen3_vl"], trainer={"checkpoint_every": 2, "report": False})
    mapping["stages"] = mapping["stages"][:1]
    alone = job(mapping).run()
    assert "stages" not in alone
    assert summary["stages"]["first"] == {key: alone[key] for key in ("heads", "conversation", "assignment")}


def test_figures_survive_a_run_that_was_cut_off(measured, tmp_path, backbones):
    """Cut off behind a stage's end: what was measured is kept, what was not yet is measured from the checkpoint."""
    _, summary = measured
    mapping = recipe(tmp_path, backbones["qwen3_vl"], trainer={"checkpoint_every": 2, "eval_after_stage": True, "report": False})
    with pytest.raises(Stop):
        job(mapping, listener=StopWhenStageBegins("second")).run()
    path = Path(mapping["output"]) / "stages" / "first.json"
    kept = json.loads(path.read_text())
    assert kept == summary["stages"]["first"]
    path.unlink()
    resumed = job(mapping, resume=True).run()
    assert resumed["stages"] == summary["stages"]


def test_weights_in_shards_are_put_together_before_they_answer(measured, tmp_path, backbones, monkeypatch):
    """Processes share the questions and generate each in their own time, so a model in shards must be built anew."""
    _, summary = measured
    asked = []

    class Noting(Predictor):
        def __init__(self, assembly):
            super().__init__(assembly)
            asked.append(id(assembly))

    built = []
    monkeypatch.setattr(train, "is_sharded", lambda parameter: True)
    monkeypatch.setattr(train, "capture_state", lambda assembly, trained: built.append(id(assembly)) or capture_state(assembly, trained))
    mapping = recipe(tmp_path, backbones["qwen3_vl"], trainer={"checkpoint_every": 2, "eval_after_stage": True, "report": False})
    whole = job(mapping, answerer=Noting).run()
    assert {key: whole[key] for key in ("heads", "stages")} == {key: summary[key] for key in ("heads", "stages")}
    assert len(asked) == 2
    assert not set(asked) & set(built)


def test_training_is_not_touched_by_it(measured, tmp_path, backbones):
    mapping, _ = measured
    plain = recipe(tmp_path, backbones["qwen3_vl"], trainer={"checkpoint_every": 2, "report": False})
    job(plain, test=False).run()

    def losses(output):
        return [json.loads(line)["loss"] for line in (Path(output) / "metrics.jsonl").read_text().splitlines()]

    assert losses(mapping["output"]) == losses(plain["output"])


def test_a_run_without_an_adapter_is_loaded(tmp_path, backbones):
    """No stage trains one, or the recipe says that there is none: either way the checkpoint has none."""
    from tpo_core import load_run

    for name, lora in (("none", None), ("unused", {"r": 4, "alpha": 8.0})):
        mapping = recipe(tmp_path / name, backbones["qwen3_vl"], lora=lora, trainer={"report": False})
        mapping["stages"] = [{**mapping["stages"][0], "steps": 1, "train": {"heads": 1e-3}}]
        job(mapping, test=False).run()
        assert load_run(mapping["output"], device="cpu").assembly.model.backbone.groups()["lora"] == {}
