"""Seconds, steps and windows: hand-worked values."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tpo_heads.temporal.labels import choose_pairs, make_labels
from tpo_heads.temporal.timeline import (
    covered,
    cxw_to_xx,
    giou,
    relative,
    saliency_of_steps,
    steps_in_windows,
    tile_steps,
    xx_to_cxw,
)

T = torch.tensor


def test_windows_go_to_centre_and_width_and_back() -> None:
    torch.testing.assert_close(xx_to_cxw(T([[2.0, 6.0], [0.0, 1.0]])), T([[4.0, 4.0], [0.5, 1.0]]))


@settings(deadline=None)
@given(st.floats(0, 1000), st.floats(0, 1000))
def test_conversion_is_lossless(start: float, width: float) -> None:
    span = T([start, start + width], dtype=torch.float64)
    torch.testing.assert_close(cxw_to_xx(xx_to_cxw(span)), span)


def test_generalised_iou_by_hand() -> None:
    left, right = T([0.0, 2.0]), T([[0.0, 2.0], [1.0, 3.0], [4.0, 6.0], [2.0, 4.0]])
    # same; 1/3, hull 3 = union 3; apart: 0 - (6 - 4) / 6; touching: 0, hull = union.
    torch.testing.assert_close(giou(left, right), T([1.0, 1 / 3, -1 / 3, 0.0]))


def test_generalised_iou_of_points_is_finite() -> None:
    point = T([1.0, 1.0])
    assert float(giou(point, point)) == 0.0
    assert float(giou(point, T([2.0, 2.0]))) == pytest.approx(-1.0)


def test_steps_of_sparse_frames_share_the_time_between_them_and_cover_the_clip() -> None:
    times = T([[[1.0, 1.1], [3.0, 3.1], [5.0, 5.1], [0.0, 0.0]]])
    steps = tile_steps(times, T([[True, True, True, False]]), T([[0.0, 6.0]]))
    expected = T([[[0.0, 2.05], [2.05, 4.05], [4.05, 6.0], [6.0, 6.0]]])
    torch.testing.assert_close(steps, expected)


def test_steps_that_touch_stay_as_they_are() -> None:
    times = T([[[0.0, 2.0], [2.0, 4.0], [4.0, 5.0]]])
    torch.testing.assert_close(tile_steps(times, torch.ones(1, 3, dtype=torch.bool), T([[0.0, 5.0]])), times)


def test_a_clip_shorter_than_a_step_is_one_step_of_its_own_length() -> None:
    steps = tile_steps(T([[[0.0, 0.04]]]), T([[True]]), T([[0.0, 0.3]]))
    torch.testing.assert_close(steps, T([[[0.0, 0.3]]]))


def test_steps_of_a_piece_keep_to_the_piece_on_the_clips_own_clock() -> None:
    steps = tile_steps(T([[[105.0, 105.1], [115.0, 115.1]]]), torch.ones(1, 2, dtype=torch.bool), T([[100.0, 120.0]]))
    torch.testing.assert_close(steps, T([[[100.0, 110.05], [110.05, 120.0]]]))
    origin, length = covered(steps, torch.ones(1, 2, dtype=torch.bool))
    assert (float(origin), float(length)) == (100.0, 20.0)


def test_padding_counts_neither_in_the_covered_time_nor_in_the_positions() -> None:
    steps, valid = T([[[2.0, 4.0], [4.0, 7.0], [0.0, 0.0]]]), T([[True, True, False]])
    origin, length = covered(steps, valid)
    assert (float(origin), float(length)) == (2.0, 5.0)
    torch.testing.assert_close(relative(steps, valid, origin, length), T([[[0.0, 0.4], [0.4, 1.0], [1.0, 1.0]]]))


STEPS = torch.stack((torch.arange(5.0), torch.arange(5.0) + 1), -1)[None]
ALL = torch.ones(1, 5, dtype=torch.bool)


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        ([[1.0, 3.0]], [0, 1, 1, 0, 0]),
        ([[1.5, 3.4]], [0, 1, 1, 0, 0]),  # half of step 1 counts, 0.4 of step 3 does not
        ([[2.2, 2.4]], [0, 0, 1, 0, 0]),  # in no step by half: the step it shares most with
        ([[0.0, 1.0], [4.0, 5.0]], [1, 0, 0, 0, 1]),
        ([[2.9, 3.2]], [0, 0, 0, 1, 0]),
    ],
)
def test_which_steps_lie_in_a_window(spans: list[list[float]], expected: list[int]) -> None:
    inside = steps_in_windows(STEPS, ALL, T([spans]), torch.ones(1, len(spans), dtype=torch.bool))
    assert inside.int().tolist() == [expected]


def test_padded_windows_and_padded_steps_mark_nothing() -> None:
    spans, there = T([[[0.0, 1.0], [0.0, 0.0]]]), T([[True, False]])
    assert steps_in_windows(STEPS, ALL, spans, there).int().tolist() == [[1, 0, 0, 0, 0]]
    valid = T([[True, True, False, False, False]])
    assert steps_in_windows(STEPS, valid, T([[[3.0, 4.0]]]), T([[True]])).int().tolist() == [[0, 1, 0, 0, 0]]
    assert steps_in_windows(STEPS, ALL, torch.zeros(1, 0, 2), torch.zeros(1, 0, dtype=torch.bool)).sum() == 0


def test_saliency_of_clips_is_averaged_over_the_time_of_a_step() -> None:
    scores, seconds = T([[12.0, 0.0, 6.0]]), T([2.0])
    level = saliency_of_steps(T([[[0.0, 2.0], [1.0, 3.0], [3.0, 6.0]]]), torch.ones(1, 3, dtype=torch.bool), scores, seconds)
    torch.testing.assert_close(level, T([[12.0, 6.0, 4.0]]))


def test_labels_are_normalised_by_the_covered_time_and_clipped_to_it() -> None:
    targets = {
        "spans": T([[[2.0, 4.0], [9.0, 12.0], [0.0, 0.0]]]),
        "spans_valid": T([[True, True, False]]),
        "saliency": torch.zeros(1, 0),
        "clip_seconds": T([0.0]),
        "draws": torch.full((1, 4), 0.5),
    }
    steps = torch.stack((torch.arange(10.0), torch.arange(10.0) + 1), -1)[None]
    labels = make_labels(steps, torch.ones(1, 10, dtype=torch.bool), T([0.0]), T([10.0]), targets)
    torch.testing.assert_close(labels["windows"][:, :2], T([[[0.3, 0.2], [0.95, 0.1]]]))
    assert labels["windows_valid"].tolist() == [[True, True, False]]
    assert labels["level"].tolist() == [[0, 0, 1, 1, 0, 0, 0, 0, 0, 1]]
    assert labels["pairs"].all()
    assert (labels["level"].gather(1, labels["high"]) > labels["level"].gather(1, labels["low"])).all()


def test_pairs_take_the_best_against_the_worst_clip_of_the_moment_where_scores_differ() -> None:
    level = T([[0.0, 3.0, 12.0, 5.0, 0.0]])
    high, low, pairs = choose_pairs(level, ALL, torch.rand(1, 4))
    assert (int(high[0, 0]), int(low[0, 0])) == (2, 1)
    assert int(low[0, 1]) in (0, 4)
    assert pairs.all()


@settings(deadline=None)
@given(st.lists(st.floats(0, 0.999), min_size=4, max_size=4), st.integers(1, 4))
def test_pairs_are_different_clips_of_the_right_kind(draws: list[float], size: int) -> None:
    level = torch.zeros(1, 5)
    level[0, :size] = 1
    high, low, pairs = choose_pairs(level, ALL, T([draws]))
    assert (high < size).all()
    assert (low >= size).all()
    assert pairs.all()
    assert size == 1 or high[0, 0] != high[0, 1]
    assert size == 4 or low[0, 0] != low[0, 1]


def test_pairs_do_not_count_without_a_moment_or_without_other_clips() -> None:
    assert not choose_pairs(torch.zeros(1, 5), ALL, torch.rand(1, 4))[2].any()
    assert not choose_pairs(torch.ones(1, 5), ALL, torch.rand(1, 4))[2].any()
