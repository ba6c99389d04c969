"""What stands on the board is checked by its pixels; sizes and colours are derived by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tpo_core.canvas import Canvas, draw_text
from tpo_core.canvas.text import draw_label, text_width, wrap

RED, GREEN = (255, 0, 0), (0, 255, 0)


@dataclass(frozen=True)
class Info:
    size: tuple[int, int]
    kind: Literal["image", "video"] = "image"
    duration: float = 0.0
    times: Sequence[float] = (0.0,)
    key: str = "k"
    path: str = "cat.png"


def grey(width: int, height: int) -> np.ndarray:
    return np.full((height, width, 3), 100, dtype=np.uint8)


def clip(width: int, height: int, count: int) -> Canvas:
    info = Info((width, height), "video", count / 2, tuple(i / 2 for i in range(count)), path="cat.mp4")
    return Canvas(info, {i: grey(width, height) for i in range(count)})


def pixels(image: Image.Image, colour: tuple[int, int, int]) -> set[tuple[int, int]]:
    ys, xs = np.nonzero((np.asarray(image) == colour).all(-1))
    return set(zip(xs.tolist(), ys.tolist()))


def tile(canvas: Canvas, frame: int = 0) -> Image.Image:
    """The drawn frame alone: the board's margin is 12 pixels."""
    width, height = (round(side * canvas.scale) for side in canvas.info.size)
    return canvas.picture().crop((12, 12, 12 + width, 12 + height))


def test_small_frames_grow_by_a_whole_number_and_keep_their_pixels() -> None:
    frame = np.arange(64 * 64 * 3, dtype=np.int64).reshape(64, 64, 3).astype(np.uint8)
    canvas = Canvas(Info((64, 64)), {0: frame})
    assert canvas.scale == 8
    np.testing.assert_array_equal(np.asarray(tile(canvas)), frame.repeat(8, 0).repeat(8, 1))
    assert clip(64, 64, 2).scale == 4


@pytest.mark.parametrize(
    ("size", "count", "longest"), [((1920, 1080), 1, 960), ((1080, 1920), 3, 480), ((1920, 1080), 9, 324), ((3, 1), 2, 258)]
)
def test_the_longest_side_is_readable(size: tuple[int, int], count: int, longest: int) -> None:
    assert round(max(size) * clip(*size, count).scale) == longest


def test_a_box_covers_its_exclusive_pixels_at_the_scale_of_the_picture() -> None:
    canvas = Canvas(Info((64, 64)), {0: grey(64, 64)})
    canvas.draw_boxes(0, [[10, 20, 30, 40]], colour=RED)
    drawn = pixels(tile(canvas), RED)
    xs, ys = [x for x, _ in drawn], [y for _, y in drawn]
    assert (min(xs), min(ys), max(xs), max(ys)) == (80, 160, 239, 319)
    assert (160, 240) not in drawn


def test_boxes_past_the_edge_and_reversed_boxes_are_drawn_inside() -> None:
    canvas = Canvas(Info((64, 64)), {0: grey(64, 64)})
    canvas.draw_boxes(0, [[-10, -10, 5, 5], [60, 60, 40, 50], [200, 200, 300, 300]], colour=[RED, GREEN, (0, 0, 255)])
    assert max(pixels(tile(canvas), RED)) == (39, 39)
    assert (min(pixels(tile(canvas), GREEN)), max(pixels(tile(canvas), GREEN))) == ((320, 400), (479, 479))
    assert min(pixels(tile(canvas), (0, 0, 255))) >= (510, 510)  # a corner of the line's width is left of it


def test_a_mask_is_blended_inside_and_full_at_its_outline() -> None:
    canvas = Canvas(Info((64, 64)), {0: grey(64, 64)})
    mask = np.zeros((64, 64), dtype=bool)
    mask[16:32, 16:32] = True
    canvas.draw_masks(0, mask, colour=RED)
    drawn = np.asarray(tile(canvas))
    assert tuple(drawn[192, 192]) == (169, 55, 55)  # 100 * 0.55 + 255 * 0.45 and 100 * 0.55
    assert {tuple(drawn[128, 128]), tuple(drawn[255, 255]), tuple(drawn[129, 200])} == {RED}
    assert tuple(drawn[127, 127]) == tuple(drawn[256, 256]) == (100, 100, 100)


def test_masks_of_a_large_medium_are_reduced_with_it() -> None:
    canvas = Canvas(Info((1920, 960)), {0: grey(1920, 960)})
    masks = np.zeros((2, 960, 1920), dtype=bool)
    masks[0, :, :960] = True
    canvas.draw_masks(0, masks, colour=[RED, GREEN])
    drawn = np.asarray(tile(canvas))
    assert drawn.shape == (480, 960, 3)
    assert tuple(drawn[200, 470]) == (169, 55, 55)
    assert tuple(drawn[200, 490]) == (100, 100, 100)


