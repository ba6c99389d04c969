"""Scores of boxes against the annotation as written: plain IoU, ``>=``, per target."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from tpo_core.head import Metric
from tpo_core.types import Answer, Target
from tpo_heads.boxes import denormalise, iou_pairwise, normalise


class RegionMetric(Metric):
    """``acc@0.5``, ``acc@0.75``, ``miou`` over all targets; ``n_acc`` over those without a box, where there are any.

    Answers are matched to the k boxes of a target so that the sum of IoU is largest; the target's score is the sum (of hits, of IoU) over
    max(k, answers), so that a missing box and a box too many both cost. With one box and one answer this is the RefCOCO measure. A target
    without boxes scores 1 if nothing was answered, else 0.
    """

    def __init__(self) -> None:
        self._answered: list[Tensor] = []
        self._annotated: list[Tensor] = []
        self._sizes: list[tuple[int, int]] = []

    def update(self, answers: Sequence[Answer], target: Target) -> None:
        """Add one target (k boxes) with the answers given for it."""
        self._answered.append(_boxes([answer["box"] for answer in answers]))
        self._annotated.append(_boxes(target["boxes"]))
        width, height = target["size"]
        self._sizes.append((width, height))

    def compute(self) -> dict[str, float]:
        """Return the scores in 0-1."""
        return _score(self._answered, self._annotated)

    def chance(self) -> dict[str, float]:
        """Return what one constant box scores: the mean of the annotated boxes as shares of their images."""
        shares = [normalise(boxes, size) for boxes, size in zip(self._annotated, self._sizes) if len(boxes)]
        if not shares:
            return _score([_boxes([])] * len(self._annotated), self._annotated)
        mean_14 = torch.cat(shares).mean(0, keepdim=True)
        return _score([denormalise(mean_14, size) for size in self._sizes], self._annotated)


def match(answered_xyxy: Tensor, annotated_xyxy: Tensor) -> list[float]:
    """Return the IoU of each pair of the assignment with the largest sum; length min(answers, boxes)."""
    iou = iou_pairwise(answered_xyxy, annotated_xyxy)
    rows, columns = linear_sum_assignment(iou.numpy(), maximize=True)
    pairs: list[float] = iou[rows, columns].tolist()
    return pairs


def _score(answered: Sequence[Tensor], annotated: Sequence[Tensor]) -> dict[str, float]:
    if not annotated:
        return {}
    half, three_quarters, mean = [], [], []
    for boxes, truth in zip(answered, annotated):
        most = max(len(boxes), len(truth))
        pairs = match(boxes, truth) if most else [1.0]
        half.append(sum(value >= 0.5 for value in pairs) / max(most, 1))
        three_quarters.append(sum(value >= 0.75 for value in pairs) / max(most, 1))
        mean.append(sum(pairs) / max(most, 1))
    scores = {"acc@0.5": _mean(half), "acc@0.75": _mean(three_quarters), "miou": _mean(mean)}
    empty = [score for score, truth in zip(half, annotated) if not len(truth)]
    return {**scores, "n_acc": _mean(empty)} if empty else scores


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _boxes(rows: Sequence[Sequence[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, 4)
