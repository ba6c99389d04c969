"""What may not be opened, and what breaks off: one sentence each, and nothing hangs."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
import pytest
from PIL import Image

from tpo_core.errors import DataError, MediaError
from tpo_core.media import open_media

Kind = Literal["image", "video"]


def refusal(path: Path | str, kind: Kind, **options: Any) -> str:
    """The sentence with which opening, or else reading, is refused."""

    def read() -> None:
        media = open_media(path=path, kind=kind, **options)
        media.frames(range(len(media.times)))

    with pytest.raises(MediaError) as caught:
        read()
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 600
    assert isinstance(caught.value, DataError)
    return text


@pytest.fixture(scope="module")
def cuttable(tmp_path_factory: pytest.TempPathFactory, clip_writer: Callable[..., Path], variable_ms: list[int]) -> Path:
    """An MP4 whose table of frames stands at its front: cutting it leaves a file that opens."""
    return clip_writer(tmp_path_factory.mktemp("cut") / "front.mp4", variable_ms, container={"movflags": "faststart"})


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 0.99])
def test_a_truncated_mp4_is_refused_when_it_is_opened(cuttable: Path, tmp_path: Path, share: float) -> None:
    data = cuttable.read_bytes()
    (tmp_path / "t.mp4").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(MediaError, match=r"breaks off|cannot be read as a video"):
        open_media(path=tmp_path / "t.mp4", kind="video")


@pytest.mark.parametrize("name", ["constant.mp4", "variable.mkv", "vp9.webm", "h264.avi"])
def test_half_of_a_clip_is_refused(clips: Path, tmp_path: Path, name: str) -> None:
    data = (clips / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    refusal(tmp_path / name, "video")


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "gif"])
def test_half_of_a_picture_is_refused(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(noise).save(path)
    assert open_media(path=path, kind="image").frames([0]).shape == (1, 64, 64, 3)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "a." + suffix in refusal(path, "image")


@pytest.mark.parametrize("kind", ["image", "video"])
def test_what_is_no_medium_at_all(tmp_path: Path, kind: Kind, clips: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "text").write_text("this is no picture")
    (tmp_path / "folder").mkdir()
    assert "the file is empty" in refusal(tmp_path / "empty", kind)
    assert "cannot be read as a" in refusal(tmp_path / "text", kind)
    assert "no such file" in refusal(tmp_path / "absent.png", kind)
    assert "no such file" in refusal(tmp_path / "text" / "below", kind)
    assert "folder" in refusal(tmp_path / "folder", kind)
    assert "not a path" in refusal("", kind)
    assert "not a path" in refusal("a\0b", kind)
    assert "cannot be resolved" in refusal("x" * 5000, kind)
    assert "not a regular file" in refusal("/dev/zero", kind)


def test_a_clip_is_no_picture_and_a_sound_is_no_clip(clips: Path, tmp_path: Path) -> None:
    assert "expected one of PNG, JPEG" in refusal(clips / "constant.mp4", "image")
    riff = b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 8000, 8000, 1, 8) + b"data" + struct.pack("<I", 800) + bytes(800)
    (tmp_path / "a.avi").write_bytes(b"RIFF" + struct.pack("<I", len(riff)) + riff)
    refusal(tmp_path / "a.avi", "video")


@pytest.mark.parametrize("kind", ["image", "video"])
def test_a_pipe_is_refused_without_waiting_for_a_writer(tmp_path: Path, kind: Kind) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    assert "not a regular file" in refusal(tmp_path / "pipe.mp4", kind)


def test_paths_stay_inside_the_root_unless_allowed(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    Image.new("RGB", (6, 4)).save(outside / "a.png")
    Image.new("RGB", (6, 4)).save(root / "b.png")
    (root / "link.png").symlink_to(outside / "a.png")
    (root / "linked").symlink_to(outside)
    (root / "inside.png").symlink_to(root / "b.png")
    (root / "loop.png").symlink_to(root / "loop.png")
    for path in ("../outside/a.png", str(outside / "a.png"), "link.png", "linked/a.png"):
        assert "outside the data root" in refusal(path, "image", root=root)
        assert open_media(path=path, kind="image", root=root, allow_outside_root=True).size == (6, 4)
    for path in ("b.png", "inside.png", str(root / "b.png"), "../root/b.png"):
        assert open_media(path=path, kind="image", root=root).size == (6, 4)
    refusal("loop.png", "image", root=root)
    (tmp_path / "root_link").symlink_to(root)
    assert open_media(path="b.png", kind="image", root=tmp_path / "root_link").size == (6, 4)


def test_frames_of_a_folder_stay_inside_too(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "clip").mkdir(parents=True)
    outside.mkdir()
    Image.new("RGB", (6, 4)).save(outside / "a.png")
    Image.new("RGB", (6, 4)).save(root / "clip" / "0.png")
    (root / "clip" / "1.png").symlink_to(outside / "a.png")
    for frames in (["../../outside/a.png"], [str(outside / "a.png")], ["0.png", "1.png"], None):
        assert "outside the data root" in refusal("clip", "video", root=root, frames=frames)
    assert "no such file" in refusal("clip", "video", root=root, frames=["0.png", "7.png"])
    assert "is a file, but frames are named" in refusal("clip/0.png", "video", root=root, frames=["0.png"])
    assert len(open_media(path="clip", kind="video", root=root, allow_outside_root=True).times) == 2


def test_files_that_name_other_files_are_not_followed(tmp_path: Path, clips: Path) -> None:
    for name in ("variable.ts", "variable.mp4"):
        (tmp_path / name).write_bytes((clips / name).read_bytes())
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nvariable.ts\n#EXT-X-ENDLIST\n")
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile variable.mp4\n")
    for name in ("list.m3u8", "list.mp4"):
        with av.open(str(tmp_path / name)) as file:
            assert next(file.decode(video=0)).width == 64  # FFmpeg by itself follows them
        assert "cannot be read as a video" in refusal(tmp_path / name, "video")


def test_names_that_look_like_addresses_or_patterns_are_plain_names(tmp_path: Path, clips: Path) -> None:
    for name in ("http:a.mp4", "concat:a.mp4", "a%03d.mp4", "-i.mp4"):
        (tmp_path / name).write_bytes((clips / "constant.mp4").read_bytes())
        assert len(open_media(path=name, kind="video", root=tmp_path).times) == 90


def test_control_characters_of_a_path_do_not_reach_the_terminal(tmp_path: Path) -> None:
    assert "\x1b" not in refusal(tmp_path / "a\x1b[31m.png", "image")


def _png(width: int, height: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore:Image size")
@pytest.mark.parametrize("side", [9_000, 12_000, 60_000])
def test_a_picture_that_would_fill_the_memory_is_refused_by_its_header(tmp_path: Path, side: int) -> None:
    (tmp_path / "bomb.png").write_bytes(_png(side, side))
    text = refusal(tmp_path / "bomb.png", "image")
    assert "limit" in text


def test_other_formats_that_pillow_knows_are_refused(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png", format="TIFF")
    assert "expected one of PNG, JPEG, WEBP, BMP, GIF" in refusal(tmp_path / "a.png", "image")


@pytest.mark.parametrize(("suffix", "orientation"), [(s, o) for s in ("jpg", "png", "webp") for o in range(1, 9)])
def test_exif_orientation_is_applied_to_size_and_pixels(tmp_path: Path, suffix: str, orientation: int) -> None:
    # A picture of 48 x 32 with one bright quarter; the quarter goes where each orientation puts the stored top left corner.
    stored = np.zeros((32, 48, 3), np.uint8)
    stored[:16, :24] = 255
    image = Image.fromarray(stored)
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(tmp_path / f"a.{suffix}", exif=exif)
    media = open_media(path=tmp_path / f"a.{suffix}", kind="image")
    shown = media.frames([0])[0]
    assert media.size == ((32, 48) if orientation > 4 else (48, 32))
    assert shown.shape == (media.size[1], media.size[0], 3)
    corners = {"tl": shown[4, 4, 0], "tr": shown[4, -5, 0], "br": shown[-5, -5, 0], "bl": shown[-5, 4, 0]}
    bright = {1: "tl", 2: "tr", 3: "br", 4: "bl", 5: "tl", 6: "tr", 7: "br", 8: "bl"}[orientation]
    assert {corner for corner, value in corners.items() if value > 127} == {bright}


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1", "I;16"])
def test_other_pixel_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.full((5, 7), 128 * 256, np.uint16))
    else:
        image = Image.new("RGB", (7, 5), (255, 255, 255)).convert(mode)
    image.save(tmp_path / "a.png")
    frames = open_media(path=tmp_path / "a.png", kind="image").frames([0])
    assert frames.shape == (1, 5, 7, 3)
    assert frames[0, 2, 2].tolist() == [128 if mode == "I;16" else 255] * 3


def test_an_image_has_no_clock_of_its_own(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    for option in ({"start": 1.0}, {"end": 1.0}, {"fps": 1.0}, {"frames": ["a.png"]}):
        assert "an image has no start, end, fps or frames" in refusal(tmp_path / "a.png", "image", **option)


@pytest.mark.parametrize("name", ["constant.mp4", "variable.mkv", "vp9.webm", "variable.ts", "h264.avi"])
def test_damaged_bytes_give_frames_or_one_sentence(clips: Path, tmp_path: Path, name: str) -> None:
    rng = np.random.default_rng(0)
    data = (clips / name).read_bytes()
    sentences: list[str] = []
    for trial in range(12):
        broken = bytearray(data)
        for place in rng.integers(0, len(data) if trial % 2 else 500, 12):
            broken[place] = rng.integers(256)
        path = tmp_path / f"{trial}-{name}"
        path.write_bytes(broken)
        try:
            media = open_media(path=path, kind="video")
            frames = media.frames([len(media.times) - 1])
        except MediaError as error:
            sentences.append(str(error))
        else:
            assert frames.shape[0] == 1
    assert sentences
    assert all("\n" not in sentence and name in sentence for sentence in sentences)
