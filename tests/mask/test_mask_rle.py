"""Run-length records: own reader against pycocotools, broken records, boxes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco

from tpo_heads.mask.rle import area, decode, encode, fill_box, tight_box

MASKS = hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40))


@given(MASKS)
def test_round_trip_and_pycocotools_agree(mask: np.ndarray) -> None:
    rle = encode(mask)
    np.testing.assert_array_equal(decode(rle, (mask.shape[1], mask.shape[0])), mask)
    np.testing.assert_array_equal(decode(rle), coco.decode({**rle, "counts": rle["counts"].encode()}).astype(bool))
    assert area(rle) == mask.sum()


@given(MASKS)
def test_tight_box_fills_and_no_smaller_one_does(mask: np.ndarray) -> None:
    box = tight_box(mask)
    if box is None:
        assert not mask.any()
        return
    left, top, right, bottom = (int(side) for side in box)
    inside = mask[top:bottom, left:right]
    assert inside.sum() == mask.sum()
    assert inside[0].any()
    assert inside[-1].any()
    assert inside[:, 0].any()
    assert inside[:, -1].any()


def test_tight_box_by_hand() -> None:
    mask = np.zeros((48, 64), dtype=bool)
    mask[10:30, 20:50] = True
    assert tight_box(mask) == [20.0, 10.0, 50.0, 30.0]
    np.testing.assert_array_equal(fill_box([20, 10, 50, 30], (64, 48)), mask)
    np.testing.assert_array_equal(fill_box([20.5, 9.6, 49.6, 30.5], (64, 48)), mask)


def test_uncompressed_counts() -> None:
    # A 2 x 3 mask, down the columns: 0 1 | 1 1 | 0 0
    np.testing.assert_array_equal(decode({"size": [2, 3], "counts": [1, 3, 2]}), [[0, 1, 0], [1, 1, 0]])


@pytest.mark.parametrize(
    ("rle", "words"),
    [
        ({"size": [2, 3], "counts": [1, 3, 3]}, "add up to 7 pixels where its size has 6"),
        ({"size": [2, 3], "counts": [7, -1]}, "a run of -1"),
        ({"size": [2, 3], "counts": "~~"}, "hold '~'"),
        ({"size": [2, 3], "counts": "P"}, "end within a number"),
        ({"size": [2, 3], "counts": "oooooooooo1"}, "hold"),
        ({"size": [2, 3], "counts": 6}, "compressed string"),
        ({"size": [2, 3], "counts": [True, 5]}, "compressed string"),
        ({"size": [2, -3], "counts": [6]}, "whole pixels"),
        ({"size": [2.0, 3], "counts": [6]}, "whole pixels"),
        ({"size": [1 << 20, 1 << 20], "counts": []}, "whole pixels"),
        ({"counts": [6]}, "COCO RLE"),
        ([6], "COCO RLE"),
    ],
)
def test_broken_records_raise_one_sentence(rle: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        decode(rle)  # type: ignore[arg-type]  # broken on purpose


def test_other_size_than_expected() -> None:
    with pytest.raises(ValueError, match="3 x 2 pixels was found where 4 x 2 were expected"):
        decode({"size": [2, 3], "counts": [6]}, (4, 2))


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        mask = decode({"size": [5, 7], "counts": text})
    except ValueError:
        return
    assert mask.shape == (5, 7)
