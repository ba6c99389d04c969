"""Points, boxes, masks and spans go to model space and come back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpo_core.media import Transform

SIZES = st.tuples(st.integers(1, 60), st.integers(1, 60))


@st.composite
def transforms(draw: st.DrawFn, size: tuple[int, int] | None = None) -> Transform:
    """One to four steps from a medium of any size."""
    record = Transform.identity(size or draw(SIZES))
    for step in draw(st.lists(st.sampled_from(["resize", "pad", "crop", "letterbox", "cut", "rate"]), min_size=1, max_size=4)):
        if step == "resize":
            record = record.resize(draw(SIZES))
        elif step == "letterbox":
            record = record.letterbox(draw(SIZES))
        elif step == "pad":
            left, top, right, bottom = (draw(st.integers(0, 9)) for _ in range(4))
            record = record.pad(left=left, top=top, right=right, bottom=bottom)
        elif step == "crop":
            width, height = (draw(st.integers(1, side)) for side in record.target_size)
            left, top = draw(st.integers(0, record.target_size[0] - width)), draw(st.integers(0, record.target_size[1] - height))
            record = record.crop(left=left, top=top, width=width, height=height)
        elif step == "cut":
            record = record.cut(draw(st.floats(0, 20)))
        else:
            record = record.rate(draw(st.floats(0.1, 60)))
    return record


numbers = st.lists(st.floats(-1000, 1000), min_size=4, max_size=4)


@given(transforms(), st.lists(numbers, max_size=3))
def test_points_boxes_and_spans_come_back(record: Transform, rows: list[list[float]]) -> None:
    boxes = np.array(rows).reshape(-1, 4)
    np.testing.assert_allclose(record.boxes_to_original(record.boxes_to_model(boxes)), boxes, atol=1e-6)
    points = boxes.reshape(-1, 2, 2)
    np.testing.assert_allclose(record.points_to_original(record.points_to_model(points)), points, atol=1e-6)
    np.testing.assert_allclose(record.spans_to_original(record.spans_to_model(points)), points, atol=1e-6)
    np.testing.assert_allclose(record.boxes_to_model(boxes).reshape(-1, 2, 2), record.points_to_model(points))


@given(st.data())
def test_two_records_joined_do_what_they_do_one_by_one(data: st.DataObject) -> None:
    first = data.draw(transforms())
    second = data.draw(transforms(size=first.target_size))
    joined = first.then(second)
    boxes = np.array([data.draw(numbers)])
    np.testing.assert_allclose(joined.boxes_to_model(boxes), second.boxes_to_model(first.boxes_to_model(boxes)), rtol=1e-9, atol=1e-6)
    np.testing.assert_allclose(joined.spans_to_model(boxes), second.spans_to_model(first.spans_to_model(boxes)), rtol=1e-9, atol=1e-6)
    assert joined.target_size == second.target_size
    # The joined window is what the second one shows of the first one's.
    np.testing.assert_allclose(joined.window_xyxy, second.boxes_to_model([first.window_xyxy], clip=True)[0], atol=1e-6)


@given(transforms())
def test_the_window_is_where_the_picture_shows(record: Transform) -> None:
    width, height = record.source_size
    shown = record.masks_to_model(np.ones((height, width), bool))
    assert shown.shape == record.target_size[::-1]
    left, top, right, bottom = record.window_xyxy
    columns, rows = np.arange(record.target_size[0]) + 0.5, np.arange(record.target_size[1]) + 0.5
    eps = 1e-6
    sure = ((rows > top + eps) & (rows < bottom - eps))[:, None] & ((columns > left + eps) & (columns < right - eps))[None]
    never = ~(((rows > top - eps) & (rows < bottom + eps))[:, None] & ((columns > left - eps) & (columns < right + eps))[None])
    assert shown[sure].all()
    assert not shown[never].any()


@given(st.data())
def test_masks_come_back_whole_after_enlarging_and_padding(data: st.DataObject) -> None:
    width, height = data.draw(st.tuples(st.integers(1, 20), st.integers(1, 20)))
    factor = data.draw(st.floats(1, 4))
    larger = (int(np.ceil(width * factor)), int(np.ceil(height * factor)))
    record = Transform.identity((width, height)).resize(larger).pad(left=data.draw(st.integers(0, 5)), bottom=data.draw(st.integers(0, 5)))
    mask_HW = np.random.default_rng(data.draw(st.integers(0, 99))).random((height, width)) > 0.5
    np.testing.assert_array_equal(record.masks_to_original(record.masks_to_model(mask_HW)), mask_HW)


@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 6))
def test_masks_and_boxes_go_the_same_way(width: int, height: int, factor: int) -> None:
    mask_HW = np.zeros((10, 12), np.uint8)
    mask_HW[1 : 1 + height, 2 : 2 + width] = 7
    record = Transform.identity((12, 10)).resize((12 * factor, 10 * factor)).pad(left=3, top=1).crop(left=1, top=0, width=12, height=10)
    x1, y1, x2, y2 = record.boxes_to_model([[2, 1, 2 + width, 1 + height]], clip=True)[0].astype(int)
    expected = np.zeros((10, 12), np.uint8)
    expected[y1:y2, x1:x2] = 7
    np.testing.assert_array_equal(record.masks_to_model(mask_HW), expected)


def test_a_letterbox_by_hand() -> None:
    # 200 x 100 into 64 x 64: by 0.32 to 64 x 32, with 16 rows above and below.
    record = Transform.identity((200, 100)).letterbox((64, 64))
    assert (record.scale, record.offset, record.window_xyxy) == ((0.32, 0.32), (0.0, 16.0), (0.0, 16.0, 64.0, 48.0))
    np.testing.assert_allclose(record.boxes_to_model([[50, 25, 100, 100]]), [[16, 24, 32, 48]])
    np.testing.assert_allclose(record.boxes_to_original([[0, 0, 64, 64]], clip=True), [[0, 0, 200, 100]])
    np.testing.assert_allclose(record.points_to_original([32, 32]), [100, 50])
    np.testing.assert_allclose(record.points_to_original([99, -9], clip=True), [200, 0])


def test_what_a_crop_cut_away_and_what_was_padded_is_empty() -> None:
    record = Transform.identity((10, 6)).resize((20, 12)).crop(left=4, top=0, width=10, height=12).pad(left=3)
    ones = np.ones((2, 6, 10), np.float32)
    assert record.masks_to_model(ones)[1, 0].tolist() == [0] * 3 + [1] * 10
    assert record.masks_to_original(np.ones((12, 13), bool))[0].tolist() == [False] * 2 + [True] * 5 + [False] * 3
    np.testing.assert_allclose(record.boxes_to_model([[0, 0, 9, 6]], clip=True), [[3, 0, 13, 12]])
    assert record.boxes_to_model([]).shape == (0, 4)


def test_time_by_hand() -> None:
    record = Transform.identity((4, 4)).cut(10.0, 30.0).rate(2.0).cut(4.0)
    # 10 s are cut away, then 4 frames of 2 per second: model time 0 is second 12, and the clip ends at second 30.
    np.testing.assert_allclose(record.spans_to_model([[12, 15], [0, 40]]), [[0, 6], [-24, 56]])
    np.testing.assert_allclose(record.spans_to_model([[0, 40]], clip=True), [[0, 36]])
    np.testing.assert_allclose(record.spans_to_original([[6, 99]]), [[15, 61.5]])
    np.testing.assert_allclose(record.spans_to_original([[6, 99]], clip=True), [[15, 30]])
    joined = Transform.identity((4, 4)).cut(10.0, 30.0).then(Transform.identity((4, 4)).rate(2.0).cut(4.0, 90.0))
    assert (joined.time_start, joined.time_stop, joined.time_scale) == (12.0, 30.0, 2.0)


def test_what_is_refused() -> None:
    record = Transform.identity((8, 6))
    for wrong in (
        lambda: Transform.identity((0, 5)),
        lambda: record.resize((3, 0)),
        lambda: record.pad(left=-1),
        lambda: record.crop(left=4, top=0, width=5, height=6),
        lambda: record.cut(3.0, 3.0),
        lambda: record.rate(0.0),
        lambda: record.then(Transform.identity((6, 8))),
        lambda: record.masks_to_model(np.ones((8, 6))),
        lambda: record.masks_to_original(np.ones(6)),
        lambda: record.boxes_to_model([[1, 2, 3]]),
    ):
        with pytest.raises(ValueError, match=r"."):
            wrong()
