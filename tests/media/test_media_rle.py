"""Run lengths against pycocotools, numpy and hand-written ones; broken ones give a sentence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco

from tpo_core.errors import DataError
from tpo_core.media.rle import decode_mask, encode_mask, mask_area, mask_box, run_lengths

# Columns of 3: (0 1 1), (1 0 0). Runs down the columns: one 0, three 1, two 0.
HAND = np.array([[0, 1], [1, 0], [1, 0]], bool)
HAND_RUNS = [1, 3, 2]


@st.composite
def masks(draw: st.DrawFn) -> np.ndarray:
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    if draw(st.booleans()):
        return rng.random((height, width)) < draw(st.sampled_from([0.0, 0.02, 0.5, 0.98, 1.0]))
    mask_HW = np.zeros((height, width), bool)
    y, x = sorted(rng.integers(0, height + 1, 2)), sorted(rng.integers(0, width + 1, 2))
    mask_HW[y[0] : y[1], x[0] : x[1]] = True
    return mask_HW


@given(masks(), st.sampled_from(["C", "F"]), st.sampled_from([bool, np.uint8, np.int64, np.float32]))
def test_masks_come_back_in_every_order_and_type(mask_HW: np.ndarray, order: str, dtype: type) -> None:
    rle = encode_mask(np.array(mask_HW, dtype=dtype, order=order) * (1 if dtype is bool else 3))
    assert rle == {
        "size": list(mask_HW.shape),
        "counts": coco.encode(np.asfortranarray(mask_HW, dtype=np.uint8))["counts"].decode(),
    }
    back = decode_mask(rle)
    assert back.dtype == bool
    assert back.flags.c_contiguous
    np.testing.assert_array_equal(back, mask_HW)
    plain = {"size": rle["size"], "counts": run_lengths(rle).tolist()}
    np.testing.assert_array_equal(decode_mask(plain), mask_HW)
    np.testing.assert_array_equal(decode_mask({**rle, "counts": rle["counts"].encode()}), mask_HW)


@given(masks())
def test_area_and_tight_box_equal_numpys(mask_HW: np.ndarray) -> None:
    rle = encode_mask(mask_HW)
    assert mask_area(rle) == mask_HW.sum()
    y, x = np.nonzero(mask_HW)
    expected = None if len(y) == 0 else (float(x.min()), float(y.min()), float(x.max() + 1), float(y.max() + 1))
    assert mask_box(rle) == expected


def test_by_hand() -> None:
    assert run_lengths(encode_mask(HAND)).tolist() == HAND_RUNS
    rle = {"size": [3, 2], "counts": HAND_RUNS}
    np.testing.assert_array_equal(decode_mask(rle), HAND)
    assert (mask_area(rle), mask_box(rle)) == (3, (0.0, 0.0, 2.0, 3.0))
    assert mask_box({"size": [3, 2], "counts": [6]}) is None
    # Runs of length 0 are legal: a mask that begins inside, and one that is cut in two.
    assert mask_box({"size": [3, 2], "counts": [0, 1, 0, 1, 4]}) == (0.0, 0.0, 1.0, 2.0)
    # The empty 48 x 64 mask of the record format's examples.
    assert mask_box({"size": [48, 64], "counts": "PP3"}) is None


@pytest.mark.parametrize(
    "rle",
    [
        None,
        [],
        {"size": [3, 2]},
        {"counts": [6]},
        {"size": [3], "counts": [6]},
        {"size": [3, 0], "counts": [0]},
        {"size": [-3, -2], "counts": [6]},
        {"size": [3.0, 2.0], "counts": [6]},
        {"size": [True, 6], "counts": [6]},
        {"size": ["3", "2"], "counts": [6]},
        {"size": [10**9, 10**9], "counts": [10**18]},
        {"size": [3, 2], "counts": None},
        {"size": [3, 2], "counts": []},
        {"size": [3, 2], "counts": [5]},
        {"size": [3, 2], "counts": [7]},
        {"size": [3, 2], "counts": [-1, 7]},
        {"size": [3, 2], "counts": [1.5, 4.5]},
        {"size": [3, 2], "counts": ["6"]},
        {"size": [3, 2], "counts": [10**30]},
        {"size": [3, 2], "counts": ""},
        {"size": [3, 2], "counts": "PP3"},
        {"size": [48, 64], "counts": "PP"},
        {"size": [48, 64], "counts": "PP3P"},
        {"size": [48, 64], "counts": "\x00P3"},
        {"size": [48, 64], "counts": "é"},
        {"size": [48, 64], "counts": "o" * 1000 + "0"},
    ],
)
def test_what_is_broken_gives_one_sentence(rle: Any) -> None:
    for read in (decode_mask, run_lengths, mask_area, mask_box):
        with pytest.raises(DataError, match=r"^(the|an) rle"):
            read(rle)


@given(st.text(st.characters(min_codepoint=48, max_codepoint=111), max_size=40))
def test_any_text_is_a_mask_of_its_size_or_an_error(text: str) -> None:
    try:
        runs = run_lengths({"size": [5, 7], "counts": text})
    except DataError:
        return
    assert runs.sum() == 35
    assert (runs >= 0).all()
    assert decode_mask({"size": [5, 7], "counts": text}).sum() == runs[1::2].sum()


def test_a_mask_needs_two_sides() -> None:
    for shape in ((3,), (2, 3, 4), (0, 4)):
        with pytest.raises(DataError, match="a mask has shape"):
            encode_mask(np.zeros(shape))
