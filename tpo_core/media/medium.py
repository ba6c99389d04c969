"""One picture or clip of a sample: cut first, then read by index of its own clock."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from tpo_core.errors import MediaError
from tpo_core.media.clock import cut_timeline
from tpo_core.media.paths import locate, regular_file, shown
from tpo_core.media.pictures import FolderSource, PictureSource, list_frames
from tpo_core.media.video import VideoSource, index_video

DEFAULT_FOLDER_FPS = 6.0
"""Rate of a frame folder that states none: the step of MeViS and Refer-YouTube-VOS (every fifth frame of 30 per second)."""

CACHE_BYTES = 256 * 1024 * 1024
"""Decoded frames that one medium keeps, so that language model and heads share one decoding."""


class FrameSource(Protocol):
    """A file's frames: `starts` in seconds (first = 0), `end` of the last, `size` (width, height), frames by position."""

    size: tuple[int, int]
    starts: np.ndarray
    end: float

    def read(self, positions: Sequence[int]) -> Iterator[np.ndarray]: ...
    def close(self) -> None: ...


class Medium:
    """A picture or a clip as cut; fulfils `tpo_core.types.Media`. Picklable: files are opened anew where frames are read.

    Attributes: see `tpo_core.types.MediaInfo`.
    """

    def __init__(
        self,
        *,
        source: FrameSource,
        kind: Literal["image", "video"],
        path: str,
        key: str,
        start: float | None = None,
        end: float | None = None,
        fps: float | None = None,
    ) -> None:
        positions, times, duration = cut_timeline(source.starts, source.end, start=start, stop=end, fps=fps, path=path)
        self.kind: Literal["image", "video"] = kind
        self.size = source.size
        self.duration = duration
        self.times: tuple[float, ...] = tuple(times.tolist())
        self.key = key
        self.path = path
        self._source = source
        self._positions = positions
        self._cache: OrderedDict[int, np.ndarray] = OrderedDict()
        self._cached_bytes = 0

    def frames(self, indices: Sequence[int]) -> np.ndarray:
        """Return the frames at these indices of `times`, uint8 RGB, shape (n, H, W, 3), original pixels, in the order asked for.

        What was decoded is kept (up to `CACHE_BYTES`), so asking again costs a copy.

        Raises:
            MediaError: an index is outside the clip, or a frame does not decode.
        """
        positions = self._positions_of(indices)
        width, height = self.size
        frames_nHW3 = np.empty((len(positions), height, width, 3), dtype=np.uint8)
        wanted: dict[int, list[int]] = {}
        for row, position in enumerate(positions):
            wanted.setdefault(position, []).append(row)
        missing = sorted(position for position in wanted if position not in self._cache)
        for position in wanted.keys() - set(missing):
            self._cache.move_to_end(position)
            frames_nHW3[wanted[position]] = self._cache[position]
        for position, frame_HW3 in zip(missing, self._source.read(missing), strict=True):
            frames_nHW3[wanted[position]] = frame_HW3
            self._keep(position, frame_HW3)
        return frames_nHW3

    def iterate(self, indices: Sequence[int] | None = None, *, chunk: int = 32) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
        """Yield (indices, frames) in pieces of at most `chunk` frames and keep none: memory stays flat over a long clip.

        Args:
            indices: indices of `times` (quickest in ascending order); None for all of them.
            chunk: frames per piece.

        Raises:
            MediaError: as `frames`.
            ValueError: chunk is below 1.
        """
        if chunk < 1:
            raise ValueError(f"chunk is {chunk}; ask for at least one frame per piece")
        order = range(len(self.times)) if indices is None else indices
        reader = self._source.read(self._positions_of(order))
        for first in range(0, len(order), chunk):
            piece = tuple(int(i) for i in order[first : first + chunk])
            yield piece, np.stack([next(reader) for _ in piece])

    def close(self) -> None:
        """Close the file and drop the frames kept; the medium can be read again afterwards."""
        self._source.close()
        self._cache.clear()
        self._cached_bytes = 0

    def _positions_of(self, indices: Sequence[int]) -> list[int]:
        count = len(self.times)
        for index in indices:
            if not 0 <= index < count:
                raise MediaError(f"{self.path}: frame {index} was asked for, but there are {count} frames (0 to {count - 1}) after the cut")
        return [int(self._positions[index]) for index in indices]

    def _keep(self, position: int, frame_HW3: np.ndarray) -> None:
        self._cache[position] = frame_HW3
        self._cached_bytes += frame_HW3.nbytes
        while self._cached_bytes > CACHE_BYTES and self._cache:
            _, dropped = self._cache.popitem(last=False)
            self._cached_bytes -= dropped.nbytes

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": OrderedDict(), "_cached_bytes": 0}

    def __repr__(self) -> str:
        width, height = self.size
        return f"Medium({self.kind}, {self.path!r}, {width}x{height}, {len(self.times)} frames, {self.duration:.2f} s)"


