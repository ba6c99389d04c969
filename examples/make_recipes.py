"""Write `playground.yaml` and `playground-long.yaml`, the recipes that `tpo_heads.playground` makes, as files:

    python examples/make_recipes.py

A test holds the files to it, so run it after the playground's recipe was changed.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any
from unittest import mock

from ruamel.yaml import YAML

from tpo_heads.playground import recipe as playground

HERE = Path(__file__).resolve().parent
SPLITS = {
    "train": ("image", "clip", "track"),
    "test": ("assignment", "image_qa", "mask", "region", "temporal", "video_qa"),
}

DEFAULT = """\
# The built-in recipe: what `tpo train --heads region,temporal,mask` runs, as a file to read and to change.
# Written by examples/make_recipes.py. Its data and base model are written, and everything is checked, by
#     tpo train --heads region,temporal,mask --output runs/first --dry-run
# and then it runs: tpo train --config examples/playground.yaml
# Every option with its meaning: tpo train --config examples/playground.yaml --print-config
"""
LONG = """\
# The longer one: a harder world (level 2: six colours, four shapes, relations, motion). It took 48 minutes on 2 idle cores, with figures
# after each stage, and a minute more to write its data (docs/training.md has what it reached). The recipe of the ablation table:
#     tpo train --heads region,temporal,mask --output runs/long --dry-run recipe.level=2 recipe.samples=12000
#     tpo train --config examples/playground-long.yaml
#     tpo ablate examples/playground-long.yaml --table examples/ablation.yaml
# Written by examples/make_recipes.py.
"""
LONG_STEPS = {"assign": 150, "region": 1600, "temporal": 1600, "mask": 1400, "joint": 1600}


def default_mapping(output: str = "runs/first") -> dict[str, Any]:
    """Return what the playground's recipe gives for an output folder, without writing its data."""

    def prepared(folder: Path, **_: object) -> dict[str, Any]:
        # As `prepare` returns, in the order of the folder's files.
        names = sorted(f"{split}-{kind}" for split, kinds in SPLITS.items() for kind in kinds)
        base = folder / "base"
        return {"data": {name: folder / "data" / f"{name}.jsonl" for name in names}, "base": base, "sam": base / playground.SAM_FILE}

    with mock.patch.object(playground, "prepare", prepared):
        return playground.default(playground.HEADS, output)


def long_mapping() -> dict[str, Any]:
    """Return the recipe of the ablation table."""
    mapping = default_mapping("runs/long")
    for stage in mapping["stages"]:
        stage["steps"] = LONG_STEPS.get(stage["name"], 8 * stage["steps"])
        if stage["name"] == "temporal":
            # There is time for a pass back through the language model, and the table asks what the heads' losses do to it.
            # So its states change from step to step, and none are kept.
            stage |= {"train": {"lora": 5e-4, "tokens": 4e-3, "heads": 2e-3}, "sources": {"clip": 0.9, "image": 0.1}}
            del stage["keep_states"]
    mapping["loss"] = {**mapping.get("loss", {}), "measure_every": 100}
    mapping["trainer"] = {**mapping.get("trainer", {}), "eval_after_stage": True, "eval_samples": 200}
    return mapping


def as_yaml(mapping: dict[str, Any], header: str) -> str:
    """Return the recipe as YAML with a comment on top."""
    yaml = YAML()
    yaml.default_flow_style = None
    yaml.width = 136
    yaml.representer.ignore_aliases = lambda *_: True
    out = io.StringIO()
    yaml.dump(mapping, out)
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    return "\n".join([header, *lines]) + "\n"


FILES = {"playground.yaml": (default_mapping, DEFAULT), "playground-long.yaml": (long_mapping, LONG)}


def main() -> None:
    """Write the files."""
    for name, (make, header) in FILES.items():
        (HERE / name).write_text(as_yaml(make(), header), "utf-8")
        print(HERE / name)


if __name__ == "__main__":
    main()
