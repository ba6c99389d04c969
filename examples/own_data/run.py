"""The whole example in one command, from the root of the repository:

    python examples/own_data/run.py

It collects the media, lays a tiny model with random weights, and trains by `recipe.yaml`. What follows the command goes to `tpo train`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from collect import HERE, collect

from tpo_core.cli import main as tpo
from tpo_heads.playground.recipe import lay_base

BASE = Path("runs/own_data_base")


def main() -> None:
    """Collect, lay the model, train."""
    try:
        collect(HERE / "media")
    except FileNotFoundError as error:
        sys.exit(f"error: {error}")
    lay_base(BASE, base="scratch")
    tpo(["train", "--config", str(HERE / "recipe.yaml"), *sys.argv[1:]])


if __name__ == "__main__":
    main()
