"""Scores of moments and highlights against the annotation as written, in 0-1.

Rules: docs/temporal-head.md. IoU is compared by ``>=``; a query without an answer is a miss. MR-mAP and HL-mAP / HIT@1 follow the
QVHighlights evaluator. A target without a window scores 1 where no window of the answer is sure (0.5 or more), else 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tpo_core.head import Metric
from tpo_core.types import Answer, Target
from tpo_heads.temporal.windows import Scored, iou_pairwise

RECALL_AT = (0.3, 0.5, 0.7)
AP_AT = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
AP_WINDOWS = 10
SURE = 0.5
GRADES = {"": 4, "_good": 3, "_fair": 2}
"""Suffix of a highlight score -> least score of a positive clip (very good, good, fair)."""
GRID = 20
"""The best constant window is searched among those whose ends are multiples of 1/GRID of the clip."""


@dataclass(frozen=True)
class _Case:
    windows: list[Scored]
    highlights: list[Scored]
    spans: np.ndarray
    distractors: np.ndarray
    duration: float
    saliency: dict[str, Any] | None


class TemporalMetric(Metric):
    """``r1@t``, ``r5@t``, ``miou``, ``mr_map``; of rated clips ``hl_map``, ``hit@1``; with distractors ``wrong_event@0.5`` (less is
    better); of targets without a window ``absent``.
    """

    def __init__(self) -> None:
        self._cases: list[_Case] = []

    def update(self, answers: Sequence[Answer], target: Target) -> None:
        """Add one target with the answers given for it; the first counts (the head gives one for a target)."""
        answer = answers[0] if answers else {"windows": [], "highlights": []}
        spans = np.asarray(target["spans"], dtype=np.float64).reshape(-1, 2)
        others = np.asarray(target.get("distractors") or [], dtype=np.float64).reshape(-1, 2)
        ends = [float(values.max()) for values in (spans, others) if values.size] + [window[1] for window in answer["windows"]]
        duration = float(target.get("duration") or max(ends, default=1.0))
        saliency = target.get("saliency")
        rated = saliency.model_dump() if hasattr(saliency, "model_dump") else saliency
        self._cases.append(_Case(answer["windows"], answer["highlights"], spans, others, duration, rated))

    def compute(self) -> dict[str, float]:
        """Return the scores."""
        return _score([(case, case.windows, case.highlights) for case in self._cases])

    def chance(self) -> dict[str, float]:
        """Return what the best constant window scores: the share of the clip that has the highest R1@0.5 on the targets seen.

        It is searched on these very targets, so it flatters chance. The highlight curve is 1 inside that window.
        """
        if not self._cases:
            return {}
        start, end = _best_constant(self._cases)
        answers = []
        for case in self._cases:
            window = [start * case.duration, end * case.duration, 1.0]
            answers.append((case, [window], [window]))
        return _score(answers)


def _best_constant(cases: Sequence[_Case]) -> tuple[float, float]:
    """Return start and end in 0-1; of equally good ones the one with the higher mean IoU."""
    edges = np.arange(GRID + 1) / GRID
    candidates = np.array([(a, b) for a in edges for b in edges if b > a])
    hits, total = np.zeros(len(candidates)), np.zeros(len(candidates))
    for case in cases:
        if len(case.spans):
            best = iou_pairwise(candidates * case.duration, case.spans).max(1)
            hits += best >= 0.5
            total += best
    start, end = candidates[int((hits + total / (2 * len(cases))).argmax())]
    return float(start), float(end)


def _score(answers: Sequence[tuple[_Case, Sequence[Scored], Sequence[Scored]]]) -> dict[str, float]:
    rows = [_score_windows(case, windows) for case, windows, _ in answers]
    rows_hl = [_score_highlights(case.saliency, highlights) for case, _, highlights in answers if case.saliency is not None]
    rows_wrong = [_wrong_event(case, windows) for case, windows, _ in answers if len(case.distractors)]
    rows_absent = [{"absent": _says_absent(windows)} for case, windows, _ in answers if not len(case.spans)]
    scores: dict[str, float] = {}
    for group in (rows, rows_hl, rows_wrong, rows_absent):
        if group:
            scores |= {name: float(np.mean([row[name] for row in group])) for name in group[0]}
    return scores


def _says_absent(windows: Sequence[Scored]) -> float:
    return float(all(window[2] < SURE for window in windows))


def _score_windows(case: _Case, windows: Sequence[Scored]) -> dict[str, float]:
    names = [f"r{k}@{t}" for k in (1, 5) for t in RECALL_AT]
    if not len(case.spans):
        return dict.fromkeys([*names, "miou", "mr_map"], _says_absent(windows))
    if not windows:
        return dict.fromkeys([*names, "miou", "mr_map"], 0.0)
    best = iou_pairwise(np.array([window[:2] for window in windows]), case.spans).max(1)
    row = {f"r{k}@{t}": float((best[:k] >= t).any()) for k in (1, 5) for t in RECALL_AT}
    return {**row, "miou": float(best[0]), "mr_map": average_precision(windows[:AP_WINDOWS], case.spans)}


def _wrong_event(case: _Case, windows: Sequence[Scored]) -> dict[str, float]:
    """Whether the first window meets another event of the clip and not the one that was asked for."""
    if not windows:
        return {"wrong_event@0.5": 0.0}
    first = np.array([windows[0][:2]])
    right = bool(len(case.spans)) and bool(iou_pairwise(first, case.spans).max() >= 0.5)
    return {"wrong_event@0.5": float(not right and iou_pairwise(first, case.distractors).max() >= 0.5)}


def average_precision(windows: Sequence[Scored], spans: np.ndarray) -> float:
    """Return the mean over IoU 0.5, 0.55, .. 0.95 of the interpolated average precision (VOC 2011) of one query's windows."""
    ranked = sorted(windows, key=lambda window: -window[2])
    iou = iou_pairwise(np.array([window[:2] for window in ranked]), spans)
    # Of equally good ones the last, as the official evaluator's reversed sort has it.
    order = np.argsort(iou, axis=1, kind="stable")[:, ::-1]
    return float(np.mean([_precision_at(iou, order, least) for least in AP_AT]))


