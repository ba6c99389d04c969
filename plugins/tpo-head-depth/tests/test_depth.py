"""Loss, scores and the reader of the `depth` head, on values worked out by hand."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as coco
from tpo_head_depth.head import DepthCodec, DepthConfig, DepthHead
from tpo_head_depth.metric import DepthMetric
from tpo_head_depth.reader import SIDE, read

from tpo_core.testing import picture_for
from tpo_core.types import BackboneView, ClipView, Target, Widths

VIEW = BackboneView("toy", 4, 1, 4, 4)


def target(grid: list[list[float | None]]) -> Target:
    return Target.model_validate({"id": "t", "head": "depth", "size": [60, 40], "grid": grid})


def head(**options: float) -> DepthHead:
    return DepthHead(DepthConfig(side=4, **options), Widths(hidden=4, features=4, words=4))


def test_the_loss_by_hand() -> None:
    gap = torch.tensor([[0.0, 1.0], [2.0, 1.0]])
    targets = {"log": torch.zeros(1, 2, 2), "known": torch.ones(1, 2, 2, dtype=torch.bool)}
    output = {"log": gap[None]}
    assert head(invariance=0.0).loss(output, targets)["silog"].item() == pytest.approx(1.5)
    assert head(invariance=0.5).loss(output, targets)["silog"].item() == pytest.approx(1.0)
    assert head(invariance=1.0).loss(output, targets)["silog"].item() == pytest.approx(0.5)


def test_scale_is_forgiven_and_unknown_cells_do_not_count() -> None:
    targets = {"log": torch.randn(2, 4, 4), "known": torch.rand(2, 4, 4) > 0.3}
    output = {"log": torch.where(targets["known"], targets["log"] + math.log(3.0), torch.full((2, 4, 4), 9.0))}
    torch.testing.assert_close(head(invariance=1.0).loss(output, targets)["silog"], torch.zeros(2), atol=1e-5, rtol=0)


def test_the_map_is_read_at_the_middle_of_cells() -> None:
    codec = DepthCodec(DepthConfig(side=4), VIEW)
    wanted = target([[1.0, 2.0, None], [4.0, 5.0, 6.0]])
    (row,) = codec.encode(wanted, ClipView(picture_for(wanted)))
    expected = [[1, 2, 2, 0], [1, 2, 2, 0], [4, 5, 5, 6], [4, 5, 5, 6]]
    assert torch.where(row["known"], row["log"].exp().round(), torch.zeros(4, 4)).int().tolist() == expected


def test_grids_of_other_sizes_and_broken_ones_are_refused() -> None:
    codec = DepthCodec(DepthConfig(), VIEW)
    ragged = target([[1.0, 2.0], [3.0]])
    for wanted, media in (
        (ragged, picture_for(ragged)),
        (target([[1.0]]), picture_for(Target.model_validate({"id": "t", "size": [40, 60]}))),
    ):
        with pytest.raises(ValueError, match="a grid of equal rows over a picture of"):
            codec.check(wanted, media)


def test_scores_by_hand() -> None:
    metric = DepthMetric()
    metric.update([{"grid": [[1.0, 2.0], [3.0, 10.0]]}], target([[1.2, 2.0], [None, 5.0]]))
    metric.update([], target([[1.0]]))
    scores = metric.compute()
    assert scores["delta1"] == pytest.approx((2 / 3 + 0) / 2)
    assert scores["abs_rel"] == pytest.approx(((0.2 / 1.2 + 0 + 1.0) / 3 + 1) / 2)


def test_chance_is_the_mean_map() -> None:
    metric = DepthMetric()
    for value in (1.0, 4.0):
        metric.update([], target([[value, 8.0]]))
    assert metric.chance() == {"delta1": pytest.approx(0.5), "abs_rel": pytest.approx((1.0 + 0.5) / 4)}


def test_the_reader_paints_things_before_the_wall(tmp_path: Path) -> None:
    mask = np.zeros((32, 64), np.uint8)
    mask[:16, :32] = 1
    code = coco.encode(np.asfortranarray(mask))
    thing = {"depth": 2.5, "masks": [{"size": [32, 64], "counts": code["counts"].decode()}]}
    scene = {"id": "s", "kind": "image", "media": "a.png", "size": [64, 32], "background_depth": [9.0, 6.0], "objects": [thing]}
    path = tmp_path / "scenes-train.jsonl"
    path.write_text(json.dumps(scene) + "\n" + json.dumps(scene | {"kind": "clip"}) + "\n")
    ((line, row),) = read(path)
    grid = np.array(row["targets"][0]["grid"])
    assert (line, grid.shape) == (1, (SIDE, SIDE))
    assert (grid[:8, :8] == 2.5).all()
    assert (grid[8:] > 5.9).all()
    assert grid[0, -1] == pytest.approx(9.0 - 3.0 * 1 / 31, abs=1e-3)
