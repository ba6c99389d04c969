"""Video files by PyAV: an exact table of frames from the packets' time stamps, and exact random access.

Naive seeking lands on a key frame or beside it, and counting by the average rate is wrong in clips of variable rate. So all packets are
read once without decoding (their sorted time stamps are the frames in the order of showing), and a frame is found by seeking to the key
frame before it and decoding forward until its time stamp comes. Files whose time stamps cannot be trusted (AVI with B-frames, hidden
frames of VP8, stamps that are missing or doubled) are decoded once and counted instead.
"""

from __future__ import annotations

import os
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from tpo_core.errors import MediaError
from tpo_core.media.paths import shown
from tpo_core.media.pictures import MAX_PIXELS

# Playlists (hls, concat, dash) and picture sequences name other files: none of them is in this list.
CONTAINERS = "mov,matroska,webm,avi,gif,apng,mpegts,mpeg,mpegvideo,flv,asf,ogg,h264,hevc,m4v,ivf,nut,mjpeg,wtv,rm,3gp,webp_pipe"
_OPTIONS = {"protocol_whitelist": "file", "format_whitelist": CONTAINERS}
_COUNTED_CONTAINERS = frozenset({"avi", "h264", "hevc", "m4v", "mpegvideo", "mjpeg", "rm"})
_COUNTED_CODECS = frozenset({"vp8"})
_FORWARD = 8
"""Decode forward over a key frame that lies at most this many frames ahead rather than seek to it."""


@dataclass(frozen=True)
class VideoIndex:
    """The frames of a video file in the order of showing.

    Args:
        pts: time stamps in units of the stream's time base, ascending, shape (frames,).
        starts: the same in seconds, first = 0. end: end of the last frame in seconds.
        key_pts, key_seek: time stamps of the key frames, and the stamps by which the container seeks to them.
        size: (width, height) after rotation. coded_size: before it. turns: quarter turns counter-clockwise.
        counted: frames are found by counting from the first one; the time stamps are not trusted.
    """

    pts: np.ndarray
    starts: np.ndarray
    end: float
    key_pts: np.ndarray
    key_seek: np.ndarray
    size: tuple[int, int]
    coded_size: tuple[int, int]
    turns: int
    counted: bool


def index_video(path: Path, *, size: int, mtime_ns: int) -> VideoIndex:
    """Return the table of frames of a file; kept in memory for the files used last, by size and modification time.

    Raises:
        MediaError: not a video, no frames, or broken off.
    """
    return _INDICES.get(str(path), size, mtime_ns)


class VideoSource:
    """A video file as a source of frames. The file is opened when a frame is asked for, in each process anew."""

    def __init__(self, path: Path, index: VideoIndex) -> None:
        self.size = index.size
        self.starts = index.starts
        self.end = index.end
        self._path = path
        self._index = index
        self._decoder: _Decoder | None = None
        self._process = 0

    def read(self, positions: Sequence[int]) -> Iterator[np.ndarray]:
        """Yield the frames at these positions (any order; ascending is quickest), shape (H, W, 3).

        Raises:
            MediaError: a frame does not decode.
        """
        for position in positions:
            # A forked worker must not share the parent's file offset.
            if self._decoder is None or self._process != os.getpid():
                self._decoder, self._process = _Decoder(self._path, self._index), os.getpid()
            try:
                yield self._decoder.frame(int(position))
            except (av.FFmpegError, EOFError, ValueError) as error:
                self.close()
                raise MediaError(f"{shown(self._path)}: frame {position} does not decode ({_reason(error)}); re-encode the clip") from error

    def close(self) -> None:
        """Close the file; the next read opens it again."""
        if self._decoder is not None and self._process == os.getpid():
            self._decoder.close()
        self._decoder = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_decoder": None}