def test_points_stand_at_their_place() -> None:
    canvas = Canvas(Info((64, 32)), {0: grey(64, 32)})
    canvas.draw_points(0, [[32, 8]], ["here"], colour=RED)
    assert (256, 64) in pixels(tile(canvas), RED)


def test_nothing_to_draw_draws_nothing() -> None:
    canvas = Canvas(Info((64, 64)), {0: grey(64, 64)})
    before = np.asarray(canvas.picture())
    canvas.draw_boxes(0, [])
    canvas.draw_boxes(0, np.zeros((0, 4)))
    canvas.draw_masks(0, np.zeros((0, 64, 64)))
    canvas.draw_masks(0, np.zeros((64, 64)), ["nowhere"])
    canvas.draw_points(0, [])
    np.testing.assert_array_equal(np.asarray(canvas.picture()), before)


def test_colours_are_taken_in_turn_unless_given() -> None:
    canvas = Canvas(Info((64, 64)), {0: grey(64, 64)})
    first = canvas.next_colour()
    canvas.draw_boxes(0, [[0, 0, 9, 9], [20, 20, 40, 40]])
    assert pixels(tile(canvas), first) == set()
    seen = [canvas.next_colour() for _ in range(4)]
    assert len({first, *seen}) == 5
    assert [canvas.next_colour() for _ in range(2)][1] not in seen


def test_frames_stand_in_rows_with_their_times_below() -> None:
    canvas = clip(64, 64, 10)
    board = canvas.picture()
    # 5 tiles of 256 with gaps of 8 fit into the widest row, so two rows of 5: 256 + a line of 17 each.
    assert canvas.width == 5 * 256 + 4 * 8
    assert board.size == (canvas.width + 24, 2 * (256 + 17) + 8 + 24)
    first, second = (np.asarray(board)[12 + 256 : 12 + 273, left : left + 256] for left in (12, 12 + 264))
    assert (first < 100).any()
    assert (first != second).any()
    assert Canvas(Info((64, 64)), {0: grey(64, 64)}).picture().height == 512 + 24


def test_title_panels_and_notes_stand_in_order() -> None:
    canvas = Canvas(Info((64, 64), "video", 8.0, (0.0, 4.0)), {1: grey(64, 64)})
    strip = canvas.panel(30)
    assert strip.size == (canvas.width, 30)
    strip.paste(RED, (0, 0, round(canvas.time_x(4.0)), 30))
    canvas.note("below")
    plain, titled = canvas.picture(), canvas.picture(title="Where?")
    assert titled.height > plain.height
    ys = [y for _, y in pixels(plain, RED)]
    assert (min(ys), max(ys)) == (12 + 512 + 17 + 8, 12 + 512 + 17 + 8 + 29)
    assert (np.asarray(plain)[max(ys) + 9 :] < 100).any()


def test_the_time_axis_runs_over_the_width_and_is_clipped() -> None:
    canvas = clip(64, 64, 4)
    assert canvas.info.duration == 2.0
    assert canvas.time_x(0.0) == 0
    assert canvas.time_x(2.0) == canvas.time_x(9.0) == canvas.width - 1
    assert canvas.time_x(0.5) == pytest.approx((canvas.width - 1) / 4)
    assert Canvas(Info((9, 9)), {0: grey(9, 9)}).time_x(3.0) == 0


def test_long_questions_are_wrapped_into_the_width() -> None:
    lines = wrap("When does the red circle jump? " * 5 + "x" * 300, width=200, size=13)
    assert len(lines) > 6
    assert all(text_width(line, size=13) <= 200 for line in lines)
    assert "".join(lines).replace(" ", "") == ("Whendoestheredcirclejump?" * 5 + "x" * 300)
    assert wrap("", width=200, size=13) == [""]


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=30), x=st.floats(-200, 400), y=st.floats(-200, 400), width=st.integers(1, 300), height=st.integers(20, 100))
def test_any_label_anywhere_stays_inside(text: str, x: float, y: float, width: int, height: int) -> None:
    image = Image.new("RGB", (width, height), (1, 2, 3))
    draw_label(image, (x, y), text, size=13, ground=RED)
    drawn = pixels(image, RED)
    if drawn:
        xs, ys = [p[0] for p in drawn], [p[1] for p in drawn]
        # The ground is a full rectangle of one line: had it been cut by the edge, it would be lower or narrower than its text.
        assert max(ys) - min(ys) + 1 == 17
        assert max(xs) - min(xs) + 1 <= width


