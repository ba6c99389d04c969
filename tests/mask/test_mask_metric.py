"""J, F, gIoU, cIoU and tracking scores by hand, and against a slow reading of the definitions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tpo_core.types import Target
from tpo_heads.mask.boundary import contour, contour_accuracy, jaccard
from tpo_heads.mask.metric import MaskMetric
from tpo_heads.mask.rle import encode, tight_box
from tpo_heads.mask.tracking import TrackScores, box_iou

SIZE = (64, 48)


def block(left: int, top: int = 10, width: int = 20, height: int = 16) -> np.ndarray:
    mask = np.zeros((48, 64), dtype=bool)
    mask[top : top + height, left : left + width] = True
    return mask


EMPTY = np.zeros((48, 64), dtype=bool)


def target(masks: dict[int, np.ndarray | None], **fields: Any) -> Target:
    rle = [None if mask is None else encode(mask) for mask in masks.values()]
    return Target.model_validate({"id": "t", "size": SIZE, "frames": list(masks), "rle": rle, **fields})


def answer(masks: dict[int, np.ndarray]) -> dict[str, Any]:
    return {
        "frames": list(masks),
        "rle": [encode(mask) for mask in masks.values()],
        "scores": [1.0] * len(masks),
        "boxes": [tight_box(mask) for mask in masks.values()],
    }


def score(*pairs: tuple[list[dict[str, Any]], Target]) -> dict[str, float]:
    metric = MaskMetric()
    for answers, known in pairs:
        metric.update(answers, known)
    return metric.compute()


def slow_contour(mask: np.ndarray) -> set[tuple[int, int]]:
    height, width = mask.shape
    found = set()
    for y in range(height):
        for x in range(width):
            neighbours = [(y, x + 1), (y + 1, x), (y + 1, x + 1)]
            inside = [(v, u) for v, u in neighbours if v < height and u < width]
            if y == height - 1 or x == width - 1:
                inside = [(v, u) for v, u in inside if v == y or u == x]
            if any(mask[v, u] != mask[y, x] for v, u in inside):
                found.add((y, x))
    return found


def slow_accuracy(mask: np.ndarray, truth: np.ndarray) -> float:
    ours, theirs = slow_contour(mask), slow_contour(truth)
    if not ours or not theirs:
        return float(bool(ours) == bool(theirs))
    radius = math.ceil(0.008 * math.sqrt(mask.shape[0] ** 2 + mask.shape[1] ** 2))

    def near(points: set[tuple[int, int]], goal: set[tuple[int, int]]) -> float:
        hits = [any((y - v) ** 2 + (x - u) ** 2 <= radius**2 for v, u in goal) for y, x in points]
        return sum(hits) / len(hits)

    precision, recall = near(ours, theirs), near(theirs, ours)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


PAIRS = st.tuples(st.integers(1, 14), st.integers(1, 14)).flatmap(lambda shape: st.tuples(hnp.arrays(bool, shape), hnp.arrays(bool, shape)))


@settings(max_examples=60, deadline=None)
@given(PAIRS)
def test_contours_by_the_definition(pair: tuple[np.ndarray, np.ndarray]) -> None:
    mask, truth = pair
    assert {(int(y), int(x)) for y, x in zip(*np.nonzero(contour(mask)))} == slow_contour(mask)
    assert contour_accuracy(mask, truth) == pytest.approx(slow_accuracy(mask, truth))


def test_radius_grows_with_the_image() -> None:
    # 480 x 854: the diagonal is 979.7 and the radius 8: a shift by 8 pixels costs nothing, one by 9 does.
    truth = np.zeros((480, 854), dtype=bool)
    truth[100:200, 100:200] = True
    assert contour_accuracy(np.roll(truth, 8, axis=1), truth) == 1
    assert contour_accuracy(np.roll(truth, 9, axis=1), truth) < 1


def test_empty_and_full() -> None:
    full = ~EMPTY
    assert jaccard(EMPTY, EMPTY) == 1
    assert jaccard(full, EMPTY) == 0
    assert contour_accuracy(EMPTY, EMPTY) == 1
    assert contour_accuracy(block(3), EMPTY) == 0
    # A mask that fills the image has no contour.
    assert contour_accuracy(full, EMPTY) == 1


def test_scores_by_hand() -> None:
    known = target({0: block(10), 2: block(10), 4: None})
    half = block(20)
    scores = score(([answer({0: block(10), 2: half, 4: block(0)})], known))
    # Frame 0: J 1; frame 2: 10 columns of 30: J 1/3; frame 4 is not annotated.
    assert scores["j"] == pytest.approx((1 + 1 / 3) / 2)
    assert scores["f"] == pytest.approx((1 + slow_accuracy(half, block(10))) / 2)
    assert scores["j&f"] == pytest.approx((scores["j"] + scores["f"]) / 2)
    # Pixels of both frames together: (320 + 160) / (320 + 480).
    assert scores["giou"] == scores["ciou"] == pytest.approx(480 / 800)
    assert [scores[f"pr@{level}"] for level in (0.5, 0.6, 0.7)] == [1, 1, 0]
    assert scores["t_acc"] == 1
    assert "n_acc" not in scores
    assert "ao" not in scores


def test_answers_that_are_missing() -> None:
    known = target({0: block(10), 1: block(10)})
    assert score(([], known))["j"] == 0
    assert score(([answer({0: block(10)})], known))["j"] == 0.5


def test_answers_of_one_target_are_their_union() -> None:
    known = target({0: block(0) | block(40)})
    assert score(([answer({0: block(0)}), answer({0: block(40)})], known))["j"] == 1


def test_targets_without_an_object() -> None:
    """GRES: right gives IoU 1 and nothing to cIoU; a mask where there is none gives 0, and its area to the union."""
    nothing, something = target({0: EMPTY}), target({0: block(10)})
    right = score(([answer({0: EMPTY})], nothing), ([answer({0: block(10)})], something))
    assert (right["giou"], right["ciou"], right["n_acc"], right["t_acc"]) == (1, 1, 1, 1)
    wrong = score(([answer({0: block(10)})], nothing), ([answer({0: block(10)})], something))
    assert (wrong["giou"], wrong["ciou"], wrong["n_acc"]) == (0.5, 0.5, 0)
    assert wrong["pr@0.5"] == 1
    missed = score(([], nothing), ([], something))
    assert (missed["giou"], missed["ciou"], missed["n_acc"], missed["t_acc"], missed["pr@0.5"]) == (0.5, 0, 1, 0, 0)


def test_an_empty_metric() -> None:
    assert MaskMetric().compute() == {}
    assert MaskMetric().chance() == {}


def test_chance_is_the_mean_box() -> None:
    metric = MaskMetric()
    metric.update([], target({0: block(10)}))
    metric.update([], target({0: block(20), 1: EMPTY}))
    chance = metric.chance()
    blind = answer({0: block(15)})
    other = answer({0: block(15), 1: block(15)})
    expected = score(([blind], target({0: block(10)})), ([other], target({0: block(20), 1: EMPTY})))
    assert chance == {name: pytest.approx(value) for name, value in expected.items()}
    assert metric.compute()["j"] == 0.25


def tracked(boxes: list[list[float] | None], visible: list[int] | None = None) -> Target:
    fields = {"id": "t", "size": (640, 480), "frames": list(range(len(boxes))), "boxes": boxes}
    return Target.model_validate(fields | ({"visible": visible} if visible is not None else {}))


def boxes_answer(boxes: list[list[float] | None]) -> dict[str, Any]:
    return {"frames": list(range(len(boxes))), "rle": [], "scores": [], "boxes": boxes}


def test_tracking_by_hand() -> None:
    truth: list[list[float] | None] = [[0, 0, 100, 100], [100, 0, 200, 100], None, [200, 0, 300, 100]]
    given: list[list[float] | None] = [[0, 0, 100, 100], [150, 0, 250, 100], [0, 0, 9, 9], None]
    scores = score(([boxes_answer(given)], tracked(truth)))
    # IoU: 1, 1/3, absent (no hit), and the box before repeated: [0, 0, 9, 9] against [200, ..]: 0.
    curve = [sum(value > t for value in (1, 1 / 3, -1, 0)) / 4 for t in np.arange(21) * 0.05]
    assert scores["success_auc"] == pytest.approx(np.mean(curve))
    assert scores["precision"] == 1 / 4
    assert scores["norm_precision"] == 1 / 4
    # GOT-10k: without the first frame and the absent one: 1/3 and nothing.
    assert scores["ao"] == pytest.approx(1 / 6)
    assert scores["sr@0.5"] == 0
    assert "j" not in scores


def test_normalised_precision_divides_by_the_objects_size() -> None:
    scores = TrackScores()
    # 24 pixels off to the right of a box 200 wide and 50 high: not within 20 pixels, but 0.12 of the width.
    scores.add([[24, 0, 224, 50]], [[0, 0, 200, 50]], (640, 480))
    # 24 pixels down: 0.48 of the height.
    scores.add([[0, 24, 200, 74]], [[0, 0, 200, 50]], (640, 480))
    result = scores.compute()
    assert (result["precision"], result["norm_precision"]) == (0, 0.5)
    assert "ao" not in result


def test_success_is_strict_and_sequences_weigh_alike() -> None:
    scores = TrackScores()
    box = [0.0, 0.0, 10.0, 10.0]
    scores.add([box] * 3, [box] * 3, SIZE)
    scores.add([[20.0, 0.0, 30.0, 10.0]], [box], SIZE)
    # 20 of 21 thresholds lie below an IoU of 1.
    assert scores.compute()["success_auc"] == pytest.approx((20 / 21 + 0) / 2)
    assert scores.compute()["ao"] == 1


def test_invisible_boxes_do_not_count() -> None:
    box = [0.0, 0.0, 10.0, 10.0]
    scores = score(([boxes_answer([box, box])], tracked([box, box], visible=[1, 0])))
    assert scores["precision"] == 0.5


def test_answers_are_clipped_for_got10k() -> None:
    scores = TrackScores()
    scores.add([[0, 0, 1, 1], [50, 40, 80, 60]], [[0, 0, 1, 1], [50, 40, 64, 48]], SIZE)
    assert scores.compute()["ao"] == 1


def test_box_iou() -> None:
    assert box_iou([0, 0, 10, 10], [5, 0, 15, 10]) == pytest.approx(50 / 150)
    assert box_iou([0, 0, 10, 10], [10, 0, 20, 10]) == 0
    assert box_iou([5, 5, 5, 5], [5, 5, 5, 5]) == 0
