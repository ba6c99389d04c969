"""The main job at reduced size: one command from nothing to figures and a picture, through all stages, on real files."""

from __future__ import annotations

import json
import math
from importlib import resources

import torch
from click.testing import CliRunner
from safetensors.torch import load, load_file

from tpo_core.cli import main


def test_the_main_job_runs_whole_at_reduced_size(tmp_path):
    run = tmp_path / "run"
    options = ["--base", "scratch", "recipe.samples=20", "recipe.scale=0.01", "trainer.eval_samples=3"]
    result = CliRunner().invoke(main, ["train", "--heads", "region,temporal,mask", "--output", str(run), "--json", *options])
    assert result.exit_code == 0, result.output
    summary = json.loads((run / "summary.json").read_text("utf-8"))
    assert {"region", "temporal", "mask"} == set(summary["heads"]) == set(summary["chance"])
    assert {"acc@0.5", "miou"} <= set(summary["heads"]["region"])
    assert "r1@0.5" in summary["heads"]["temporal"]
    assert "j&f" in summary["heads"]["mask"]
    assert {"image_qa", "video_qa"} <= set(summary["conversation"]) <= {"image_qa", "video_qa", "unseen"}
    assert set(summary["conversation"]) == set(summary["blind"])
    assert set(summary["assignment"]["sources"]) == {"image_qa", "video_qa", "unseen", "region", "temporal", "mask"}
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert {row["stage"] for row in rows} == {"assign", "region", "temporal", "mask", "joint"}
    assert all(math.isfinite(row["loss"]) for row in rows)
    assert (run / "picture.png").is_file()
    assert list((run / "playground" / "data" / "media" / "train").glob("*.png"))
    assert list((run / "playground" / "data" / "media" / "train").glob("*.mp4"))
    shipped = resources.files("tpo_heads.playground") / "assets" / "base" / "model.safetensors"
    known, found = load(shipped.read_bytes()), load_file(run / "playground" / "base" / "model.safetensors")
    assert known.keys() == found.keys()
    assert not any(torch.equal(found[name], known[name].float()) for name in found if "proj.weight" in name), "the shipped base was taken"
    again = CliRunner().invoke(main, ["train", "--heads", "region,temporal,mask", "--output", str(run)])
    assert again.exit_code == 1
    assert "holds a run already" in again.output


def test_a_base_goes_with_the_built_in_recipe_alone(tmp_path):
    config = tmp_path / "recipe.yaml"
    config.write_text("seed: 0\n", "utf-8")
    found = CliRunner().invoke(main, ["train", "--heads", "region", "--config", str(config), "--base", "scratch"])
    assert found.exit_code == 1
    assert "--base belongs to the built-in recipe; with --config or --data leave it out" in found.output
    absent = CliRunner().invoke(
        main, ["train", "--heads", "region", "--output", str(tmp_path / "run"), "--base", "nowhere", "recipe.samples=20"]
    )
    assert absent.exit_code == 1
    assert "base 'nowhere' is no folder of a model; give shipped, scratch, or a folder with config.json" in absent.output
