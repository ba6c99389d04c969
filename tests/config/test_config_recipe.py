"""The recipe: the paper's table fits, errors say where, overrides merge, heads are typed, the printed form reads back."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from pydantic import Field

from tpo_core.config import Recipe, compose, format_recipe, head_names, load_recipe, open_recipe, parse_yaml, recipe_schema
from tpo_core.contract import HeadConfig
from tpo_core.errors import ConfigError, HeadNotFound


class RegionConfig(HeadConfig):
    loss: Literal["l1_giou", "mse"] = Field("l1_giou", description="how boxes are compared")
    hidden: int = Field(64, ge=1, description="width of the hidden layer")


HEADS: dict[str, type[HeadConfig]] = {"region": RegionConfig, "temporal": HeadConfig, "mask": HeadConfig, "json": HeadConfig}

SMALL = """\
seed: 3
model:
  path: some/model
heads:
  region: {weight: 0.5}
  temporal:
data:
  train:
    - {name: refcoco, path: a.jsonl}
    - {name: chat, path: b.jsonl, weight: 2.0}
stages:
  - name: joint
    steps: 100
    train:
      lora: 2e-5
      heads: 1e-4
"""

# PAPER 6.1: the three stages with their learning rates; heads are trained separately in stage 2.
PAPER = """\
model: {path: OpenGVLab/VideoChat2, dtype: bfloat16, frames: 16}
lora: {r: 16, alpha: 32, dropout: 0.1}
heads: {region: {}, temporal: {}, mask: {}}
data:
  train: [{name: t, path: t.jsonl}, {name: r, path: r.jsonl}, {name: m, path: m.jsonl}, {name: conv, path: c.jsonl}]
stages:
  - {name: assign, epochs: 1, batch_size: 128, warmup: 0.2, train: {vision: null, connector: null, lora: 2e-5}, sources: {t: 1, r: 1, m: 1}}
  - {name: temporal, epochs: 25, batch_size: 64, warmup: 0.2, heads: [temporal], sources: {t: 1},
     train: {heads.temporal: 1e-4, tokens: 2e-4, lora: 2e-5}}
  - {name: mask, epochs: 3, batch_size: 128, warmup: 0.2, heads: [mask], sources: {m: 1}, train: {heads: 1e-4, tokens: 1e-4, lora: 2e-5}}
  - {name: region, epochs: 1, batch_size: 128, warmup: 0.2, heads: [region], sources: {r: 1},
     train: {heads: 1e-4, tokens: 1e-4, lora: 2e-5}}
  - {name: joint, epochs: 1, batch_size: 256, micro_batch: 2, warmup: 0.2, sources: {t: 1, r: 1, m: 1}, merge_at_start: true,
     train: {vision: 2e-5, connector: 2e-5, heads: 2e-5, tokens: 2e-5, lora: 2e-5}}
  - {name: conversation, epochs: 3, batch_size: 256, warmup: 0.2, min_lr_ratio: 0.05, eps: 1e-5,
     train: {vision: 2e-5, connector: 2e-5, heads: 2e-5, tokens: 2e-5, tokens.temporal: 2e-5, lora: 2e-5}}
