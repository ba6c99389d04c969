"""Predicted and annotated windows and the highlight curve on a canvas, along the clip's time."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw

from tpo_core.canvas import Canvas, Colour, draw_text
from tpo_core.types import Answer, Target

TRUTH: Colour = (60, 60, 60)
FAINT: Colour = (200, 200, 200)
CURVE: Colour = (0, 114, 178)
ROW, GAP, TEXT = 20, 4, 13
CURVE_HEIGHT = 70
MOST_WINDOWS = 3
SURE = 0.5


def draw(canvas: Canvas, answers: Sequence[Answer], target: Target | None) -> None:
    """Draw, below the frames: a time axis, each answer's best windows, its highlight curve and, where known, the annotated windows."""
    _draw_axis(canvas)
    if target is not None:
        spans = target["spans"]
        title = "annotated" if spans else "annotated: it does not happen"
        _draw_bars(canvas, title, [[*span, 1.0] for span in spans], TRUTH, labelled=False)
    if not answers:
        canvas.note("temporal: no moment")
    for answer in answers:
        windows = answer["windows"]
        sure = [window for window in windows if window[2] >= SURE][:MOST_WINDOWS]
        title = "predicted" if sure else "probably not there; best guess" if windows else "predicted: not there"
        _draw_bars(canvas, title, sure or windows[:1], canvas.next_colour(), labelled=True)
        if answer["highlights"]:
            _draw_curve(canvas, answer["highlights"])


def _draw_axis(canvas: Canvas) -> None:
    panel = canvas.panel(ROW)
    pen = ImageDraw.Draw(panel)
    pen.line((0, 4, panel.width, 4), fill=TRUTH)
    step = _tick(canvas.info.duration)
    for index in range(int(canvas.info.duration / step + 1e-6) + 1):
        x = canvas.time_x(index * step)
        pen.line((x, 0, x, 8), fill=TRUTH)
        draw_text(panel, (x + 3, 5), f"{index * step:g} s", size=10)


def _tick(duration: float) -> float:
    """Return a round step that gives at most eight ticks."""
    least = max(duration, 1e-3) / 8
    power = 1e-4
    while True:
        for factor in (1, 2, 5):
            if factor * power >= least:
                return factor * power
        power *= 10


def _draw_bars(canvas: Canvas, title: str, windows: Sequence[Sequence[float]], colour: Colour, *, labelled: bool) -> None:
    """One row for each window, the best on top; with a label that says time and score."""
    panel = canvas.panel(max(len(windows), 1) * (ROW + GAP) - GAP if windows else 4, title=title)
    pen = ImageDraw.Draw(panel)
    for row, (start, end, score) in enumerate(windows):
        left, right, top = canvas.time_x(start), canvas.time_x(end), row * (ROW + GAP)
        pen.rectangle((left, top, max(right, left + 2), top + ROW - 1), fill=colour if row == 0 or not labelled else _lighter(colour))
        text = f"{start:.1f}-{end:.1f} s" + (f" ({score:.2f})" if labelled else "")
        _write_beside(panel, left, right, top, text)


def _write_beside(panel: Image.Image, left: float, right: float, top: int, text: str) -> None:
    """Write right of a bar, or left of it where the right has no room."""
    room = 7.5 * len(text)
    x = right + 6 if right + room < panel.width else max(left - room, 0)
    draw_text(panel, (x, top + 2), text, size=TEXT)


def _draw_curve(canvas: Canvas, highlights: Sequence[Sequence[float]]) -> None:
    """Draw the scores as a filled curve between their least and their greatest value."""
    panel = canvas.panel(CURVE_HEIGHT, title="highlights")
    pen = ImageDraw.Draw(panel)
    scores = [step[2] for step in highlights]
    low, span = min(scores), max(max(scores) - min(scores), 1e-6)
    points = []
    for start, end, score in highlights:
        y = (CURVE_HEIGHT - 4) * (1 - (score - low) / span) + 2
        points += [(canvas.time_x(start), y), (canvas.time_x(end), y)]
    pen.polygon([(points[0][0], CURVE_HEIGHT), *points, (points[-1][0], CURVE_HEIGHT)], fill=FAINT)
    pen.line(points, fill=CURVE, width=2)


def _lighter(colour: Colour) -> Colour:
    red, green, blue = ((value + 255) // 2 for value in colour)
    return red, green, blue
