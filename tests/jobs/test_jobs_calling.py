"""When a head is called, from the recipe to the commands: `model.start_bias` and ``--start-bias``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from tiny_run import recipe

from tpo_core.cli import main
from tpo_core.jobs.recipes import read_recipe
from tpo_core.jobs.train import TrainJob
from tpo_core.plugins import load_plugins


@pytest.fixture(scope="module")
def always(tmp_path_factory, backbones):
    """A run whose recipe calls a head whatever the model says."""
    mapping = recipe(tmp_path_factory.mktemp("always"), backbones["qwen3_vl"])
    mapping["model"]["start_bias"] = 1000.0
    plugins = load_plugins()
    TrainJob(read_recipe(mapping, plugins, heads=None, overrides=()), plugins, cpu=True).run()
    return Path(mapping["output"]), mapping["data"]["test"][0]


def answered(path):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [bool(row["prediction"]["heads"]) for row in rows]


def test_the_recipes_bias_counts_in_the_evaluation_of_a_run(always):
    assert all(answered(always[0] / "predictions.jsonl"))


@pytest.mark.parametrize(("arguments", "calls"), [([], True), (["--start-bias", "-1000"], False)])
def test_the_commands_take_the_recipes_bias_or_their_own(arguments, calls, always, tmp_path):
    run, source = always
    evaluated = CliRunner().invoke(main, ["eval", str(run), "--output", str(tmp_path), "--json", *arguments])
    assert evaluated.exit_code == 0, evaluated.output
    assert set(answered(tmp_path / "predictions.jsonl")) == {calls}
    record = json.loads(Path(source["path"]).read_text().splitlines()[0])
    picture = Path(source["path"]).parent / next(part["path"] for part in record["messages"][0]["content"] if part["type"] == "image")
    asked = CliRunner().invoke(main, ["predict", str(run), "where?", "--image", str(picture), "--no-picture", "--json", *arguments])
    assert asked.exit_code == 0, asked.output
    assert bool(json.loads(asked.stdout)["heads"]) == calls


@pytest.mark.parametrize("command", [["predict", "where?"], ["eval"]])
def test_a_bias_that_is_no_number_is_one_sentence(command, always):
    told = CliRunner().invoke(main, [command[0], str(always[0]), *command[1:], "--start-bias", "nan"])
    assert told.exit_code == 1
    assert "start_bias: found nan, expected a finite number" in told.output
