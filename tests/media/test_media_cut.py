"""The cut, the rate and the sampling of a clip: whatever happens, times are those of the cut's own clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tpo_core.errors import MediaError
from tpo_core.media import frame_at, frame_ends, frame_interval, frames_within, nearest_frame, open_media, sample_frames
from tpo_core.media.clock import cut_timeline

Stamp = Callable[[np.ndarray], int]


@dataclass
class Clock:
    """The part of a medium that tells time."""

    times: tuple[float, ...]
    duration: float
    kind: Literal["image", "video"] = "video"
    size: tuple[int, int] = (4, 4)
    key: str = ""
    path: str = "clock"


def test_the_cut_starts_with_the_frame_on_screen(clips: Path, read_stamp: Stamp) -> None:
    # 30 fps: at 1.01 s frame 30 (1.0 to 1.0333) is on screen; frame 31 starts at 1.0333 s.
    media = open_media(path=clips / "constant.mp4", kind="video", start=1.01, end=1.5)
    assert [read_stamp(frame) for frame in media.frames(range(len(media.times)))] == list(range(30, 45))
    np.testing.assert_allclose(media.times[:3], [0.0, 31 / 30 - 1.01, 32 / 30 - 1.01], atol=1e-9)
    assert media.duration == pytest.approx(0.49)


def test_a_cut_on_a_frames_border_takes_the_new_frame(clips: Path, read_stamp: Stamp) -> None:
    for rounding in (-5e-7, 0.0, 5e-7):
        media = open_media(path=clips / "constant.mp4", kind="video", start=1.0 + rounding, end=2.0 + rounding)
        assert len(media.times) == 30
        assert media.times[0] == 0.0
        assert [read_stamp(frame) for frame in media.frames([0, 29])] == [30, 59]


def test_a_cut_behind_the_end_means_the_end(clips: Path) -> None:
    media = open_media(path=clips / "constant.mp4", kind="video", start=2.0, end=99.0)
    assert media.duration == pytest.approx(1.0)
    assert len(media.times) == 30


@pytest.mark.parametrize(
    ("cut", "words"),
    [
        ({"start": 3.0}, "starts at 3 s, but the clip ends at 3 s"),
        ({"start": 50.0}, "starts at 50 s, but the clip ends at 3 s"),
        ({"start": 2.0, "end": 1.0}, "holds nothing"),
        ({"start": 1.0, "end": 1.0}, "holds nothing"),
        ({"start": -1.0}, "holds nothing"),
        ({"end": -1.0}, "holds nothing"),
        ({"start": float("nan")}, "not finite"),
        ({"end": float("nan")}, "not finite"),
        ({"fps": 0.0}, "fps is 0"),
        ({"fps": float("nan")}, "fps is nan"),
    ],
)
def test_a_cut_that_holds_nothing_is_an_error(clips: Path, cut: dict[str, float], words: str) -> None:
    with pytest.raises(MediaError, match=words):
        open_media(path=clips / "constant.mp4", kind="video", **cut)


def test_a_rate_picks_the_nearest_frames_of_the_cut(clips: Path, read_stamp: Stamp) -> None:
    media = open_media(path=clips / "constant.mp4", kind="video", fps=10.0, start=1.0, end=2.0)
    assert [read_stamp(frame) for frame in media.frames(range(10))] == [30 + 3 * i for i in range(10)]
    np.testing.assert_allclose(media.times, np.arange(10) / 10)
    # The file's own rate changes nothing, whatever the container rounded the stamps to.
    for name in ("constant.mp4", "h264.avi"):
        same = open_media(path=clips / name, kind="video", fps=30.0)
        assert [read_stamp(frame) for frame in same.frames(range(len(same.times)))] == list(range(90))
    double = open_media(path=clips / "constant.mp4", kind="video", fps=60.0)
    assert [read_stamp(frame) for frame in double.frames([0, 2, 4, 179])] == [0, 1, 2, 89]


def test_a_rate_survives_rounded_time_stamps() -> None:
    # 24 fps in milliseconds, as Matroska stores it: 0, 42, 83, 125, ...
    starts = np.round(np.arange(1000) * 1000 / 24) / 1000
    positions, times, _ = cut_timeline(starts, 41.667, start=None, stop=None, fps=24.0, path="x")
    np.testing.assert_array_equal(positions, np.arange(1000))
    np.testing.assert_allclose(times, np.arange(1000) / 24)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(12):
        Image.fromarray(np.full((10, 16, 3), number * 20, np.uint8)).save(tmp_path / f"{number}.png")
    return tmp_path


def test_a_folder_is_a_clip_of_named_frames(folder: Path) -> None:
    media = open_media(path=folder, kind="video", frames=["3.png", "1.png", "2.png"], fps=4.0)
    np.testing.assert_allclose(media.times, [0, 0.25, 0.5])
    assert media.duration == pytest.approx(0.75)
    assert media.frames([2, 0])[:, 0, 0, 0].tolist() == [40, 60]
    cut = open_media(path=folder, kind="video", fps=4.0, start=0.5, end=1.5)
    assert cut.frames(range(4))[:, 0, 0, 0].tolist() == [40, 60, 80, 100]


def test_a_folder_without_a_list_goes_by_the_numbers_at_six_per_second(folder: Path) -> None:
    media = open_media(path=folder.name, root=folder.parent, kind="video")
    assert media.frames([1, 2, 10, 11])[:, 0, 0, 0].tolist() == [20, 40, 200, 220]
    assert media.duration == pytest.approx(2.0)


def test_frames_of_other_sizes_are_refused(folder: Path) -> None:
    Image.new("RGB", (8, 8)).save(folder / "5.png")
    media = open_media(path=folder, kind="video")
    with pytest.raises(MediaError, match=r"5\.png: is 8x8 pixels, but the clip's first frame is 16x10"):
        media.frames([4, 5])


def test_the_clock_by_hand() -> None:
    clock = Clock((0.0, 0.5, 0.6, 2.0), 3.0)
    assert frame_ends(clock).tolist() == [0.5, 0.6, 2.0, 3.0]
    assert [frame_interval(clock, i) for i in (0, 3)] == [(0.0, 0.5), (2.0, 3.0)]
    assert [frame_at(clock, t) for t in (-1, 0, 0.499, 0.5, 0.59, 0.6, 1.99, 2.0, 2.9, 9)] == [0, 0, 0, 1, 1, 2, 2, 3, 3, 3]
    assert [nearest_frame(clock, t) for t in (-1, 0.2, 0.25, 0.26, 0.56, 1.29, 1.31, 9)] == [0, 0, 0, 1, 2, 2, 3, 3]
    spans = [(0.0, 0.5), (0.0, 0.51), (0.55, 2.0), (0.55, 2.01), (2.5, 9.0), (3.0, 4.0), (0.7, 0.8)]
    assert [list(frames_within(clock, *span)) for span in spans] == [[0], [0, 1], [1, 2], [1, 2, 3], [3], [], [2]]
    picture = Clock((0.0,), 0.0, "image")
    assert frame_ends(picture).tolist() == [0.0]
    assert frame_at(picture, 5.0) == 0


def test_sampling_takes_the_middles_of_equal_parts() -> None:
    # 90 frames at 30 fps, 8 parts of 0.375 s: middles at 0.1875, 0.5625, ... = frames 5.6, 16.9, 28.1, ...
    clock = Clock(tuple(i / 30 for i in range(90)), 3.0)
    assert sample_frames(clock, 8) == (5, 16, 28, 39, 50, 61, 73, 84)
    assert sample_frames(clock, 1) == (45,)
    assert sample_frames(clock, 4, mode="ends") == (0, 29, 59, 89)
    assert sample_frames(clock, 90) == sample_frames(clock, 200) == tuple(range(90))
    with pytest.raises(ValueError, match="count is 0"):
        sample_frames(clock, 0)


def test_a_long_still_is_not_sampled_twice() -> None:
    clock = Clock((0.0, 9.0, 9.2, 9.4, 9.6), 10.0)
    assert sample_frames(clock, 4) == (0, 1, 2, 3)
    assert sample_frames(clock, 2) == (0, 1)


@given(st.lists(st.floats(0.001, 5), min_size=1, max_size=60), st.integers(1, 70), st.sampled_from(["middle", "ends"]))
def test_sampling_gives_distinct_ascending_indices(steps: list[float], count: int, mode: Literal["middle", "ends"]) -> None:
    times = np.append(0.0, np.cumsum(steps))
    picks = sample_frames(Clock(tuple(times[:-1]), float(times[-1])), count, mode=mode)
    assert len(picks) == min(count, len(steps))
    assert (np.diff(picks) > 0).all()
    assert picks[0] >= 0
    assert picks[-1] < len(steps)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.floats(0, 3), st.floats(0.001, 3), st.none() | st.floats(0.5, 120))
def test_every_cut_has_an_ascending_clock_from_zero(steps: list[int], start: float, length: float, fps: float | None) -> None:
    borders = np.append(0, np.cumsum(steps)) / 100
    try:
        positions, times, duration = cut_timeline(borders[:-1], borders[-1], start=start, stop=start + length, fps=fps, path="x")
    except MediaError:
        assert start >= borders[-1] - 2e-6
        return
    assert times[0] == 0.0
    assert (np.diff(times) > 0).all()
    assert (np.diff(positions) >= 0).all()
    assert len(positions) == len(times)
    assert positions[0] >= 0
    assert positions[-1] < len(steps)
    assert duration == pytest.approx(min(start + length, borders[-1]) - start)
    if fps is None:
        # Each frame is the one that the file shows at that moment.
        for position, time in zip(positions, times, strict=True):
            assert borders[position] <= start + time + 1e-6 < borders[position + 1] + 2e-6