"""


def load(text: str, *overrides: str) -> Recipe:
    return load_recipe(parse_yaml(text, source="recipe.yaml"), overrides=overrides, head_configs=HEADS)


def refuse(text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(text, *overrides)
    return str(caught.value)


def test_a_small_recipe() -> None:
    recipe = load(SMALL)
    assert recipe.seed == 3
    assert isinstance(recipe.heads["region"], RegionConfig)
    assert list(recipe.heads) == ["region", "temporal"]
    assert recipe.heads["region"].weight == 0.5
    assert recipe.stages[0].rates == {"lora": 2e-5, "heads": 1e-4}
    assert recipe.stages[0].start == "previous"
    assert [source.weight for source in recipe.data.train] == [None, 2.0]


def test_the_papers_table() -> None:
    stages = {stage.name: stage for stage in load(PAPER).stages}
    assert stages["assign"].rates == {"lora": 2e-5}
    assert stages["temporal"].rates == {"heads.temporal": 1e-4, "tokens": 2e-4, "lora": 2e-5}
    assert all(stage.weight_decay == 0.02 and stage.schedule == "cosine" and stage.warmup == 0.2 for stage in stages.values())
    assert stages["conversation"].betas == (0.9, 0.999)
    assert stages["joint"].merge_at_start


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("lora: 2e-5", "lora: fast", "recipe.yaml:15: stages[0].train.lora: found 'fast', expected a number"),
        ("lora: 2e-5", "lora: true", "recipe.yaml:15: stages[0].train.lora: found true, expected a number"),
        ("lora: 2e-5", "lora: '1e-5'", "recipe.yaml:15: stages[0].train.lora: found '1e-5', expected a number"),
        ("lora: 2e-5", "lora: 0", "recipe.yaml:15: stages[0].train.lora: found 0, expected a number above 0.0"),
        ("lora: 2e-5", "lola: 2e-5", "recipe.yaml:15: stages[0].train.lola: no such group of parameters. Did you mean 'lora'?"),
        (
            "heads: 1e-4",
            "heads.regio: 1",
            "stages[0].train.heads.regio: the head 'regio' takes no part in this stage. Did you mean 'region'?",
        ),
        ("steps: 100", "stepps: 100", "recipe.yaml:13: stages[0].stepps: unknown key. Did you mean 'steps'?"),
        ("steps: 100", "steps: 100.5", "recipe.yaml:13: stages[0].steps: found 100.5, expected a whole number"),
        ("steps: 100", "steps: 100\n    epochs: 2", "recipe.yaml:12: stages[0]: give either steps or epochs"),
        ("steps: 100", "steps: 10\n    schedule: cosin", "found 'cosin', expected 'cosine' or 'constant'. Did you mean 'cosine'?"),
        ("steps: 100", "steps: 10\n    betas: [0.9, 1.5]", "recipe.yaml:14: stages[0].betas: found [0.9, 1.5], expected two numbers"),
        ("steps: 100", "steps: 10\n    micro_batch: 5", "stages[0]: batch_size 16 is not a multiple of micro_batch 5"),
        ("steps: 100", "steps: 10\n    heads: [region, masc]", "recipe.yaml:14: stages[0].heads[1]: the recipe's heads have no 'masc'"),
        ("steps: 100", "steps: 10\n    sources: {refcocoo: 1}", "data.train has no source 'refcocoo'. Did you mean 'refcoco'?"),
        ("steps: 100", "steps: 10\n    weights: {regio: 1.0}", "the recipe's heads have no 'regio'. Did you mean 'region'?"),
        ("steps: 100", "steps: 10\n    weights: {region: -1.0}", "stages[0].weights.region: found -1.0, expected a number"),
        ("weight: 0.5", "weigth: 0.5", "recipe.yaml:5: heads.region.weigth: unknown key. Did you mean 'weight'?"),
        ("weight: 0.5", "loss: mso", "recipe.yaml:5: heads.region.loss: found 'mso', expected 'l1_giou' or 'mse'. Did you mean 'mse'?"),
        ("weight: 0.5", "init_from: mask", "heads.region.init_from: the recipe's heads have no 'mask'"),
        ("  path: some/model", "  frames: 8", "recipe.yaml:2: model.path: is missing; it says: folder of the multimodal LLM"),
        ("seed: 3", "seed: 3\nlora: null", "recipe.yaml:16: stages[0].train.lora: the recipe says lora: null"),
        ("name: chat", "name: refcoco", "recipe.yaml:7: data: train names the source 'refcoco' twice"),
        ("name: joint", "name: 'a/b'", "recipe.yaml:12: stages[0].name: found 'a/b', expected a name that matches"),
        ("model:\n  path: some/model", "model: 5", "recipe.yaml:2: model: found 5, expected a mapping"),
        ("    train:\n      lora: 2e-5\n      heads: 1e-4\n", "    train: {}\n", "stages[0]: train names no group"),
    ],
)
def test_errors_say_file_line_path_found_expected(old: str, new: str, message: str) -> None:
    assert old in SMALL
    assert message in refuse(SMALL.replace(old, new, 1))


def test_all_wrong_places_are_listed() -> None:
    text = refuse(SMALL.replace("steps: 100", "stepps: 100").replace("seed: 3", "seed: x"))
    assert [line.split(" ")[0] for line in text.splitlines()] == ["recipe.yaml:1:", "recipe.yaml:13:"]


def test_an_unknown_head() -> None:
    with pytest.raises(HeadNotFound, match=r"recipe.yaml:6: heads.temporl: no installed package announces .* Did you mean 'temporal'\?"):
        load(SMALL.replace("temporal", "temporl"))


def test_overrides_merge_in_order() -> None:
    recipe = load(
        SMALL,
        "stages.0.steps=50",
        "heads.region.weight=0.1",
        "heads.region.weight=0.2",
        "data.train.0.weight=2",
        "data.train.chat.weight=3",
        "stages.joint.train.heads.region=3e-4",
        "stages.0.train.lora=null",
        "model.dtype=float32",
        "heads.mask.slots=2",
        "lora=null",
        "stages.0.heads=[region, mask]",
    )
    assert recipe.stages[0].steps == 50
    assert recipe.heads["region"].weight == 0.2
    assert [source.weight for source in recipe.data.train] == [2, 3]
    assert recipe.stages[0].rates == {"heads": 1e-4, "heads.region": 3e-4}
    assert recipe.model.dtype == "float32"
    assert recipe.heads["mask"].slots == 2
    assert recipe.lora is None
    assert recipe.stages[0].heads == ("region", "mask")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.0.steps=fifty", "override 'stages.0.steps=fifty': stages[0].steps: found 'fifty', expected a whole number"),
        ("stages.0.stps=50", "override 'stages.0.stps=50': stages[0].stps: unknown key. Did you mean 'steps'?"),
        ("stages.7.steps=50", "override 'stages.7.steps=50': stages has 1 items, so the last is 0"),
        (
            "stages.joined.steps=5",
            "override 'stages.joined.steps=5': stages has no item 'joined'; give an index from 0 or a name (known: joint)",
        ),
        ("seed.x=1", "override 'seed.x=1': seed is 3, which has nothing called 'x' in it"),
        ("seed", "override 'seed': expected path=value"),
        ("=1", "override '=1': expected path=value"),
        ("seed=[1", "override 'seed=[1':1: not YAML"),
        ("lora.r=0", "override 'lora.r=0': lora.r: found 0, expected a number of at least 1"),
        ("data.train.0={name: x}", "override 'data.train.0={name: x}': data.train[0].path: is missing"),
    ],
)
def test_override_errors_name_the_override(override: str, message: str) -> None:
    assert message in refuse(SMALL, override)


def test_a_mapping_is_a_recipe_too_and_is_not_changed() -> None:
    mapping: dict[str, Any] = {"model": {"path": "m"}, "heads": {"region": None}, "stages": []}
    recipe = load_recipe(mapping, overrides=["seed=9"], head_configs=HEADS)
    assert (recipe.seed, list(recipe.heads)) == (9, ["region"])
    assert mapping == {"model": {"path": "m"}, "heads": {"region": None}, "stages": []}
    with pytest.raises(ConfigError, match=r"^recipe: model.path: is missing"):
        load_recipe({"model": {}, "heads": {}}, head_configs=HEADS)
    with pytest.raises(ConfigError, match="a value that is not plain"):
        load_recipe({"model": {"path": object()}, "heads": {}}, head_configs=HEADS)


def test_heads_are_named_before_their_packages_are_known() -> None:
    document = open_recipe(parse_yaml(SMALL, source="r"), overrides=["heads.track.weight=1"])
    assert head_names(document) == ["region", "temporal", "track"]
    with pytest.raises(ConfigError, match="found 3, expected a mapping"):
        head_names(parse_yaml("heads: 3\n", source="r"))


def test_the_printed_form_reads_back() -> None:
    recipe = load(PAPER, "heads.region.hidden=7", "output='no: # yes'")
    text = format_recipe(recipe)
    assert load(text) == recipe
    assert text.count("# optimiser steps; give steps or epochs") == 1
    assert "\n    # width of the hidden layer\n    hidden: 7\n" in text
    assert "    from: previous\n" in text


def test_a_recipe_survives_json() -> None:
    recipe = load(SMALL)
    again = load_recipe(recipe.model_dump(mode="json", by_alias=True), head_configs=HEADS)
    assert again == recipe


def test_every_option_has_a_description_in_the_schema() -> None:
    schema = recipe_schema(HEADS)
    bare = []
    for name, node in {**schema["$defs"], "Recipe": schema}.items():
        if name != "Heads":
            bare += [f"{name}.{key}" for key, value in node["properties"].items() if not value.get("description")]
    assert bare == []
    assert schema["$defs"]["RegionConfig"]["properties"]["hidden"]["default"] == 64
    assert set(schema["$defs"]["Heads"]["properties"]) == set(HEADS)


def test_one_class_per_set_of_heads() -> None:
    assert compose(HEADS) is compose(dict(HEADS))


def test_a_recipe_cannot_be_changed() -> None:
    recipe = load(SMALL)
    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 5  # type: ignore[misc]
