"""Research on a built-in head: another loss for the region head, by subclassing; its name, tokens, records and metric stay.

python examples/research/region_loss.py recipe.yaml
"""

from __future__ import annotations

import sys
from pathlib import Path

from tpo_core import load_plugins, train_recipe
from tpo_core.jobs.recipes import read_recipe
from tpo_core.types import Tensors
from tpo_heads.region.head import RegionHead


class SmoothRegionHead(RegionHead):
    """L1 of the box gives way near zero (Huber's), and everything else stays as it is."""

    def loss(self, output: Tensors, targets: Tensors) -> Tensors:
        gap_N4 = (output["box_xyxy"] - targets["box_xyxy"]).float().abs()
        return {**super().loss(output, targets), "l1": (gap_N4.square() / (gap_N4 + 0.1)).mean(-1)}


def train(recipe: Path) -> dict[str, object]:
    """Train a recipe with the head replaced and return its summary."""
    plugins = load_plugins().replacing("region", head=SmoothRegionHead)
    return dict(train_recipe(read_recipe(recipe, plugins, heads=None, overrides=()), plugins))


if __name__ == "__main__":
    print(train(Path(sys.argv[1])))
