"""Scores by hand, by the rules of the published evaluators, in 0-1."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tpo_core.types import Target
from tpo_heads.temporal.metric import TemporalMetric, average_precision, clip_scores


def score(*cases: tuple[list[list[float]] | None, dict[str, Any]], highlights: list[list[float]] | None = None) -> dict[str, float]:
    metric = TemporalMetric()
    for windows, fields in cases:
        answers = [] if windows is None else [{"windows": windows, "highlights": highlights or []}]
        metric.update(answers, Target(id="t", head="temporal", **fields))
    return metric.compute()


ONE = {"duration": 10.0, "spans": [[2.0, 6.0]]}


def test_recall_compares_with_greater_or_equal() -> None:
    result = score(([[2.0, 4.0, 0.9]], ONE))  # IoU exactly 0.5
    assert (result["r1@0.3"], result["r1@0.5"], result["r1@0.7"]) == (1, 1, 0)
    assert result["miou"] == 0.5


def test_recall_at_five_looks_at_five_windows_in_the_order_given() -> None:
    far = [[8.0, 9.0, 0.9]] * 4
    assert score(([*far, [2.0, 6.0, 0.1]], ONE))["r5@0.7"] == 1
    assert score(([*far, [8.0, 9.0, 0.5], [2.0, 6.0, 0.1]], ONE))["r5@0.7"] == 0
    assert score(([*far, [2.0, 6.0, 0.1]], ONE))["r1@0.3"] == 0


def test_first_window_counts_against_the_annotated_one_that_it_meets_best() -> None:
    result = score(([[7.0, 9.0, 0.9]], {"duration": 10.0, "spans": [[0.0, 1.0], [7.0, 9.0]]}))
    assert result["r1@0.7"] == result["miou"] == 1


def test_a_query_without_an_answer_is_a_miss_and_never_vanishes() -> None:
    hit = [[2.0, 6.0, 0.9]]
    result = score((hit, ONE), (None, ONE), ([], ONE), (hit, ONE))
    assert result["r1@0.5"] == result["r5@0.3"] == result["miou"] == result["mr_map"] == 0.5


def test_not_there_is_right_where_no_window_is_sure() -> None:
    empty = {"duration": 10.0, "spans": []}
    result = score(([[1.0, 2.0, 0.49]], empty), ([[1.0, 2.0, 0.5]], empty), ([], empty), (None, empty))
    assert result["absent"] == result["r1@0.5"] == result["mr_map"] == 0.75
    assert "absent" not in score(([[1.0, 2.0, 0.4]], ONE))


def test_average_precision_by_hand() -> None:
    spans = np.array([[0.0, 10.0], [20.0, 30.0]])
    # Best first: right, wrong, right -> precision 1 and 2/3 at recall 1/2 and 1.
    windows = [[0.0, 10.0, 0.9], [40.0, 50.0, 0.8], [20.0, 30.0, 0.7]]
    assert average_precision(windows, spans) == pytest.approx((1 + 2 / 3) / 2)
    # The order of scores counts, not that of the list.
    assert average_precision(windows[::-1], spans) == pytest.approx((1 + 2 / 3) / 2)


def test_average_precision_pairs_each_annotated_window_once() -> None:
    spans = np.array([[0.0, 10.0]])
    assert average_precision([[0.0, 10.0, 0.9], [0.0, 10.0, 0.8]], spans) == 1
    assert average_precision([[0.0, 5.0, 0.9], [0.0, 10.0, 0.8]], spans) == pytest.approx((1 + 9 * 0.5) / 10)


def test_average_precision_takes_the_free_window_that_is_met_best() -> None:
    spans = np.array([[0.0, 10.0], [1.0, 11.0]])
    # The first takes [1, 11] (IoU 0.91 over 0.82); the second meets the other by 0.82 up to 0.8.
    windows = [[0.5, 10.9, 0.9], [1.0, 11.0, 0.8]]
    iou = 9 / 11
    expected = np.mean([(1 + (iou >= t)) / 2 if t <= 9.9 / 10.5 else 0.25 for t in np.arange(0.5, 0.94, 0.05)] + [0.25])
    assert average_precision(windows, spans) == pytest.approx(expected)


def test_of_two_windows_met_equally_well_the_last_is_taken_as_in_the_official_script() -> None:
    spans = np.array([[0.0, 10.0], [4.0, 14.0]])
    # The first meets both by 2/3 and takes the second, which the next window would have met fully.
    windows = [[2.0, 12.0, 0.9], [4.0, 14.0, 0.8]]
    assert average_precision(windows, spans) == pytest.approx((4 * 0.5 + 6 * 0.25) / 10)


def test_only_ten_windows_count_for_average_precision() -> None:
    far = [[8.0, 9.0, 0.1]] * 10
    assert score(([*far, [2.0, 6.0, 0.9]], ONE))["mr_map"] == 0


RATED = {
    "duration": 8.0,
    "spans": [[2.0, 4.0]],
    "saliency": {"clip_len": 2.0, "num_clips": 4, "clip_ids": [1, 2], "scores": [[4, 4, 2], [2, 4, 3]]},
}


def test_highlights_by_hand() -> None:
    steps = [[0.0, 2.0, 0.1], [2.0, 4.0, 0.2], [4.0, 6.0, 0.9], [6.0, 8.0, 0.0]]
    result = score(([[2.0, 4.0, 1.0]], RATED), highlights=steps)
    # Very good (4): rater 0 has clip 1 (second: 1/2), rater 1 both (1, 1), rater 2 none (0).
    assert result["hl_map"] == pytest.approx((0.5 + 1 + 0) / 3)
    # Good (3): rater 2 has clip 2, which is first. Fair (2): all have both.
    assert result["hl_map_good"] == pytest.approx((0.5 + 1 + 1) / 3)
    assert result["hl_map_fair"] == 1
    assert result["hit@1"] == 1  # clip 2 is very good for rater 1
    first_clip = [[0.0, 2.0, 2.0], [2.0, 8.0, 0.0]]
    assert score(([[2.0, 4.0, 1.0]], RATED), highlights=first_clip)["hit@1_fair"] == 0


def test_equal_highlight_scores_pass_a_threshold_together() -> None:
    flat = [[0.0, 8.0, 1.0]]
    # Two of four clips are positive for rater 1: precision 1/2; one for rater 0: 1/4.
    assert score(([[2.0, 4.0, 1.0]], RATED), highlights=flat)["hl_map"] == pytest.approx((0.25 + 0.5) / 3)


def test_a_rated_query_without_highlights_is_a_miss() -> None:
    assert score((None, RATED))["hit@1_fair"] == 0


def test_steps_of_another_length_are_averaged_over_the_clips() -> None:
    np.testing.assert_allclose(clip_scores([[0.0, 3.0, 1.0], [3.0, 5.0, 4.0]], 4, 2.0), [1, 2.5, 4, 0])


def test_wrong_event_is_another_event_and_not_the_right_one() -> None:
    fields = {**ONE, "distractors": [[7.0, 9.0], [2.0, 5.0]]}
    assert score(([[7.0, 9.0, 0.9]], fields))["wrong_event@0.5"] == 1
    assert score(([[2.0, 6.0, 0.9]], fields))["wrong_event@0.5"] == 0  # right, though it meets the second distractor too
    assert score((None, fields))["wrong_event@0.5"] == 0


def test_chance_is_the_best_constant_window_on_the_targets_seen() -> None:
    metric = TemporalMetric()
    for start in (0.0, 0.0, 6.0):
        metric.update([], Target(id="t", head="temporal", duration=10.0, spans=[[start, start + 4.0]]))
    chance = metric.chance()
    assert chance["r1@0.7"] == pytest.approx(2 / 3)
    assert chance["miou"] == pytest.approx(2 / 3)
    assert chance.keys() == metric.compute().keys()


def test_chance_scales_with_the_clip() -> None:
    metric = TemporalMetric()
    for duration in (10.0, 100.0):
        metric.update([], Target(id="t", head="temporal", duration=duration, spans=[[0.2 * duration, 0.4 * duration]]))
    assert metric.chance()["r1@0.7"] == 1


def test_nothing_seen_gives_nothing() -> None:
    assert TemporalMetric().compute() == TemporalMetric().chance() == {}
