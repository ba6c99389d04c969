"""Boxes as text: values by hand, and a round trip within half a step."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpo_core.testing.media import ArrayMedia
from tpo_core.types import BackboneView, ClipView, Target
from tpo_heads.region.codec import RegionCodec
from tpo_heads.region.config import RegionConfig


def codec(digits: int = 2) -> RegionCodec:
    return RegionCodec(RegionConfig(text_digits=digits), BackboneView("toy", 4, 1, 8, 8))


def target(boxes, size=(200, 100)) -> Target:
    return Target.model_validate({"id": "t", "head": "region", "size": list(size), "boxes": boxes})


def clip(size=(200, 100)) -> ClipView:
    return ClipView(ArrayMedia(np.zeros((1, size[1], size[0], 3), np.uint8)))


def test_boxes_are_shares_cut_down_to_the_digits():
    assert codec().to_text(target([[0, 0, 200, 100], [25, 33.5, 50, 66]])) == "box 00 00 99 99; box 12 33 25 66"
    assert codec(3).to_text(target([[25, 33.5, 50, 66]])) == "box 125 335 250 660"
    assert codec().to_text(target([])) == RegionCodec.absent


def test_text_is_read_at_the_middle_of_its_steps():
    assert codec().from_text("It is at box 12 33 25 66.", clip()) == [{"box": [25.0, 33.5, 51.0, 66.5]}]
    assert codec(1).from_text("box 1 2 3 4", clip()) == [{"box": [30.0, 25.0, 70.0, 45.0]}]


@pytest.mark.parametrize(
    "text", ["", "It is not there.", "box 12 33 25", "box 50 50 20 60", "box 20 60 50 60", "boxes 1 2 3 4", "12 33 25 66"]
)
def test_what_is_no_box_is_no_answer(text):
    assert codec().from_text(text, clip()) == []


@given(
    st.lists(st.tuples(st.floats(0, 180), st.floats(0, 80), st.floats(6, 20), st.floats(6, 20)), min_size=1, max_size=3),
    st.integers(2, 4),
)
def test_boxes_survive_being_written(corners, digits):
    boxes = [[x, y, x + w, y + h] for x, y, w, h in corners]
    found = codec(digits).from_text(codec(digits).to_text(target(boxes)), clip())
    step = 0.5 * 10.0**-digits
    assert len(found) == len(boxes)
    for box, answer in zip(boxes, found, strict=True):
        for value, read, side in zip(box, answer["box"], (200, 100, 200, 100), strict=True):
            assert read == pytest.approx(value, abs=step * side + 0.011)