class _Decoder:
    """An open file and the place in it.

    Neither the codec nor the conversion of colours has threads of its own: the memory of a forked data worker holds copies of such
    objects without their threads, and to free one there waits for ever.
    """

    def __init__(self, path: Path, index: VideoIndex) -> None:
        self._path = path
        self._index = index
        self._colours = VideoReformatter()
        self._open()

    def frame(self, position: int) -> np.ndarray:
        """Return the frame at a position, uint8 RGB, shape (H, W, 3).

        Raises:
            MediaError: the stream ends or jumps before it.
        """
        if position == self._at and self._last is not None:
            return self._to_rgb(self._last)
        if not self._reachable(position):
            self._seek(position)
        while self._at < position:
            if not self._advance():
                raise MediaError(f"{shown(self._path)}: the stream ends before frame {position}; copy or re-encode the clip")
        if self._at != position:
            raise MediaError(f"{shown(self._path)}: frame {position} is listed in the file but does not decode; re-encode the clip")
        if self._last.is_corrupt:
            raise MediaError(f"{shown(self._path)}: frame {position} is damaged; copy or re-encode the clip")
        return self._to_rgb(self._last)

    def close(self) -> None:
        self._container.close()

    def _to_rgb(self, frame: Any) -> np.ndarray:
        width, height = self._index.coded_size
        rgb = self._colours.reformat(frame, width=width, height=height, format="rgb24", threads=1)
        frame_HW3: np.ndarray = rgb.to_ndarray()
        return np.ascontiguousarray(np.rot90(frame_HW3, self._index.turns)) if self._index.turns else frame_HW3

    def _open(self) -> None:
        self._container = _open(self._path)
        self._stream = self._container.streams.video[0]
        self._restart()

    def _restart(self) -> None:
        self._floor: int | None = None
        self._at = -1
        self._last: Any = None
        self._packets = self._container.demux(self._stream)
        self._decoded: deque[Any] = deque()

    def _next(self) -> Any | None:
        while not self._decoded:
            packet = next(self._packets, None)
            if packet is None:
                return None
            if self._floor is None and packet.is_keyframe and packet.pts is not None:
                self._floor = packet.pts
            self._decoded.extend(packet.decode())
        return self._decoded.popleft()

    def _advance(self) -> bool:
        """Decode one frame further; return whether there was one."""
        while (frame := self._next()) is not None:
            if self._index.counted:
                self._at += 1
            elif frame.pts is None or self._floor is None or frame.pts < self._floor:
                continue  # frames shown before the key frame we landed on refer to others that were not decoded
            else:
                self._at = int(np.searchsorted(self._index.pts, frame.pts))
            self._last = frame
            return True
        return False

    def _reachable(self, position: int) -> bool:
        if position < self._at:
            return False
        if self._index.counted:
            return True
        here = self._index.pts[min(max(self._at, 0) + _FORWARD, len(self._index.pts) - 1)]
        key = self._key(position)
        return key < 0 or bool(self._index.key_pts[key] <= here)

    def _key(self, position: int) -> int:
        return int(np.searchsorted(self._index.key_pts, self._index.pts[position], side="right")) - 1

    def _seek(self, position: int) -> None:
        """Land on a frame at or before a position, by the nearest key frame that allows it, else at the file's start."""
        if not self._index.counted:
            for key in range(self._key(position), 0, -1):
                try:
                    self._container.seek(int(self._index.key_seek[key]), stream=self._stream, backward=True)
                    self._restart()
                    landed = self._advance() and self._at <= position
                except av.FFmpegError:
                    break
                if landed:
                    return
        self.close()
        self._open()


def _index(path: str, size: int, mtime_ns: int) -> VideoIndex:
    name = shown(path)
    try:
        with _open(Path(path)) as container:
            stream = container.streams.video[0]
            table = _Packets.scan(container, stream, name)
        with _open(Path(path)) as container:
            first = next(iter(container.decode(container.streams.video[0])), None)
            if first is None:
                raise MediaError(f"{name}: the video holds no frame that decodes; re-encode the clip")
        if table.counted:
            with _open(Path(path)) as container:
                table = table.recount(container, container.streams.video[0])
    except (av.FFmpegError, EOFError, ValueError, UnicodeDecodeError) as error:
        raise MediaError(
            f"{name}: cannot be read as a video ({_reason(error)}); expected a file such as MP4, MKV, WebM, AVI or GIF"
        ) from error
    turns = round(first.rotation / 90) % 4
    coded = (first.width, first.height)
    base = table.time_base
    starts = (table.pts - table.pts[0]).astype(np.float64) * base.numerator / base.denominator
    end = float(table.end - int(table.pts[0])) * base.numerator / base.denominator
    return VideoIndex(
        pts=table.pts,
        starts=starts,
        end=end,
        key_pts=table.key_pts,
        key_seek=table.key_seek,
        size=coded if turns % 2 == 0 else (coded[1], coded[0]),
        coded_size=coded,
        turns=turns,
        counted=table.counted,
    )


class _IndexCache:
    """Tables of the files used last, up to so many frames in all: a long film's table weighs as much as those of many clips."""

    def __init__(self, frames: int) -> None:
        self._limit = frames
        self._frames = 0
        self._held: OrderedDict[tuple[str, int, int], VideoIndex] = OrderedDict()

    def get(self, path: str, size: int, mtime_ns: int) -> VideoIndex:
        key = (path, size, mtime_ns)
        found = self._held.get(key)
        if found is not None:
            self._held.move_to_end(key)
            return found
        made = self._held[key] = _index(path, size, mtime_ns)
        self._frames += len(made.pts)
        while self._frames > self._limit and len(self._held) > 1:
            self._frames -= len(self._held.popitem(last=False)[1].pts)
        return made


_INDICES = _IndexCache(frames=2_000_000)


