"""Windows in seconds on the CPU: ranking, suppression, and the pieces of a long clip. Plain numbers; no torch.

A scored window is ``[start, end, score]`` in seconds, as it stands in an answer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Scored = list[float]


def iou_pairwise(left_xx: np.ndarray, right_xx: np.ndarray) -> np.ndarray:
    """Return intersection over union of windows (n, 2) and (m, 2), shape (n, m); 0 where both are empty."""
    left, right = np.asarray(left_xx, dtype=np.float64).reshape(-1, 1, 2), np.asarray(right_xx, dtype=np.float64).reshape(1, -1, 2)
    inter = np.clip(np.minimum(left[..., 1], right[..., 1]) - np.maximum(left[..., 0], right[..., 0]), 0, None)
    union = (left[..., 1] - left[..., 0]) + (right[..., 1] - right[..., 0]) - inter
    iou: np.ndarray = np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)
    return iou


def rank(windows: Sequence[Scored]) -> list[Scored]:
    """Return the windows by falling score; equal scores keep their order."""
    return sorted(windows, key=lambda window: -window[2])


def suppress(windows: Sequence[Scored], most: float) -> list[Scored]:
    """Return ranked windows without those whose IoU with a better kept one is above `most`."""
    kept: list[Scored] = []
    for window in windows:
        if not kept or iou_pairwise(np.array([window[:2]]), np.array([other[:2] for other in kept])).max() <= most:
            kept.append(window)
    return kept


def pieces(duration: float, length: float, overlap: float) -> list[tuple[float, float]]:
    """Return overlapping windows [start, end) that cover a clip; one, where it is not longer than `length`.

    Args:
        overlap: share of a window that the next one repeats; the last one ends with the clip and may repeat more.
    """
    if duration <= length:
        return [(0.0, duration)]
    count = int(np.ceil((duration - length) / (length * (1 - overlap)))) + 1
    return [(start, start + length) for start in np.linspace(0, duration - length, count).tolist()]


def frames_of_piece(times: Sequence[float], start: float, end: float, most: int) -> tuple[int, ...]:
    """Return the frames on screen at the middles of at most `most` equal parts of a piece, ascending, each once."""
    clock = np.asarray(times)
    moments = start + (np.arange(most) + 0.5) * (end - start) / most
    picks = np.searchsorted(clock, moments + 1e-6, side="right") - 1
    return tuple(int(index) for index in np.unique(np.maximum(picks, 0)))


def merge_highlights(parts: Sequence[Sequence[Scored]]) -> list[Scored]:
    """Return the steps of overlapping pieces in order of time: where pieces overlap, the piece with the nearer middle speaks."""
    filled = [part for part in parts if part]
    if not filled:
        return []
    middles = np.array([(part[0][0] + part[-1][1]) / 2 for part in filled])
    kept = []
    for own, part in enumerate(filled):
        for step in part:
            if int(np.abs(middles - (step[0] + step[1]) / 2).argmin()) == own:
                kept.append(step)
    return sorted(kept, key=lambda step: step[0])
