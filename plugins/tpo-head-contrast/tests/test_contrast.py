"""Loss, views, retrieval and the reader of the `contrast` head."""

import json
import math
from pathlib import Path

import numpy as np
import torch
from tpo_head_contrast.head import ContrastCodec, ContrastConfig, ContrastHead
from tpo_head_contrast.metric import ContrastMetric
from tpo_head_contrast.reader import read

from tpo_core.testing import ArrayMedia
from tpo_core.types import BackboneView, ClipView, Target, Widths

CLIP = ArrayMedia(np.random.Generator(np.random.Philox(3)).integers(0, 256, (6, 40, 72, 3), dtype=np.uint8))
TARGET = Target.model_validate({"id": "t", "head": "contrast"})


def codec() -> ContrastCodec:
    return ContrastCodec(ContrastConfig(), BackboneView("toy", 4, 1, 4, 4))


def head() -> ContrastHead:
    return ContrastHead(ContrastConfig(temperature=0.5), Widths(hidden=4, features=4, words=4))


def test_the_loss_by_hand() -> None:
    unit = torch.eye(2)
    apart = {"token": unit, "view": unit, "media": torch.tensor([0, 1])}
    expected = math.log(1 + math.exp(-1 / 0.5))
    torch.testing.assert_close(head().loss(apart, {})["nce"], torch.full((2,), expected))
    same = {**apart, "media": torch.tensor([4, 4])}
    torch.testing.assert_close(head().loss(same, {})["nce"], torch.zeros(2))


def test_views_differ_by_epoch_and_are_still_in_evaluation() -> None:
    def view(training: bool, epoch: int) -> torch.Tensor:
        return codec().inputs(ClipView(CLIP, training=training, seed=(1, epoch), frame_indices=(0, 2, 4)))["view"]

    assert view(True, 0).shape == (3, 32, 32)
    assert torch.equal(view(True, 0), view(True, 0))
    assert not torch.equal(view(True, 0), view(True, 1))
    assert torch.equal(view(False, 0), view(False, 1))


def test_retrieval_by_hand_and_ties_count_against_it() -> None:
    def scored(pairs: list[tuple[list[float], list[float]]], missing: int = 0) -> float:
        metric = ContrastMetric()
        for token, view in pairs:
            metric.update([{"token": token, "view": view}], TARGET)
        for _ in range(missing):
            metric.update([], TARGET)
        return metric.compute()["top1"]

    east, north = [1.0, 0.0], [0.0, 1.0]
    assert scored([(east, east), (north, north)]) == 1.0
    assert scored([(east, north), (north, east)]) == 0.0
    assert scored([(east, east), (north, north)], missing=2) == 0.5
    assert scored([(east, east), (east, east)]) == 0.0


def test_chance_is_a_guess() -> None:
    metric = ContrastMetric()
    for _ in range(10):
        metric.update([], TARGET)
    assert metric.chance() == {"top1": 0.1, "top5": 0.5}


def test_the_reader_needs_no_annotation(tmp_path: Path) -> None:
    path = tmp_path / "scenes-train.jsonl"
    path.write_text("".join(json.dumps({"id": f"s{i}", "kind": kind, "media": "m"}) + "\n" for i, kind in enumerate(("image", "clip"))))
    rows = [row for _, row in read(path)]
    assert [row["messages"][0]["content"][0]["type"] for row in rows] == ["image", "video"]
    assert [row["targets"] for row in rows] == [[{"id": "t0", "head": "contrast", "media": 0}]] * 2