@dataclass(frozen=True)
class _Packets:
    """What one reading of the packets gave, in units of the time base."""

    pts: np.ndarray
    end: int
    key_pts: np.ndarray
    key_seek: np.ndarray
    time_base: Fraction
    counted: bool

    @classmethod
    def scan(cls, container: Any, stream: Any, name: str) -> _Packets:
        """Read all packets of a stream without decoding them.

        Raises:
            MediaError: there are none, or the file breaks off.
        """
        rows: list[tuple[int, int]] = []
        keys: list[tuple[int, int]] = []
        unstamped = 0
        by_pts = container.format.name.startswith("matroska")
        for packet in container.demux(stream):
            if packet.size == 0:
                continue
            if packet.is_corrupt:
                raise MediaError(f"{name}: the file breaks off after {len(rows)} frames; copy it again")
            stamp = packet.pts if packet.pts is not None else packet.dts
            if stamp is None:
                unstamped += 1
                continue
            unstamped += packet.pts is None
            if packet.is_keyframe:
                keys.append((stamp, stamp if by_pts or packet.dts is None else packet.dts))
            if not packet.is_discard:
                rows.append((stamp, packet.duration or 0))
        if not rows and not unstamped:
            raise MediaError(f"{name}: the video holds no frames; re-encode the clip")
        rows.sort()
        keys.sort()
        pts = np.array([stamp for stamp, _ in rows], dtype=np.int64)
        base = Fraction(stream.time_base.numerator, stream.time_base.denominator)
        counted = (
            unstamped > 0
            or bool((np.diff(pts) <= 0).any())
            or container.format.name in _COUNTED_CONTAINERS
            or stream.codec_context.name in _COUNTED_CODECS
        )
        end = _last_end(pts, rows[-1][1] if rows else 0, stream, base)
        _refuse_broken_off(container, stream, end, base, len(rows), name)
        pairs = np.array(keys, dtype=np.int64).reshape(-1, 2)
        return cls(pts, end, pairs[:, 0], pairs[:, 1], base, counted)

    def recount(self, container: Any, stream: Any) -> _Packets:
        """Return the table by decoding every frame once: their number, and stamps that ascend."""
        stamps = [frame.pts for frame in container.decode(stream)]
        count = len(stamps)
        ordered = np.unique(self.pts)
        known = [stamp for stamp in stamps if stamp is not None]
        if len(ordered) != count and len(set(known)) == count:
            ordered = np.array(sorted(known), dtype=np.int64)
        if len(ordered) != count:
            # No usable stamps: the stream's own rate is all there is.
            step = 1 / (_rate(stream) * self.time_base)
            ordered = np.array([round(i * step) for i in range(count)], dtype=np.int64)
            return _Packets(ordered, round(count * step), self.key_pts, self.key_seek, self.time_base, True)
        end = max(self.end, int(ordered[-1]) + _usual_step(ordered))
        return _Packets(ordered, end, self.key_pts, self.key_seek, self.time_base, True)


def _last_end(pts: np.ndarray, duration: int, stream: Any, base: Fraction) -> int:
    """Return the end of the last frame: by the stream's duration where that is likely, else by its packet, else by the usual step."""
    if len(pts) == 0:
        return 0
    last = int(pts[-1])
    if stream.duration is not None:
        # Before the packet's: with B-frames an MP4 packet's duration belongs to the decoding order.
        declared = int(pts[0]) + int(stream.duration)
        if last < declared <= last + 4 * max(duration, _usual_step(pts)):
            return declared
    if duration > 0:
        return last + duration
    if len(pts) > 1:
        return last + _usual_step(pts)
    return last + max(round(1 / (_rate(stream) * base)), 1)


def _rate(stream: Any) -> Fraction:
    """Return the frames per second that the header tells, 25 where it tells none."""
    rate = stream.average_rate or stream.guessed_rate
    return Fraction(rate.numerator, rate.denominator) if rate and rate.numerator > 0 else Fraction(25)


def _usual_step(pts: np.ndarray) -> int:
    return max(int(np.median(np.diff(pts))), 1) if len(pts) > 1 else 1


def _refuse_broken_off(container: Any, stream: Any, end: int, base: Fraction, count: int, name: str) -> None:
    """Raise where the header promises clearly more than the packets hold."""
    if stream.duration is not None:
        declared = float(stream.duration * base) + float((stream.start_time or 0) * base)
    elif container.duration is not None and len(container.streams) == 1:
        declared = (container.duration + (container.start_time or 0)) / av.time_base
    else:
        return
    held = float(end * base)
    if count and declared - held > max(0.5, 0.05 * declared):
        raise MediaError(f"{name}: the file breaks off at {held:.2f} s, its header says {declared:.2f} s; copy it again")


def _open(path: Path) -> Any:
    # The path is absolute, so FFmpeg reads no protocol out of a name such as "http:a.mp4".
    container = av.open(str(path), options=dict(_OPTIONS))
    if not container.streams.video:
        container.close()
        raise MediaError(f"{shown(path)}: the file holds no video stream; expected a video")
    codec = container.streams.video[0].codec_context
    if codec is None:
        container.close()
        raise MediaError(f"{shown(path)}: the video's codec is not known here; re-encode the clip, as H.264 say")
    codec.thread_count = 1  # data workers are the parallelism; see `_Decoder` for threads and forks
    pixels = (codec.width or 0) * (codec.height or 0)
    if pixels > MAX_PIXELS:
        container.close()
        raise MediaError(f"{shown(path)}: frames of {pixels:,} pixels are more than the limit of {MAX_PIXELS:,}; make the clip smaller")
    return container


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return text or type(error).__name__
