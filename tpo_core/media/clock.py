"""Seconds and frame indices of a medium. A frame is on screen from its own start until the next one's (the last: until the end)."""

from __future__ import annotations

import math

import numpy as np

from tpo_core.errors import MediaError
from tpo_core.types import MediaInfo

TICK = 1e-6
"""Two times closer than this (seconds) are the same: containers round to a millisecond at best, floats to 1e-12."""


def frame_ends(media: MediaInfo) -> np.ndarray:
    """Return the end of every frame in seconds, float64, shape (frames,). Of a picture: ``[0.]``."""
    return np.append(np.asarray(media.times, dtype=np.float64)[1:], float(media.duration))


def frame_interval(media: MediaInfo, index: int) -> tuple[float, float]:
    """Return [start, end) of one frame in seconds."""
    last = index == len(media.times) - 1
    return float(media.times[index]), float(media.duration if last else media.times[index + 1])


def frame_at(media: MediaInfo, seconds: float) -> int:
    """Return the index of the frame on screen at a time; before the first: 0, after the end: the last."""
    index = int(np.searchsorted(np.asarray(media.times), seconds + TICK, side="right")) - 1
    return max(index, 0)


def frames_within(media: MediaInfo, start: float, end: float) -> range:
    """Return the indices of the frames that are on screen at some time in [start, end); never empty for end > start inside the clip."""
    times = np.asarray(media.times)
    first = frame_at(media, start)
    stop = int(np.searchsorted(times, end - TICK, side="left"))
    if start >= media.duration - TICK and media.kind == "video":
        return range(len(times), len(times))
    return range(first, max(stop, first))


def nearest_frame(media: MediaInfo, seconds: float) -> int:
    """Return the index of the frame whose start is nearest to a time (the earlier one in a tie)."""
    times = np.asarray(media.times)
    right = int(np.searchsorted(times, seconds))
    if right == 0:
        return 0
    if right == len(times):
        return len(times) - 1
    return right - 1 if seconds - times[right - 1] <= times[right] - seconds else right


def cut_timeline(
    starts: np.ndarray, end: float, *, start: float | None, stop: float | None, fps: float | None, path: str
) -> tuple[np.ndarray, np.ndarray, float]:
    """Cut a file's frames, then re-time them if a rate is asked for.

    The clock's zero is `start` itself; the frame on screen then is the first one, and its time is 0. With a rate, index i is the frame
    that starts nearest to i / fps on the cut's clock, and its time is i / fps.

    Args:
        starts: start of every frame of the file in seconds, first = 0. end: end of the last frame.
        start, stop: the cut, in seconds of the file; a stop after the end means the end.
        fps: frames per second to read at, or None for every frame.
        path: for messages.

    Returns:
        positions in the file (int64), times (float64), duration.

    Raises:
        MediaError: the cut holds nothing.
    """
    begin = 0.0 if start is None else float(start)
    limit = end if stop is None else min(float(stop), end)
    if not (math.isfinite(begin) and math.isfinite(limit)):
        raise MediaError(f"{path}: the cut from {begin:g} s to {limit:g} s is not finite; give 0 <= start < end")
    if begin > 0 and begin >= end - TICK:
        raise MediaError(f"{path}: the cut starts at {begin:g} s, but the clip ends at {end:g} s; give a start inside the clip")
    if begin < 0 or (stop is not None and limit <= begin + TICK):
        raise MediaError(f"{path}: the cut from {begin:g} s to {limit:g} s holds nothing; give 0 <= start < end")
    first = max(int(np.searchsorted(starts, begin + TICK, side="right")) - 1, 0)
    after = max(int(np.searchsorted(starts, limit - TICK, side="left")), first + 1)
    positions = np.arange(first, after, dtype=np.int64)
    times = np.maximum(starts[first:after] - begin, 0.0)
    times[0] = 0.0
    duration = float(limit - begin)
    if fps is None:
        return positions, times, duration
    wanted = np.arange(max(round(duration * fps), 1)) / fps
    right = np.searchsorted(times, wanted).clip(1, max(len(times) - 1, 1))
    left = right - 1
    right = np.minimum(right, len(times) - 1)
    nearest = np.where(wanted - times[left] <= times[right] - wanted, left, right)
    return positions[nearest], wanted, duration
