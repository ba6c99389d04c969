"""The default recipe is a valid recipe over files that exist, for any choice of the heads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tpo_core.config import load_recipe
from tpo_core.errors import ConfigError
from tpo_heads.mask.config import MaskConfig
from tpo_heads.playground.recipe import default
from tpo_heads.region.config import RegionConfig
from tpo_heads.temporal.config import TemporalConfig

CONFIGS = {"region": RegionConfig, "temporal": TemporalConfig, "mask": MaskConfig}


@pytest.mark.parametrize("heads", [("region",), ("mask", "temporal"), ("region", "temporal", "mask")])
def test_the_default_recipe_validates(tmp_path: Path, heads: tuple[str, ...]) -> None:
    mapping = default(heads, tmp_path / "run", samples=20, base="scratch", scale=0.01)
    recipe = load_recipe(json.loads(json.dumps(mapping)), head_configs=CONFIGS)
    assert set(recipe.heads) == set(heads)
    sources = {source.name for source in (*recipe.data.train, *recipe.data.test)}
    assert all(Path(source.path).is_file() for source in (*recipe.data.train, *recipe.data.test))
    assert set(heads) | {"assignment", "image_qa", "video_qa"} >= sources - {"image", "clip", "track"} >= set(heads)
    assert (Path(recipe.model.path) / "config.json").is_file()
    assert [stage.name for stage in recipe.stages] == ["assign", *(h for h in CONFIGS if h in heads), "joint"]
    assert all(stage.steps == max(1, round(stage.steps)) and stage.steps < 10 for stage in recipe.stages)


def test_unknown_heads_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not for 'depth'; give a recipe of your own"):
        default(("region", "depth"), tmp_path)
    with pytest.raises(ConfigError, match="no head was named"):
        default((), tmp_path)
    assert not list(tmp_path.iterdir())
