"""The default recipe: what ``tpo train --heads region,temporal,mask`` runs when nothing else is given.

`prepare` writes the data and lays the base model beside them; `default` gives the recipe over them as a plain mapping (see
`tpo_core.config.recipe`). Nothing heavy is imported before `prepare` runs.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from tpo_core.errors import ConfigError

HEADS = ("region", "temporal", "mask")
SAM_FILE = "sam2.safetensors"
SHARES: dict[str, dict[str, float]] = {
    "region": {"image": 1.0},
    "temporal": {"clip": 1.0},
    "mask": {"track": 1.0},
}


def prepare(
    folder: str | Path,
    *,
    samples: int = 3000,
    seed: int = 0,
    level: int = 1,
    heads: Sequence[str] = HEADS,
    base: str = "shipped",
) -> dict[str, Any]:
    """Write a playground and its base model under a folder; what is there already is kept.

    Args:
        folder: gets ``data/`` and ``base/``.
        samples, seed, level, heads: see `tpo_heads.playground.writer.write_playground`.
        base: ``shipped`` (taught, part of this package), ``scratch`` (random weights), or a folder.

    Returns:
        ``data``: annotation files by name; ``base``: the model's folder; ``sam``: SAM2's weights, or None.

    Raises:
        ConfigError: an argument is out of range, or `base` is no folder.
    """
    from tpo_heads.playground.writer import write_playground

    root = Path(folder)
    files = write_playground(root / "data", samples=samples, seed=seed, level=level, heads=heads)
    model = lay_base(root / "base", base=base, seed=seed)
    sam = model / SAM_FILE
    return {"data": files, "base": model, "sam": sam if sam.is_file() else None}


def lay_base(folder: Path, *, base: str = "shipped", seed: int = 0) -> Path:
    """Return a base model's folder: the shipped one unpacked to single precision, a random one, or the folder that `base` names.

    Raises:
        ConfigError: `base` is neither ``shipped``, ``scratch`` nor a folder with a model.
    """
    if base not in ("shipped", "scratch"):
        given = Path(base)
        if not (given / "config.json").is_file():
            raise ConfigError(f"base {base!r} is no folder of a model; give shipped, scratch, or a folder with config.json")
        return given
    if (folder / "config.json").is_file():
        return folder
    if base == "scratch":
        from tpo_heads.playground.base import build_base

        return build_base(folder, seed=seed)
    return unpack_shipped(folder)


def unpack_shipped(folder: Path) -> Path:
    """Write the base model that this package ships to a folder, in single precision, and return the folder."""
    from safetensors.torch import load_file, save_file

    folder.mkdir(parents=True, exist_ok=True)
    with resources.as_file(resources.files("tpo_heads.playground") / "assets" / "base") as shipped:
        for path in sorted(shipped.iterdir()):
            if path.suffix == ".safetensors":
                tensors = {name: tensor.float() for name, tensor in load_file(path).items()}
                save_file(tensors, folder / path.name, metadata={"format": "pt"})
            elif path.name != "config.json":
                shutil.copyfile(path, folder / path.name)
        text = (shipped / "config.json").read_text("utf-8").replace('"float16"', '"float32"')
    (folder / "config.json").write_text(text, "utf-8")
    return folder