def _precision_at(iou: np.ndarray, order: np.ndarray, least: float) -> float:
    """Each window takes the free annotated one that it meets best, if IoU is at least `least`."""
    taken: set[int] = set()
    hits = np.zeros(len(iou))
    for row in range(len(iou)):
        free = [int(column) for column in order[row] if iou[row, column] >= least and int(column) not in taken]
        if free:
            taken.add(free[0])
            hits[row] = 1
    found = hits.cumsum()
    precision = np.maximum.accumulate((found / np.arange(1, len(hits) + 1))[::-1])[::-1]
    return float((precision * hits).sum() / iou.shape[1])


def _score_highlights(saliency: dict[str, Any], highlights: Sequence[Scored]) -> dict[str, float]:
    """Return HL-mAP and HIT@1 for each grade; the raters' means."""
    count = int(saliency["num_clips"])
    raters = max((len(row) for row in saliency["scores"]), default=1)
    truth = np.zeros((count, raters))
    for clip, row in zip(saliency["clip_ids"], saliency["scores"]):
        truth[clip] = row
    scores = clip_scores(highlights, count, float(saliency["clip_len"]))
    first = int(scores.argmax())
    out: dict[str, float] = {}
    for suffix, least in GRADES.items():
        positive = truth >= least
        out[f"hl_map{suffix}"] = float(np.mean([_ranked_precision(positive[:, rater], scores) for rater in range(raters)]))
        out[f"hit@1{suffix}"] = float(bool(highlights) and positive[first].any())
    return out


def clip_scores(highlights: Sequence[Scored], count: int, clip_len: float) -> np.ndarray:
    """Return one score for each clip of the annotation: the mean over the clip's time of the steps that cover it; 0 where none does."""
    if not highlights:
        return np.zeros(count)
    steps = np.asarray(highlights, dtype=np.float64)
    starts = np.arange(count)[:, None] * clip_len
    shared = np.clip(np.minimum(starts + clip_len, steps[:, 1]) - np.maximum(starts, steps[:, 0]), 0, None)
    total = shared.sum(1)
    scores: np.ndarray = np.divide(shared @ steps[:, 2], total, out=np.zeros(count), where=total > 0)
    return scores


def _ranked_precision(positive: np.ndarray, scores: np.ndarray) -> float:
    """Return the mean, over the thresholds at which recall grows, of the best precision at that recall or more."""
    if positive.all() or not positive.any():
        return float(positive.all())
    order = np.argsort(-scores, kind="stable")
    hits = positive[order].cumsum()
    # Clips with equal scores pass a threshold together.
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    hits, seen = hits[last], last + 1
    precision = np.maximum.accumulate((hits / seen)[::-1])[::-1]
    return float(precision[np.diff(hits, prepend=0) > 0].mean())
