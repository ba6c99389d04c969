"""examples/research: parts of built-in heads replaced by subclasses; they keep the contract, train, are remembered and load again."""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML
from tiny_run import recipe

from tpo_core import load_plugins, load_run
from tpo_core.testing import check_head

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "research"


@pytest.fixture(scope="module", autouse=True)
def on_path() -> Iterator[None]:
    sys.path.insert(0, str(FOLDER))
    yield
    sys.path.remove(str(FOLDER))


@pytest.mark.parametrize(("name", "head"), [("region", "region_loss:SmoothRegionHead"), ("mask", "mask_adapter:GatedMaskHead")])
def test_what_stands_in_keeps_the_contract(name: str, head: str) -> None:
    check_head(replace(load_plugins().head(name), head=head)).verify()


def test_a_class_of_ten_lines_is_enough() -> None:
    for path in FOLDER.glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef):
                assert (node.end_lineno or 0) - node.lineno < 12, f"{path.name}:{node.name}"


def test_the_other_loss_by_hand() -> None:
    from region_loss import SmoothRegionHead

    from tpo_core.types import Widths
    from tpo_heads.region.config import RegionConfig

    head = SmoothRegionHead(RegionConfig(), Widths(4, 4, 4))
    boxes = torch.tensor([[0.1, 0.1, 0.5, 0.5]])
    losses = head.loss({"box_xyxy": boxes + torch.tensor([[0.1, 0.0, 0.0, 0.0]])}, {"box_xyxy": boxes})
    assert losses["l1"].item() == pytest.approx((0.01 / 0.2) / 4, rel=1e-4)
    assert set(losses) == {"l1", "giou"}


def test_a_run_trains_remembers_and_loads_it(tmp_path: Path, backbones: dict[str, Path]) -> None:
    from region_loss import SmoothRegionHead, train

    mapping = recipe(tmp_path, backbones["qwen3_vl"])
    mapping["data"]["test"] = []
    with (tmp_path / "recipe.yaml").open("w") as file:
        YAML(typ="safe").dump(mapping, file)
    assert train(tmp_path / "recipe.yaml")["steps"] == 7
    origin = json.loads((tmp_path / "run" / "run.json").read_text())["heads"]["region"]
    assert "with head region_loss.SmoothRegionHead" in origin["version"]
    run = load_run(tmp_path / "run", plugins=load_plugins().replacing("region", head=SmoothRegionHead), device="cpu")
    assert type(run.assembly.model.slot("region").head) is SmoothRegionHead


def test_a_part_with_other_weights_is_not_taken_for_the_original() -> None:
    """The gate's weights are missing in a plain mask head: loading such a run without the part is an error that names them."""
    from mask_adapter import GatedMaskHead

    from tpo_core.jobs.assembly import _copy
    from tpo_core.types import Widths
    from tpo_heads.mask.config import MaskConfig
    from tpo_heads.mask.head import MaskHead

    config = MaskConfig(sam="tiny", image_size=64)
    problems: list[str] = []
    saved, own = GatedMaskHead(config, Widths(8, 8, 8)).state_dict(), MaskHead(config, Widths(8, 8, 8)).state_dict()
    _copy("head 'mask'", saved, own, problems)
    assert problems == ["head 'mask': unexpected adapter.gate.bias, adapter.gate.weight"]
