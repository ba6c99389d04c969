"""The picture: bars and the curve stand where their seconds are."""

from __future__ import annotations

import numpy as np

from tpo_core.canvas import Canvas
from tpo_core.testing import ArrayMedia
from tpo_core.types import Target
from tpo_heads.temporal.draw import CURVE, TRUTH, draw


def canvas() -> Canvas:
    media = ArrayMedia(np.full((8, 32, 48, 3), 128, np.uint8), duration=8.0)
    return Canvas(media, {i: media.frames([i])[0] for i in range(8)})


def bar(picture: np.ndarray, colour: tuple[int, int, int]) -> tuple[int, int]:
    """First and last column of the widest run of one colour in any row."""
    best = (0, 0)
    for row in (picture == np.array(colour)).all(-1):
        columns = np.flatnonzero(row)
        for run in np.split(columns, np.flatnonzero(np.diff(columns) > 1) + 1):
            if len(run) and run[-1] - run[0] > best[1] - best[0]:
                best = (int(run[0]), int(run[-1]))
    return best


def test_annotated_and_predicted_windows_stand_at_their_seconds() -> None:
    board = canvas()
    colour = canvas().next_colour()
    steps = [[float(i), float(i + 1), float(i in (2, 3))] for i in range(8)]
    answer = {"windows": [[2.0, 4.0, 0.9], [5.0, 6.0, 0.1]], "highlights": steps}
    draw(board, [answer], Target(id="t", head="temporal", duration=8.0, spans=[[4.0, 8.0]]))
    picture = np.asarray(board.picture(title="When does it jump?"))
    margin = (picture.shape[1] - board.width) // 2
    left, right = bar(picture, colour)
    assert abs(left - margin - board.time_x(2.0)) <= 2
    assert abs(right - margin - board.time_x(4.0)) <= 2
    band = picture[picture.shape[0] // 2 :]
    left, right = bar(band[: band.shape[0] // 2], TRUTH) if bar(band, TRUTH) == (0, 0) else bar(band, TRUTH)
    assert abs(right - margin - board.time_x(8.0)) <= 2
    curve = (picture == np.array(CURVE)).all(-1)
    high = np.flatnonzero(curve.any(0))
    assert high.min() - margin <= 2


def test_not_there_and_unsure_are_drawn_too() -> None:
    for answers in ([], [{"windows": [], "highlights": []}], [{"windows": [[1.0, 2.0, 0.2]], "highlights": [[0.0, 8.0, 0.0]]}]):
        board = canvas()
        draw(board, answers, Target(id="t", head="temporal", spans=[]))
        draw(board, answers, None)
        assert np.asarray(board.picture()).shape[0] > 60
