"""The tables for `tpo ablate` under examples fit the recipes that they are for."""

from __future__ import annotations

from pathlib import Path

import pytest

from tpo_core.jobs.ablate import Ablation
from tpo_core.jobs.ablate_plan import plan_run, read_table
from tpo_core.jobs.recipes import read_recipe
from tpo_core.plugins import load_plugins
from tpo_heads.playground import recipe as playground

ROOT = Path(__file__).parents[2]


def test_the_example_table_fits_the_long_recipe():
    """Its rows name heads, which core does not; each must give a recipe that is valid."""
    plugins = load_plugins()
    made = read_recipe(ROOT / "examples" / "playground-long.yaml", plugins, heads=None, overrides=())
    rows = read_table(ROOT / "examples" / "ablation.yaml")
    steps = {stage.name: 1 for stage in made.stages}
    planned = {row.name: plan_run(made, row, 0, plugins, output=Path("x"), steps=steps) for row in rows}
    assert len({run.folder for run in planned.values()}) == len(rows)
    assert {tuple(sorted(run.keep.heads)) for run in planned.values()} >= {("mask",), ("region",), ("temporal",), ("mask", "region"), ()}
    assert any(run.recipe["heads"].get("temporal", {}).get("kind") == "mlp" for run in planned.values())
    assert any(run.recipe["heads"].get("mask", {}).get("objective") == "distil" for run in planned.values())
    assert any(all(head["detach"] for head in run.recipe["heads"].values()) for run in planned.values())
    assert any(run.keep.textual == {"region", "temporal"} for run in planned.values())


@pytest.mark.parametrize(("recipe", "level"), [("playground-long.yaml", 2), ("playground.yaml", 1)])
def test_every_row_of_the_example_table_would_run(recipe, level, tmp_path, monkeypatch):
    """Every check that a run begins with holds in each row, over records that were reshaped for it."""
    monkeypatch.chdir(tmp_path)
    plugins = load_plugins()
    made = read_recipe(ROOT / "examples" / recipe, plugins, heads=None, overrides=())
    playground.prepare(Path(made.output) / "playground", samples=20, level=level)
    table = Ablation(made, plugins, Path("ablation"), rows=read_table(ROOT / "examples" / "ablation.yaml"))
    runs = table.plan()
    assert len(table.prepare(runs)) == len(runs) == 13


def test_the_example_of_temporal_kinds_fits_the_first_run():
    """Both rows train the same groups for the same steps, the language model's adapter too, and keep no states."""
    plugins = load_plugins()
    made = read_recipe(ROOT / "examples" / "playground.yaml", plugins, heads=None, overrides=())
    steps = {stage.name: 1 for stage in made.stages}
    table = read_table(ROOT / "examples" / "temporal-kinds.yaml")
    rows = [plan_run(made, row, 0, plugins, output=Path("x"), steps=steps).recipe for row in table]
    assert [row["heads"]["temporal"]["kind"] for row in rows] == ["cg_detr", "mlp"]
    assert rows[0]["stages"] == rows[1]["stages"]
    temporal = rows[0]["stages"][-1]
    assert temporal["name"] == "temporal"
    assert set(temporal["train"]) == {"lora", "tokens", "heads.temporal"}
    assert temporal.get("keep_states") is None
