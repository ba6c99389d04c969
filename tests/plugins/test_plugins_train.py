"""Each head under plugins/ trains by its own recipe, as its README says, and beats its chance row on held-out records."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[2]
MARGINS = {"point": ("f1", 0.15), "depth": ("delta1", 0.1), "contrast": ("top5", 0.1), "frame": ("psnr", 0.5)}
"""Head -> a metric, and by how much it must beat its chance row (seen: 0.36, 0.24, 0.40 and 1.3 dB)."""


def tpo(folder: Path, *args: str, plugins: str = "") -> str:
    environment = {**os.environ, "TPO_PLUGINS": plugins, "TPO_STRICT_PLUGINS": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", "from tpo_core.cli import main; main()", *args]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plugins")
    tpo(folder, "data", "base", "runs/base", "--scratch")
    tpo(folder, "data", "playground", "runs/world", "--samples", "1500", "--heads", "region")
    return folder


@pytest.mark.long
@pytest.mark.parametrize("name", MARGINS)
def test_it_learns(world: Path, name: str) -> None:
    log = world / f"{name}.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TPO_JSONL_LOG", str(log))
        out = tpo(world, "train", "--config", str(ROOT / f"plugins/tpo-head-{name}/recipe.yaml"), "--json", plugins=f"{name},jsonl_log")
    summary = json.loads(out.splitlines()[-1])
    reached, chance = summary["heads"][name], summary["chance"][name]
    print(f"{name}: {reached}, chance {chance}")
    metric, margin = MARGINS[name]
    assert reached[metric] > chance[metric] + margin, summary
    if name != "contrast":
        assert (world / f"runs/{name}/pictures/{name}-1.png").is_file()
    assert len(log.read_text().splitlines()) == summary["steps"]
    assert f"over {summary['steps']} steps" in tpo(world, "log", str(log))


def test_the_recipes_name_what_the_readmes_lay() -> None:
    for name in MARGINS:
        folder = ROOT / "plugins" / f"tpo-head-{name}"
        recipe, readme = YAML(typ="safe").load((folder / "recipe.yaml").read_text()), (folder / "README.md").read_text()
        assert f"tpo data base {recipe['model']['path']} --scratch" in readme
        for split, source in (("train", *recipe["data"]["train"]), ("test", *recipe["data"]["test"])):
            assert source["reader"] == name
            assert source["path"] == f"runs/world/scenes-{split}.jsonl"
        assert "tpo data playground runs/world" in readme