def open_media(
    *,
    path: str | Path,
    kind: Literal["image", "video"],
    root: Path | None = None,
    start: float | None = None,
    end: float | None = None,
    frames: Sequence[str] | None = None,
    fps: float | None = None,
    allow_outside_root: bool = False,
) -> Medium:
    """Return a picture or a clip, cut to [start, end) before anything else.

    Args:
        path: a file; for a video also a folder of pictures. Relative to the root, where one is given.
        kind: ``image`` (of an animated GIF: the first frame) or ``video``.
        root: folder that every file must lie in.
        start, end: the cut in seconds of the file's clock (its first frame = 0); an end after the file's means the file's.
        frames: names of the pictures in a folder, in order; without it all of them, ordered by the numbers in their names.
        fps: of a folder: its rate (default `DEFAULT_FOLDER_FPS`). Of a file: the rate to read it at (index i is then the frame nearest
            to i / fps); None reads every frame.
        allow_outside_root: files may lie outside the root.

    Raises:
        MediaError: missing, not allowed, unreadable, broken off, empty, or the cut holds nothing.
    """
    name = shown(path)
    if fps is not None and not 0 < fps <= 1000:
        raise MediaError(f"{name}: fps is {fps:g}; expected more than 0 and at most 1000")
    real = locate(path, root=root, allow_outside_root=allow_outside_root)
    if kind == "image":
        if start is not None or end is not None or fps is not None or frames is not None:
            raise MediaError(f"{name}: an image has no start, end, fps or frames; use type video, or leave them out")
        status = regular_file(real, path=path)
        key = _key("image", real, status.st_size, status.st_mtime_ns)
        return Medium(source=PictureSource(real), kind=kind, path=name, key=key)
    if real.is_dir():
        files, stamps = _folder_files(real, frames, name, root=None if allow_outside_root else root)
        rate = DEFAULT_FOLDER_FPS if fps is None else fps
        key = _key("folder", real, stamps, start, end, rate)
        return Medium(source=FolderSource(files, rate), kind=kind, path=name, key=key, start=start, end=end)
    if frames is not None:
        raise MediaError(f"{name}: is a file, but frames are named; give the folder that holds them")
    status = regular_file(real, path=path)
    source = VideoSource(real, index_video(real, size=status.st_size, mtime_ns=status.st_mtime_ns))
    key = _key("video", real, status.st_size, status.st_mtime_ns, start, end, fps)
    return Medium(source=source, kind=kind, path=name, key=key, start=start, end=end, fps=fps)


def _folder_files(folder: Path, frames: Sequence[str] | None, name: str, *, root: Path | None) -> tuple[list[Path], list[list[int]]]:
    names = list_frames(folder) if frames is None else list(frames)
    if not names:
        raise MediaError(f"{name}: the folder holds no pictures; expected numbered PNG, JPEG, WEBP, BMP or GIF files")
    files, stamps = [], []
    for frame in names:
        real = locate(folder / frame, root=root)
        status = regular_file(real, path=f"{name}/{frame}")
        files.append(real)
        stamps.append([status.st_size, status.st_mtime_ns])
    return files, stamps


def _key(*parts: object) -> str:
    text = json.dumps(parts, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:24]
