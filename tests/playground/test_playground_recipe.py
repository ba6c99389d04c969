"""The default recipe is a valid recipe over files that exist, for any choice of the heads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tpo_core.config import load_recipe
from tpo_core.contract import HeadConfig
from tpo_core.errors import ConfigError
from tpo_heads.mask.config import MaskConfig
from tpo_heads.playground import guests
from tpo_heads.playground.recipe import ORDER, default
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
    assert set(heads) | {"unseen", "image_qa", "video_qa"} >= sources - {"image", "clip", "track"} >= set(heads)
    assert (Path(recipe.model.path) / "config.json").is_file()
    assert [stage.name for stage in recipe.stages] == ["assign", *(h for h in ORDER if h in heads), "joint"]
    assert all(stage.steps == max(1, round(stage.steps)) and stage.steps < 10 for stage in recipe.stages)


def test_each_head_begins_with_its_own_stage(tmp_path: Path) -> None:
    mapping = default(("region", "temporal", "mask"), tmp_path / "run", samples=20, base="scratch", scale=0.01)
    recipe = load_recipe(json.loads(json.dumps(mapping)), head_configs=CONFIGS)
    stages = {stage.name: stage for stage in recipe.stages}
    for name, begun in (("assign", ["region"]), ("region", ["region"]), ("mask", ["region", "mask"])):
        assert [group for group in stages[name].rates if group.startswith("heads")] == [f"heads.{head}" for head in begun]
        assert {head for head, weight in stages[name].weights.items() if weight == 0} == set(CONFIGS) - set(begun)
    # Alone: any other weight would cost a pass back through the language model.
    assert stages["temporal"].rates == {"heads.temporal": 2e-3}
    assert "heads" in stages["joint"].rates
    assert 0 not in stages["joint"].weights.values()
    assert recipe.heads["mask"].init_from == "region"


class Guests:
    """Plugins that bring a reader called dot."""

    def readers(self) -> dict[str, object]:
        return {"dot": None, "playground": None}


@pytest.mark.parametrize("heads", [("dot", "region"), ("dot",)])
def test_a_guest_gets_sources_and_a_stage_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heads: tuple[str, ...]) -> None:
    monkeypatch.setattr(guests, "load_plugins", Guests)
    mapping = default(heads, tmp_path / "run", samples=20, base="scratch", scale=0.01)
    recipe = load_recipe(json.loads(json.dumps(mapping)), head_configs={**CONFIGS, "dot": HeadConfig})
    assert set(recipe.heads) == set(heads)
    for split, sources in (("train", recipe.data.train), ("test", recipe.data.test)):
        (source,) = [source for source in sources if source.reader != "tpo"]
        assert (source.name, source.reader) == ("dot", "dot")
        scenes = [json.loads(line) for line in Path(source.path).read_text().splitlines()]
        assert {scene["split"] for scene in scenes} == {split}
        assert all((Path(source.path).parent / scene["media"]).is_file() for scene in scenes)
    assert [stage.name for stage in recipe.stages][-2:] == ["dot", "joint"]
    assert recipe.stages[-2].sources == {"dot": 1.0}
    assert {"dot"} <= set(recipe.stages[-1].sources or {})
    if "region" not in heads:
        assert {source.name for source in recipe.data.test} == {"dot", "image_qa", "video_qa"}


def test_unknown_heads_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not for 'depth'; give a recipe of your own"):
        default(("region", "depth"), tmp_path)
    with pytest.raises(ConfigError, match="no head was named"):
        default((), tmp_path)
    assert not list(tmp_path.iterdir())
