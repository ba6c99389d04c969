"""Predicted masks and annotated contours on a canvas. H W are pixels of the medium."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import binary_erosion

from tpo_core.canvas import Canvas, Colour
from tpo_core.types import Answer, Target
from tpo_heads.mask.rle import decode
from tpo_heads.mask.target import read_truth

TRUTH: Colour = (255, 255, 255)


def draw(canvas: Canvas, answers: Sequence[Answer], target: Target | None) -> None:
    """Draw each answer's masks in one colour with their scores on every frame of the canvas, and annotated contours or boxes in white."""
    if target is not None:
        _draw_truth(canvas, target)
    if not answers:
        canvas.note("mask: no mask")
    for number, answer in enumerate(answers, start=1):
        colour = canvas.next_colour()
        name = "mask" if len(answers) == 1 else f"mask {number}"
        places = {frame: place for place, frame in enumerate(answer["frames"])}
        shown = [frame for frame in canvas.frames if frame in places]
        for frame in shown:
            place = places[frame]
            mask_HW = decode(answer["rle"][place], canvas.info.size)
            if mask_HW.any():
                canvas.draw_masks(frame, mask_HW, [f"{name} {answer['scores'][place]:.2f}"], colour=colour)
        if shown and all(answer["boxes"][places[frame]] is None for frame in shown):
            canvas.note(f"{name}: not there on the frames shown")


def _draw_truth(canvas: Canvas, target: Target) -> None:
    size = canvas.info.size
    for frame, known in read_truth(target).items():
        if frame not in canvas.frames or not known.present:
            continue
        mask_HW = known.mask(size)
        if mask_HW is not None:
            canvas.draw_masks(frame, _contour(mask_HW), colour=TRUTH)
        elif known.box_xyxy is not None:
            canvas.draw_boxes(frame, [known.box_xyxy], colour=TRUTH)


def _contour(mask_HW: np.ndarray) -> np.ndarray:
    width = max(1, round(max(mask_HW.shape) / 300))
    contour: np.ndarray = mask_HW & ~binary_erosion(mask_HW, iterations=width)
    return contour