def test_labels_do_not_cover_each_other_while_there_is_room() -> None:
    image = Image.new("RGB", (200, 100), (1, 2, 3))
    taken: list[tuple[int, int, int, int]] = []
    for number in range(5):
        taken.append(draw_label(image, (50, 40), f"thing {number}", size=13, ground=RED, taken=taken))
    assert taken[0][:2] == (50, 40)
    assert sorted(top for _, top, _, _ in taken) == [40 - 2 * 17, 40 - 17, 40, 40 + 17, 40 + 2 * 17]


@pytest.mark.parametrize(
    "text", ["Où est le chat ?", "猫はどこ", "где кот 😀", "a\x00b\nc\td", "\ud800", "\u202eabc", "a\u2029b", "é" * 400]
)
def test_letters_of_any_script_do_not_crash(text: str) -> None:
    canvas = Canvas(Info((64, 64)), {0: grey(64, 64)})
    canvas.draw_boxes(0, [[5, 5, 20, 20]], [text])
    canvas.note(text)
    draw_text(canvas.panel(20, title=text), (5, 5), text)
    assert canvas.picture(title=text).width == canvas.width + 24


def test_accented_letters_have_their_own_shape() -> None:
    shapes = []
    for text in ("é", "ü", "я"):
        image = Image.new("RGB", (20, 20), (255, 255, 255))
        draw_text(image, (0, 0), text)
        shapes.append(image.tobytes())
    assert len(set(shapes)) == 3


@pytest.mark.parametrize("size", [(64, 64), (101, 67)])
def test_a_video_of_the_annotated_frames(tmp_path: Path, size: tuple[int, int]) -> None:
    canvas = clip(*size, 6)
    for frame in canvas.frames:
        canvas.draw_boxes(frame, [[0, 0, size[0], size[1]]], colour=RED)
    canvas.save_video(tmp_path / "out.mp4", fps=4)
    with av.open(str(tmp_path / "out.mp4")) as container:
        stream = container.streams.video[0]
        decoded = [(float(frame.time), frame.to_ndarray(format="rgb24")) for frame in container.decode(stream)]
    assert [time for time, _ in decoded] == pytest.approx([0, 0.25, 0.5, 0.75, 1.0, 1.25])
    red, green, _ = decoded[3][1][0, 50].astype(int)
    assert red > green + 100
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.mp4"]


def test_a_video_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    canvas = clip(64, 64, 2)
    with pytest.raises(ValueError, match="positive, got 0"):
        canvas.save_video(tmp_path / "out.mp4", fps=0)
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(OSError, match="folder"):
        canvas.save_video(tmp_path / "folder.mp4", fps=2)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.mp4"]


def test_wrong_frames_are_refused_in_one_sentence() -> None:
    with pytest.raises(ValueError, match=r"cat\.png: a canvas needs at least one frame"):
        Canvas(Info((4, 4)), {})
    with pytest.raises(ValueError, match="there is no frame 3; frames go from 0 to 0"):
        Canvas(Info((4, 4)), {3: grey(4, 4)})
    with pytest.raises(ValueError, match=r"uint8 of shape \(4, 5, 3\), got uint8 \(5, 4, 3\)"):
        Canvas(Info((5, 4)), {0: grey(4, 5)})
    with pytest.raises(ValueError, match="got float64"):
        Canvas(Info((4, 4)), {0: np.zeros((4, 4, 3))})


def test_wrong_drawings_are_refused_in_one_sentence() -> None:
    canvas = Canvas(Info((8, 4)), {0: grey(8, 4)})
    with pytest.raises(ValueError, match=r"frame 1 is not on the canvas, which holds \[0\]"):
        canvas.draw_boxes(1, [[0, 0, 1, 1]])
    with pytest.raises(ValueError, match=r"boxes must be finite numbers of shape \(N, 4\)"):
        canvas.draw_boxes(0, [[0, 0, 1, float("nan")]])
    with pytest.raises(ValueError, match=r"shape \(N, 4\), got shape \(1, 3\)"):
        canvas.draw_boxes(0, [[0, 0, 1]])
    with pytest.raises(ValueError, match="1 things to draw need 1 labels, got 2"):
        canvas.draw_boxes(0, [[0, 0, 1, 1]], ["a", "b"])
    with pytest.raises(ValueError, match="need one colour or 1, got 2"):
        canvas.draw_boxes(0, [[0, 0, 1, 1]], colour=[RED, GREEN])
    with pytest.raises(ValueError, match=r"masks must be \(N, 4, 8\) like the medium, got \(1, 8, 4\)"):
        canvas.draw_masks(0, np.zeros((8, 4)))
