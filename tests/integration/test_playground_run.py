"""The main job at reduced size: one command from nothing to figures and a picture, through all stages, on real files."""

from __future__ import annotations

import json
import math

from click.testing import CliRunner

from tpo_core.cli import main


def test_the_main_job_runs_whole_at_reduced_size(tmp_path):
    run = tmp_path / "run"
    options = ["recipe.base=scratch", "recipe.samples=20", "recipe.scale=0.01", "trainer.eval_samples=3"]
    result = CliRunner().invoke(main, ["train", "--heads", "region,temporal,mask", "--output", str(run), "--json", *options])
    assert result.exit_code == 0, result.output
    summary = json.loads((run / "summary.json").read_text("utf-8"))
    assert {"region", "temporal", "mask"} == set(summary["heads"]) == set(summary["chance"])
    assert {"acc@0.5", "miou"} <= set(summary["heads"]["region"])
    assert "r1@0.5" in summary["heads"]["temporal"]
    assert "j&f" in summary["heads"]["mask"]
    assert {"image_qa", "video_qa", "assignment"} == set(summary["conversation"]) == set(summary["blind"])
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert {row["stage"] for row in rows} == {"assign", "region", "temporal", "mask", "joint"}
    assert all(math.isfinite(row["loss"]) for row in rows)
    assert (run / "picture.png").is_file()
    assert list((run / "playground" / "data" / "media" / "train").glob("*.png"))
    assert list((run / "playground" / "data" / "media" / "train").glob("*.mp4"))
    again = CliRunner().invoke(main, ["train", "--heads", "region,temporal,mask", "--output", str(run)])
    assert again.exit_code == 1
    assert "holds a run already" in again.output
