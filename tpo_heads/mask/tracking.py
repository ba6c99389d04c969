"""Single-object tracking scores of boxes: LaSOT's success, precision and normalised precision, GOT-10k's AO and SR.

Boxes are [x1, y1, x2, y2] in pixels, exclusive, or None where the object is not there (or not answered). Frames come in order.

LaSOT (Fan et al. 2019, its MATLAB kit): per sequence, over all annotated frames; frames without the object are no hits but stay in the
denominator; an empty answer repeats the box before it. GOT-10k (Huang et al. 2019): the first frame and frames without the object are
dropped, answers are clipped to the image, and the frames of all sequences are pooled. The kits copy the given box into the answer's first
frame; here it is scored as answered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

Box = Sequence[float] | None
SUCCESS = np.arange(21) * 0.05
PIXELS = 20.0
SHARE = 0.2


@dataclass
class TrackScores:
    """Sums over sequences; `compute` divides."""

    curves: list[np.ndarray] = field(default_factory=list)
    near: list[float] = field(default_factory=list)
    near_share: list[float] = field(default_factory=list)
    overlaps: list[float] = field(default_factory=list)

    def add(self, answered: Sequence[Box], truth: Sequence[Box], size: tuple[int, int]) -> None:
        """Add one sequence.

        Args:
            answered, truth: boxes of the annotated frames, in order. size: (width, height).
        """
        last: Box = None
        iou, distance, share = [], [], []
        for given, real in zip(answered, truth, strict=True):
            last = given if given is not None else last
            if real is None or last is None:
                iou.append(-1.0)
                distance.append(np.inf)
                share.append(np.inf)
                continue
            iou.append(box_iou(last, real))
            offset = _centre(last) - _centre(real)
            distance.append(float(np.hypot(*offset)))
            share.append(float(np.hypot(*(offset / np.array([real[2] - real[0], real[3] - real[1]])))))
        self.curves.append((np.array(iou)[:, None] > SUCCESS[None]).mean(axis=0))
        self.near.append(float((np.array(distance) <= PIXELS).mean()))
        self.near_share.append(float((np.array(share) <= SHARE).mean()))
        for given, real in list(zip(answered, truth))[1:]:
            if real is not None:
                self.overlaps.append(box_iou(_clip(given, size), real) if given is not None else 0.0)

    def compute(self) -> dict[str, float]:
        """Return the scores in 0-1; {} without a sequence, no AO where only first frames are annotated."""
        if not self.curves:
            return {}
        scores = {
            "success_auc": float(np.mean([curve.mean() for curve in self.curves])),
            "precision": float(np.mean(self.near)),
            "norm_precision": float(np.mean(self.near_share)),
        }
        if self.overlaps:
            overlaps = np.array(self.overlaps)
            scores |= {"ao": float(overlaps.mean()), "sr@0.5": float((overlaps > 0.5).mean()), "sr@0.75": float((overlaps > 0.75).mean())}
        return scores


def box_iou(a_xyxy: Sequence[float], b_xyxy: Sequence[float]) -> float:
    """Return the IoU of two boxes; one without an extent gives 0."""
    width = min(a_xyxy[2], b_xyxy[2]) - max(a_xyxy[0], b_xyxy[0])
    height = min(a_xyxy[3], b_xyxy[3]) - max(a_xyxy[1], b_xyxy[1])
    if width <= 0 or height <= 0:
        return 0.0
    overlap = width * height
    return overlap / (_area(a_xyxy) + _area(b_xyxy) - overlap)


def _area(box_xyxy: Sequence[float]) -> float:
    return (box_xyxy[2] - box_xyxy[0]) * (box_xyxy[3] - box_xyxy[1])


def _centre(box_xyxy: Sequence[float]) -> np.ndarray:
    return np.array([(box_xyxy[0] + box_xyxy[2]) / 2, (box_xyxy[1] + box_xyxy[3]) / 2])


def _clip(box_xyxy: Sequence[float], size: tuple[int, int]) -> list[float]:
    return [min(max(value, 0.0), float(size[axis % 2])) for axis, value in enumerate(box_xyxy)]
