"""Recipes over the tiny backbones and a handful of records, for tests of jobs and commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from toy_data import write_media


def region_rows(count: int = 12) -> list[dict[str, Any]]:
    """Records for the region head over the toy pictures; every third one is plain conversation."""
    rows: list[dict[str, Any]] = []
    for i in range(count):
        name, size = ("red.png", [80, 48]) if i % 2 else ("blue.png", [40, 64])
        asked = {"role": "user", "content": [{"type": "image", "path": name}, {"type": "text", "text": f"where is it {i}?"}]}
        if i % 3 == 2:
            rows.append({"id": f"r{i}", "messages": [asked, {"role": "assistant", "content": "a cat"}], "targets": []})
            continue
        box = [2.0 + i, 3.0, 20.0 + i, 30.0]
        target = {"id": "t0", "head": "region", "media": 0, "size": size, "boxes": [box]}
        rows.append(
            {"id": f"r{i}", "messages": [asked, {"role": "assistant", "content": [{"type": "target", "id": "t0"}]}], "targets": [target]}
        )
    return rows


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write records, with their media beside them."""
    write_media(path.parent)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def recipe(folder: Path, backbone: Path, *, rows: list[dict[str, Any]] | None = None, **changes: Any) -> dict[str, Any]:
    """Return a recipe of two short stages for the region head."""
    data = write_rows(folder / "data" / "train.jsonl", rows or region_rows())
    stage = {"batch_size": 4, "train": {"lora": 1e-3, "tokens": 1e-3, "heads": 1e-3}, "betas": [0.9, 0.98]}
    mapping = {
        "seed": 3,
        "output": str(folder / "run"),
        "model": {"path": str(backbone), "dtype": "float32", "frames": 4, "max_length": 512},
        "lora": {"r": 4, "alpha": 8.0, "dropout": 0.1},
        "heads": {"region": {}},
        "data": {
            "train": [{"name": "toy", "path": str(data)}],
            "test": [{"name": "held", "path": str(data), "max_samples": 6}],
            "workers": 0,
        },
        "stages": [{"name": "first", "steps": 3, **stage}, {"name": "second", "steps": 4, **stage}],
        "trainer": {"checkpoint_every": 2},
    }
    return {**mapping, **changes}
