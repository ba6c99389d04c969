"""Scores and drawing of depth maps."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from tpo_core import Metric
from tpo_core.canvas import Canvas
from tpo_core.types import Answer, Target

SIDE = 16


class DepthMetric(Metric):
    """``delta1``: share of known cells within a factor of 1.25; ``abs_rel``: mean of |answer - truth| / truth. No answer: 0 and 1."""

    def __init__(self) -> None:
        self.truth: list[np.ndarray] = []
        self.found: list[np.ndarray | None] = []

    def update(self, answers: Sequence[Answer], target: Target) -> None:
        self.truth.append(np.array(target["grid"], dtype=float))
        self.found.append(np.array(answers[0]["grid"]) if answers else None)

    def compute(self) -> dict[str, float]:
        return _mean([_score(found, truth) for found, truth in zip(self.found, self.truth)])

    def chance(self) -> dict[str, float]:
        """Score the (geometric) mean of all annotated maps."""
        if not self.truth:
            return {}
        logs = np.log(np.stack([resample(truth, (SIDE, SIDE)) for truth in self.truth]))
        known = ~np.isnan(logs)
        overall = np.exp(logs[known].mean())
        mean = np.where(known.any(0), np.exp(np.nansum(logs, 0) / np.maximum(known.sum(0), 1)), overall)
        return _mean([_score(mean, truth) for truth in self.truth])


def draw(canvas: Canvas, answers: Sequence[Answer], target: Target | None) -> None:
    """Show answer and annotation side by side below the picture: the nearer, the brighter."""
    grids = [answer["grid"] for answer in answers] + ([target["grid"]] if target is not None else [])
    if not grids:
        canvas.note("depth: nothing was answered")
        return
    strip = canvas.panel(160, title="depth, near is bright: answer" + (", annotation" if target is not None else ""))
    for place, grid in enumerate(grids):
        near = 1 / np.nan_to_num(np.array(grid, dtype=float), nan=np.inf)
        grey = Image.fromarray((255 * near / max(near.max(), 1e-9)).astype(np.uint8))
        strip.paste(grey.resize((160, 160), Image.Resampling.NEAREST), (168 * place, 0))


def resample(grid: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    rows, columns = (((np.arange(n) + 0.5) * have / n).astype(int) for n, have in zip(shape, grid.shape))
    sampled: np.ndarray = grid[rows][:, columns]
    return sampled


def _score(found: np.ndarray | None, truth: np.ndarray) -> tuple[float, float]:
    known = ~np.isnan(truth)
    if found is None or not known.any():
        return (0.0, 1.0) if found is None else (1.0, 0.0)
    answer, truth = resample(found, truth.shape)[known], truth[known]
    return float((np.maximum(answer / truth, truth / answer) < 1.25).mean()), float((np.abs(answer - truth) / truth).mean())


def _mean(scores: Sequence[tuple[float, float]]) -> dict[str, float]:
    return {name: sum(column) / len(column) for name, column in zip(("delta1", "abs_rel"), zip(*scores))}
