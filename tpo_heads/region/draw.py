"""Predicted and annotated boxes on a canvas."""

from __future__ import annotations

from collections.abc import Sequence

from tpo_core.canvas import Canvas
from tpo_core.types import Answer, Target

TRUTH = (255, 255, 255)


def draw(canvas: Canvas, answers: Sequence[Answer], target: Target | None) -> None:
    """Draw the answers' boxes in colour and, where a target is given, the annotated ones in white.

    They stand on the frame that the target names, or on the first frame of the canvas.
    """
    named = target.get("frame") if target is not None else None
    frame = named if named in canvas.frames else canvas.frames[0]
    if target is not None and target.get("boxes"):
        canvas.draw_boxes(frame, target["boxes"], ["annotated"] * len(target["boxes"]), colour=TRUTH)
    if not answers:
        canvas.note("region: no box")
        return
    labels = ["box"] if len(answers) == 1 else [f"box {number}" for number in range(1, len(answers) + 1)]
    canvas.draw_boxes(frame, [answer["box"] for answer in answers], labels)
