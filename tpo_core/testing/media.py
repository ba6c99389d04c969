"""Media that live in memory, for tests of heads: an array of frames behind the interface that codecs read."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from tpo_core.types import Target

SIZE = (72, 40)
"""(width, height) where an example names no `size`: not square, so that a swapped width and height is seen."""

CLIP_FRAMES = 12
CLIP_SECONDS = 9.0
MOST_FRAMES = 48


class ArrayMedia:
    """A picture or a clip held in memory; fulfils `tpo_core.types.Media`.

    Args:
        frames_THW3: uint8 RGB; a picture has T = 1.
        kind: ``image`` or ``video``; default: by T.
        times: start of every frame in seconds, ascending, first 0; default: evenly over the duration.
        duration: seconds; default: one second per frame, 0 for a picture.
        path: for messages.

    Raises:
        ValueError: shapes, dtype or times do not fit.
    """

    def __init__(
        self,
        frames_THW3: np.ndarray,
        *,
        kind: Literal["image", "video"] | None = None,
        times: Sequence[float] | None = None,
        duration: float | None = None,
        path: str = "<in memory>",
    ) -> None:
        if frames_THW3.ndim != 4 or frames_THW3.shape[-1] != 3 or frames_THW3.dtype != np.uint8 or not len(frames_THW3):
            raise ValueError(f"frames must be uint8 of shape (T, H, W, 3) with T >= 1, got {frames_THW3.dtype} {frames_THW3.shape}")
        count, height, width, _ = frames_THW3.shape
        self.kind: Literal["image", "video"] = kind or ("image" if count == 1 else "video")
        self.size = (width, height)
        self.duration = 0.0 if self.kind == "image" else float(count if duration is None else duration)
        self.times = tuple(float(t) for t in (np.arange(count) * self.duration / count if times is None else times))
        if len(self.times) != count or list(self.times) != sorted(self.times) or self.times[0] != 0:
            raise ValueError(f"times must be {count} ascending seconds that begin with 0, got {list(self.times)}")
        self.path = path
        self.key = hashlib.sha256(frames_THW3.tobytes() + repr((self.kind, self.times)).encode()).hexdigest()[:16]
        self._frames_THW3 = frames_THW3

    def frames(self, indices: Sequence[int]) -> np.ndarray:
        """Return copies of the frames at these indices of `times`, uint8, (n, H, W, 3)."""
        return np.ascontiguousarray(self._frames_THW3[list(indices)])


def picture_for(target: Target, seed: int = 0) -> ArrayMedia:
    """Return a picture of the size that the target names."""
    return ArrayMedia(_texture(1, _size_of(target), seed), kind="image", path=f"<picture of {target.id}>")


def clip_for(target: Target, seed: int = 0) -> ArrayMedia:
    """Return a clip of the size and duration that the target names, with every frame that it names (`frames`, `frame`)."""
    named = [*_indices(target.get("frames")), *_indices(target.get("frame"))]
    duration = float(target.get("duration") or CLIP_SECONDS)
    count = max(min(max(CLIP_FRAMES, math.ceil(duration)), MOST_FRAMES), *(index + 1 for index in named), 1)
    return ArrayMedia(_texture(count, _size_of(target), seed), kind="video", duration=duration, path=f"<clip of {target.id}>")


def is_of_clip(target: Target) -> bool:
    """Tell whether the target names a duration or frames, which only a clip has."""
    return any(target.get(field) is not None for field in ("duration", "frames", "frame"))


def _size_of(target: Target) -> tuple[int, int]:
    width, height = target.get("size") or SIZE
    return int(width), int(height)


def _indices(value: object) -> list[int]:
    values = value if isinstance(value, list | tuple) else [value]
    return [int(item) for item in values if isinstance(item, int)]


def _texture(count: int, size: tuple[int, int], seed: int) -> np.ndarray:
    width, height = size
    still_HW3 = np.random.Generator(np.random.Philox(seed)).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return np.stack([np.roll(still_HW3, 3 * index, axis=1) for index in range(count)])
