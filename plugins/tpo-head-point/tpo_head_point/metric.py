"""Scores and drawing of points."""

import math
from collections.abc import Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

from tpo_core import Metric
from tpo_core.canvas import Canvas
from tpo_core.types import Answer, Target

NEAR = 0.1
"""A point is right within this share of the picture's diagonal."""
Points = Sequence[Sequence[float]]


class PointMetric(Metric):
    """``f1`` of each target, averaged; no point where none is annotated scores 1. ``count``: share with the right number of points."""

    def __init__(self) -> None:
        self.rows: list[tuple[Points, Points, Sequence[int]]] = []

    def update(self, answers: Sequence[Answer], target: Target) -> None:
        self.rows.append(([point for answer in answers for point in answer["points"]], target["points"], target["size"]))

    def compute(self) -> dict[str, float]:
        return _mean(self.rows)

    def chance(self) -> dict[str, float]:
        """Score the better of two constants: no point at all, and the middle of the picture."""
        constants = [_mean([(points(size), truth, size) for _, truth, size in self.rows]) for points in (_nothing, _middle)]
        return max(constants, key=lambda scores: scores.get("f1", 0.0))


def draw(canvas: Canvas, answers: Sequence[Answer], target: Target | None) -> None:
    frame = canvas.frames[0]
    if target is not None:
        canvas.draw_points(frame, target["points"], colour=(255, 255, 255))
    found = [point for answer in answers for point in answer["points"]]
    canvas.draw_points(frame, found, [str(number) for number in range(1, len(found) + 1)])


def f1(points: Points, truth: Points, size: Sequence[int]) -> float:
    if not points or not truth:
        return float(len(points) == len(truth))
    gap_PK = np.linalg.norm(np.array(points)[:, None] - np.array(truth)[None], axis=-1)
    hit_PK = gap_PK <= NEAR * math.hypot(*size)
    return 2.0 * float(hit_PK[linear_sum_assignment(hit_PK, maximize=True)].sum()) / (len(points) + len(truth))


def _mean(rows: Sequence[tuple[Points, Points, Sequence[int]]]) -> dict[str, float]:
    if not rows:
        return {}
    counted = sum(len(points) == len(truth) for points, truth, _ in rows)
    return {"f1": sum(f1(*row) for row in rows) / len(rows), "count": counted / len(rows)}


def _nothing(size: Sequence[int]) -> Points:
    return []


def _middle(size: Sequence[int]) -> Points:
    return [[size[0] / 2, size[1] / 2]]
