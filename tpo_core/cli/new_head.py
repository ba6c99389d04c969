"""`tpo new-head NAME`: write a complete package for a head, ready to install, to test and to train."""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import click

from tpo_core._version import __version__
from tpo_core.cli.output import echo
from tpo_core.contract import is_head_name
from tpo_core.plugins import load_plugins

FILES = {
    "setup.cfg": "setup.cfg",
    "pyproject.toml": "pyproject.toml",
    "gitignore": ".gitignore",
    "README.md": "README.md",
    "recipe.yaml": "recipe.yaml",
    "ci.yml": ".github/workflows/ci.yml",
    "card.py": "{package}/__init__.py",
    "head.py": "{package}/head.py",
    "test_contract.py": "tests/test_contract.py",
}
"""Template (without ``.tmpl``) -> where it goes in the package."""

COLOURS = {"red": (210, 60, 50), "green": (60, 160, 80), "blue": (60, 90, 200), "yellow": (225, 190, 60)}
PICTURE = (96, 64)
TRAIN, TEST = 32, 8


@click.command("new-head")
@click.argument("name")
@click.option("--output", type=click.Path(path_type=Path), default=None, help="Folder to write to; default: tpo-head-NAME.")
def command(name: str, output: Path | None) -> None:
    """Write a package for a head called NAME: card, codec, head, metric, example data, conformance test, CI file."""
    head = name.replace("-", "_")
    if not is_head_name(head):
        raise click.BadParameter(f"{name!r} is no head name; use lower case letters, digits and -, beginning with a letter, at most 32")
    taken = next((entry for entry in load_plugins().entries if head in entry.heads), None)
    if taken is not None:
        raise click.BadParameter(f"{taken.label} already announces a head {head!r}, and two of one name clash; choose another name")
    folder = output or Path(f"tpo-head-{head.replace('_', '-')}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise click.UsageError(f"{folder} is there already and not empty; move it away, or name another folder with --output")
    write_package(head, folder)
    echo(f"wrote {folder}; go on with\n  cd {folder}\n  pip install -e '.[test]'\n  pytest\nand README.md there")


def write_package(head: str, folder: Path) -> None:
    """Write the package of a head called `head` to a folder, whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _write_files(head, made)
        _write_data(head, made / "data")
        made.chmod(0o755)
        os.replace(made, folder)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise


def _write_files(head: str, folder: Path) -> None:
    values = {
        "name": head,
        "package": f"tpo_head_{head}",
        "distribution": f"tpo-head-{head.replace('_', '-')}",
        "title": "".join(part.capitalize() for part in head.split("_")),
        "version": __version__,
    }
    templates = resources.files("tpo_core.cli") / "template"
    for source, place in FILES.items():
        path = folder / place.format_map(values)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(Template((templates / f"{source}.tmpl").read_text("utf-8")).substitute(values), "utf-8")


def _write_data(head: str, folder: Path) -> None:
    """Write pictures of two discs, and a question about one of them (in one of eight about a colour that is not there)."""
    (folder / "pictures").mkdir(parents=True)
    rng = random.Random(head)
    for split, count in (("train", TRAIN), ("test", TEST)):
        records = [_record(head, f"{split}-{number:02}", number % 8 == 7, folder, rng) for number in range(count)]
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (folder / f"{split}.jsonl").write_text(lines, "utf-8")


def _record(head: str, name: str, absent: bool, folder: Path, rng: random.Random) -> dict[str, Any]:
    from PIL import Image, ImageDraw

    width, height = PICTURE
    picture = Image.new("RGB", PICTURE, (240, 236, 228))
    pen = ImageDraw.Draw(picture)
    asked, other, missing = rng.sample(sorted(COLOURS), 3)
    sides = [(radius + 2, width // 2 - radius - 2) for radius in (9, 7)]
    left = rng.random() < 0.5
    centres = {}
    for colour, (low, high), radius, on_left in zip((asked, other), sides, (9, 7), (left, not left), strict=True):
        x = rng.randint(low, high) + (0 if on_left else width // 2)
        y = rng.randint(radius + 2, height - radius - 2)
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=COLOURS[colour])
        centres[colour] = [float(x), float(y)]
    picture.save(folder / "pictures" / f"{name}.png")
    question = [
        {"type": "image", "path": f"pictures/{name}.png"},
        {"type": "text", "text": f"Where is the {missing if absent else asked} disc?"},
    ]
    return {
        "id": name,
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": [{"type": "target", "id": "t0"}]},
        ],
        "targets": [{"id": "t0", "head": head, "media": 0, "size": list(PICTURE), "point": None if absent else centres[asked]}],
    }
