"""The drawing: masks in one colour on the frames that have them, annotated contours in white, notes where nothing is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tpo_core.canvas import Canvas
from tpo_core.testing import ArrayMedia
from tpo_heads.mask.draw import draw
from tpo_heads.mask.rle import encode, tight_box


@pytest.fixture
def canvas() -> Canvas:
    media = ArrayMedia(np.zeros((3, 48, 64, 3), dtype=np.uint8))
    return Canvas(media, dict(enumerate(media.frames([0, 1, 2]))))


def answer_of(masks: dict[int, np.ndarray]) -> dict[str, Any]:
    boxes = [tight_box(mask) for mask in masks.values()]
    return {"frames": list(masks), "rle": [encode(mask) for mask in masks.values()], "scores": [0.5] * len(masks), "boxes": boxes}


def pixels(canvas: Canvas, frame: int, x: int, y: int) -> tuple[int, ...]:
    """Return the colour of a pixel of the medium."""
    image = canvas._image(frame)
    scale = image.width / 64
    colour: tuple[int, ...] = image.getpixel((int((x + 0.5) * scale), int((y + 0.5) * scale)))
    return colour


def test_masks_have_one_colour_through_the_clip(bench: Any, canvas: Canvas) -> None:
    draw(canvas, [answer_of({0: bench.block(10), 1: bench.block(30), 7: bench.block(0)})], None)
    first, second = pixels(canvas, 0, 20, 20), pixels(canvas, 1, 40, 20)
    assert first == second
    assert sum(first) > 0
    assert pixels(canvas, 1, 12, 20) == (0, 0, 0)
    assert pixels(canvas, 2, 20, 20) == (0, 0, 0)


def test_two_objects_have_two_colours(bench: Any, canvas: Canvas) -> None:
    draw(canvas, [answer_of({0: bench.block(2)}), answer_of({0: bench.block(40)})], None)
    assert pixels(canvas, 0, 12, 20) != pixels(canvas, 0, 50, 20)


def test_the_annotation_is_a_white_contour(bench: Any, canvas: Canvas) -> None:
    draw(canvas, [], bench.target({0: bench.block(10), 1: None}))
    red, green, blue = pixels(canvas, 0, 10, 20)
    assert red == green == blue > 100
    assert pixels(canvas, 0, 20, 18) == (0, 0, 0)
    assert pixels(canvas, 1, 10, 20) == (0, 0, 0)


def test_an_absent_object_is_noted(bench: Any, canvas: Canvas) -> None:
    empty = np.zeros((48, 64), dtype=bool)
    plain = canvas.picture().height
    draw(canvas, [answer_of({0: empty, 1: empty})], bench.target({0: empty}))
    assert canvas.picture().height > plain
    assert pixels(canvas, 0, 20, 20) == (0, 0, 0)
