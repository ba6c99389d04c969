"""Annotated pictures and clips: every head draws its own answers on a canvas of the medium."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tpo_core.canvas import Canvas
from tpo_core.errors import TPOError
from tpo_core.media import sample_frames
from tpo_core.plugins import LoadedHead
from tpo_core.predict.answers import HeadAnswer, Prediction
from tpo_core.types import Media, Target

FRAMES = 8
"""Frames of a clip that a picture shows."""


def draw_picture(
    media: Sequence[Media],
    prediction: Prediction,
    heads: Mapping[str, LoadedHead],
    *,
    title: str,
    targets: Sequence[Target] = (),
    frames: int = FRAMES,
) -> dict[int, Canvas]:
    """Return one canvas per medium that an answer is about; the first medium where there is none.

    Args:
        media: of the question, in reading order.
        heads: by name; one without a `draw` function leaves a note.
        title: for the canvas' notes (the question).
        targets: what was expected, if known: the i-th target of a head goes with its i-th answer.
        frames: how many frames of a clip are shown.
    """
    about = sorted({answer.media for answer in prediction.heads}) or ([0] if media else [])
    canvases = {index: _canvas(media[index], sample_frames(media[index], frames)) for index in about}
    expected = {name: [t for t in targets if t.head == name] for name in heads}
    for answer in prediction.heads:
        target = expected[answer.head].pop(0) if expected.get(answer.head) else None
        _draw(canvases[answer.media], answer, heads[answer.head], target)
    for canvas in canvases.values():
        canvas.note(f"{title}  ->  {prediction.text}")
    return canvases


def draw_clip(media: Media, prediction: Prediction, heads: Mapping[str, LoadedHead], *, index: int, path: Path, most: int = 300) -> Path:
    """Write an annotated MP4 of one medium: every frame, or the first `most` of them, with what the heads answered.

    Raises:
        TPOError: the medium is a picture.
    """
    if media.kind != "video":
        raise TPOError(f"{media.path} is a picture; an annotated clip needs a video")
    shown = range(min(len(media.times), most))
    canvas = _canvas(media, tuple(shown))
    for answer in prediction.heads:
        if answer.media == index:
            _draw(canvas, answer, heads[answer.head], None)
    canvas.save_video(path, fps=len(media.times) / media.duration if media.duration else 1.0)
    return path


def _canvas(media: Media, indices: Sequence[int]) -> Canvas:
    pixels = media.frames(indices)
    return Canvas(media, dict(zip(indices, pixels, strict=True)))


def _draw(canvas: Canvas, answer: HeadAnswer, head: LoadedHead, target: Target | None) -> None:
    if head.draw is None:
        canvas.note(f"{answer.head}: {answer.text}")
        return
    with head.blame():
        head.draw(canvas, list(answer.answers), target)
