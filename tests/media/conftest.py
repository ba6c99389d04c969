"""Clips whose every frame carries its own index in its pixels, and the reader of that stamp."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

WIDTH, HEIGHT = 64, 48
COUNT = 90
VARIABLE_MS = [0]
for _i in range(COUNT - 1):
    VARIABLE_MS.append(VARIABLE_MS[-1] + (20 if _i % 2 else 47))


def stamped(index: int) -> np.ndarray:
    """Eight black or white bars of 8 x 48 pixels, the index's bits from low to high."""
    frame_HW3 = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for bit in range(8):
        frame_HW3[:, bit * 8 : bit * 8 + 8] = 255 * (index >> bit & 1)
    return frame_HW3


def write_clip(
    path: Path,
    stamps: Sequence[int],
    *,
    base: Fraction = Fraction(1, 1000),
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    container: dict[str, str] | None = None,
    b_frames: int = 3,
) -> Path:
    with av.open(str(path), "w", container_options=container or {}) as file:
        stream = file.add_stream(codec, rate=30, options=options or {})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.time_base = stream.codec_context.time_base = base
        stream.codec_context.gop_size, stream.codec_context.max_b_frames = 12, b_frames
        for index, stamp in enumerate(stamps):
            frame = av.VideoFrame.from_ndarray(stamped(index), format="rgb24")
            frame.pts, frame.time_base = stamp, base
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


@pytest.fixture(scope="session")
def clip_writer() -> Callable[..., Path]:
    return write_clip


@pytest.fixture(scope="session")
def read_stamp() -> Callable[[np.ndarray], int]:
    def read(frame_HW3: np.ndarray) -> int:
        return sum(int(frame_HW3[:, bit * 8 + 2 : bit * 8 + 6].mean() > 127) << bit for bit in range(8))

    return read


@pytest.fixture(scope="session")
def variable_ms() -> list[int]:
    """Start of each frame of the clips of variable rate, in milliseconds: steps of 47 and 20 in turn."""
    return list(VARIABLE_MS)


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one clip of 90 stamped frames for each way in which files tell time."""
    folder = tmp_path_factory.mktemp("clips")
    frame = Fraction(1, 30)
    write_clip(folder / "constant.mp4", range(COUNT), base=frame)
    write_clip(folder / "variable.mp4", VARIABLE_MS)
    write_clip(folder / "open_gop.mp4", VARIABLE_MS, options={"x264-params": "open-gop=1:bframes=3:keyint=12:scenecut=0"})
    write_clip(folder / "late.mp4", [stamp + 5000 for stamp in VARIABLE_MS])
    write_clip(folder / "variable.mkv", VARIABLE_MS)
    write_clip(folder / "variable.ts", VARIABLE_MS)
    write_clip(folder / "vp9.webm", VARIABLE_MS, codec="libvpx-vp9", options={"cpu-used": "8", "deadline": "realtime"})
    write_clip(folder / "vp8.webm", VARIABLE_MS, codec="libvpx", options={"cpu-used": "8", "deadline": "realtime"})
    write_clip(folder / "h264.avi", range(COUNT), base=frame)
    write_clip(folder / "mpeg4.avi", range(COUNT), base=frame, codec="mpeg4")
    return folder
