from __future__ import annotations

import json

import pytest

from tpo_core.errors import CheckpointError, ConfigError
from tpo_core.jobs.recipes import default_recipe, own_data_recipe, packaged_recipe, read_recipe, split_options
from tpo_core.plugins import load_plugins

SMALL = {"samples": "10", "base": "scratch", "scale": "0.01"}


def test_a_preview_writes_nothing(tmp_path):
    mapping = default_recipe(["region"], tmp_path / "run", SMALL, resume=False, preview=True)
    assert list(tmp_path.iterdir()) == []
    assert mapping["output"] == str(tmp_path / "run")
    assert mapping["model"]["path"].startswith(str(tmp_path / "run"))


def test_a_run_that_is_there_keeps_its_data_and_its_recipe(tmp_path):
    folder = tmp_path / "run"
    made = default_recipe(["region"], folder, SMALL, resume=False)
    (folder / "run.json").write_text(json.dumps({"config": made}, default=str))
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError, match="holds a run already"):
        default_recipe(["region"], folder, {**SMALL, "samples": "20"}, resume=False)
    with pytest.raises(ConfigError, match=r"recipe\.samples: .* choose another --output"):
        default_recipe(["region"], folder, {"samples": "20"}, resume=True)
    with pytest.raises(ConfigError, match="name the same heads"):
        default_recipe(["mask"], folder, {}, resume=True)
    assert default_recipe(["region"], folder, {}, resume=True)["stages"] == made["stages"]
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("options", "message"),
    [({"sample": "3"}, "Did you mean 'samples'"), ({"samples": "many"}, "expected a number"), ({"base": "x"}, "no folder")],
)
def test_wrong_options_of_the_built_in_recipe(options, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        packaged_recipe("default", ["region"], tmp_path / "run", options)


def test_an_unknown_recipe_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"no installed package has a recipe 'defualt'\. Did you mean 'default'"):
        packaged_recipe("defualt", ["region"], tmp_path, {})


def test_options_and_overrides_are_told_apart():
    assert split_options(["recipe.samples=3", "stages.0.steps=4"]) == ({"samples": "3"}, ["stages.0.steps=4"])


def test_the_recipe_for_own_data_is_valid(tmp_path):
    mapping = own_data_recipe(["region", "mask"], data=["a/x.jsonl", "b/x.jsonl"], model="m", output=tmp_path, test=["t.jsonl"])
    recipe = read_recipe(mapping, load_plugins(), heads=None, overrides=["stages.0.epochs=2"])
    assert [s.name for s in recipe.data.train] == ["x-0", "x-1"]
    assert recipe.stages[0].epochs == 2
    assert [stage.name for stage in recipe.stages] == ["assign", "heads", "joint"]
