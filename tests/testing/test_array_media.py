"""Media in memory: what they say of themselves, and that they are sized by a target."""

from __future__ import annotations

import numpy as np
import pytest

from tpo_core.testing import ArrayMedia, clip_for, picture_for
from tpo_core.types import Target


def target(**fields: object) -> Target:
    return Target.model_validate({"id": "t", **fields})


def test_a_clip_of_given_times() -> None:
    frames = np.arange(3 * 2 * 4 * 3, dtype=np.uint8).reshape(3, 2, 4, 3)
    clip = ArrayMedia(frames, times=[0.0, 0.5, 2.0], duration=2.5)
    assert (clip.kind, clip.size, clip.duration, clip.times) == ("video", (4, 2), 2.5, (0.0, 0.5, 2.0))
    taken = clip.frames([2, 0])
    np.testing.assert_array_equal(taken, frames[[2, 0]])
    taken[:] = 0
    np.testing.assert_array_equal(clip.frames([2]), frames[[2]])


def test_a_picture() -> None:
    picture = ArrayMedia(np.zeros((1, 2, 4, 3), dtype=np.uint8))
    assert (picture.kind, picture.duration, picture.times) == ("image", 0.0, (0.0,))


def test_keys_tell_media_apart() -> None:
    one, two = np.zeros((1, 2, 4, 3), dtype=np.uint8), np.ones((1, 2, 4, 3), dtype=np.uint8)
    assert ArrayMedia(one).key == ArrayMedia(one.copy()).key != ArrayMedia(two).key
    assert ArrayMedia(one, kind="video").key != ArrayMedia(one).key


def test_sizes_and_frames_follow_the_target() -> None:
    assert picture_for(target(size=[30, 20])).size == (30, 20)
    clip = clip_for(target(size=[30, 20], frames=[0, 70], duration=5.0))
    assert (len(clip.times), clip.duration) == (71, 5.0)
    assert len(clip_for(target(frame=3)).times) == 12
    long = clip_for(target(duration=150.0))
    assert (len(long.times), long.duration) == (48, 150.0)
    assert long.times[1] == pytest.approx(150 / 48)
    width, height = picture_for(target()).size
    assert width != height


@pytest.mark.parametrize(
    ("frames", "times", "message"),
    [
        (np.zeros((2, 2, 3), dtype=np.uint8), None, "frames must be uint8"),
        (np.zeros((1, 2, 2, 3), dtype=np.float32), None, "frames must be uint8"),
        (np.zeros((2, 2, 2, 3), dtype=np.uint8), [0.0], "times must be 2 ascending seconds"),
        (np.zeros((2, 2, 2, 3), dtype=np.uint8), [1.0, 2.0], "begin with 0"),
    ],
)
def test_bad_arrays_are_refused(frames: np.ndarray, times: list[float] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ArrayMedia(frames, times=times)
