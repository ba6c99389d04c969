"""Scores of masks and of boxes followed through clips; they compare records, in pixels of the medium.

J, F, J&F: frames -> target -> mean over targets (MeViS' averaging, all annotated frames). gIoU, cIoU, N-acc, T-acc, Pr@X: as GRES (Liu et
al. 2023) defines them for pictures, with the pixels of a clip's annotated frames taken together. Boxes: see `tpo_heads.mask.tracking`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tpo_core.head import Metric
from tpo_core.types import Answer, Target
from tpo_heads.mask.boundary import contour_accuracy, jaccard
from tpo_heads.mask.rle import decode, encode, fill_box
from tpo_heads.mask.target import FrameTruth, read_truth
from tpo_heads.mask.tracking import TrackScores

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)


class MaskMetric(Metric):
    """J&F and its kin for targets with masks, tracking scores for targets with boxes."""

    def __init__(self) -> None:
        self._j: list[float] = []
        self._f: list[float] = []
        self._overlap: list[int] = []
        self._union: list[int] = []
        self._targeted: list[bool] = []
        self._answered: list[bool] = []
        self._tracks = TrackScores()
        self._seen: list[Target] = []

    def update(self, answers: Sequence[Answer], target: Target) -> None:
        """Add one target; several answers (objects of one phrase) count as their union, none as empty masks."""
        self._seen.append(target)
        width, height = target["size"]
        size = (int(width), int(height))
        truth = read_truth(target)
        masked = {frame: known for frame, known in truth.items() if known.rle is not None}
        if masked:
            self._add_masks({frame: _union(answers, frame, size) for frame in masked}, masked, size)
        if target.get("boxes") is not None:
            boxed = [frame for frame in truth if frame not in masked or truth[frame].box_xyxy is not None or not truth[frame].present]
            real = [truth[frame].box_xyxy if truth[frame].present else None for frame in boxed]
            self._tracks.add([_box(answers, frame) for frame in boxed], real, size)

    def _add_masks(self, drawn: dict[int, np.ndarray], truth: dict[int, FrameTruth], size: tuple[int, int]) -> None:
        j, f, overlap, union, expected, given = [], [], 0, 0, 0, 0
        for frame, known in truth.items():
            real = known.filled(size)
            j.append(jaccard(drawn[frame], real))
            f.append(contour_accuracy(drawn[frame], real))
            overlap += int((drawn[frame] & real).sum())
            union += int((drawn[frame] | real).sum())
            expected += int(real.sum())
            given += int(drawn[frame].sum())
        self._j.append(float(np.mean(j)))
        self._f.append(float(np.mean(f)))
        self._overlap.append(overlap)
        self._union.append(union)
        self._targeted.append(expected > 0)
        self._answered.append(given > 0)

    def compute(self) -> dict[str, float]:
        """Return the scores in 0-1; those that no target speaks of are left out."""
        scores: dict[str, float] = {}
        if self._j:
            overlap, union = np.array(self._overlap), np.array(self._union)
            targeted, answered = np.array(self._targeted), np.array(self._answered)
            iou = np.where(union > 0, overlap / np.maximum(union, 1), 1.0)
            j, f = float(np.mean(self._j)), float(np.mean(self._f))
            ciou = float(overlap.sum() / union.sum()) if union.any() else 1.0
            scores = {"j&f": (j + f) / 2, "j": j, "f": f, "giou": float(iou.mean()), "ciou": ciou}
            if targeted.any():
                scores |= {f"pr@{level}": float((iou[targeted] >= level).mean()) for level in THRESHOLDS}
                scores["t_acc"] = float(answered[targeted].mean())
            if not targeted.all():
                scores["n_acc"] = float((~answered[~targeted]).mean())
        return scores | self._tracks.compute()

    def chance(self) -> dict[str, float]:
        """Return the scores of the targets' mean box (as a share of the image), filled, on every frame of every target."""
        boxes = [
            np.array(box) / np.tile(target["size"], 2)
            for target in self._seen
            for known in read_truth(target).values()
            if (box := known.box((int(target["size"][0]), int(target["size"][1])))) is not None
        ]
        if not self._seen:
            return {}
        blind = MaskMetric()
        for target in self._seen:
            answers = [_constant(np.mean(boxes, axis=0), target)] if boxes else []
            blind.update(answers, target)
        return blind.compute()


def _union(answers: Sequence[Answer], frame: int, size: tuple[int, int]) -> np.ndarray:
    mask = np.zeros((size[1], size[0]), dtype=bool)
    for answer in answers:
        if frame in answer["frames"]:
            mask |= decode(answer["rle"][answer["frames"].index(frame)], size)
    return mask


def _box(answers: Sequence[Answer], frame: int) -> list[float] | None:
    boxes = [box for a in answers if frame in a["frames"] and (box := a["boxes"][a["frames"].index(frame)]) is not None]
    if not boxes:
        return None
    rows = np.array(boxes)
    return [*rows[:, :2].min(axis=0).tolist(), *rows[:, 2:].max(axis=0).tolist()]


def _constant(share_xyxy: np.ndarray, target: Target) -> dict[str, Any]:
    width, height = int(target["size"][0]), int(target["size"][1])
    box = (share_xyxy * np.array([width, height, width, height])).tolist()
    rle = encode(fill_box(box, (width, height)))
    frames = list(target.get("frames", [0]))
    return {"frames": frames, "rle": [rle] * len(frames), "scores": [1.0] * len(frames), "boxes": [box] * len(frames)}
