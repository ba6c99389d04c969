"""Frames of video files are exact: each is stamped with its index, and asked for in every order."""

from __future__ import annotations

import dataclasses
import gc
import multiprocessing
import os
import pickle
import random
import struct
import tracemalloc
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from PIL import Image

from tpo_core.errors import MediaError
from tpo_core.media import Medium, open_media, video

Stamp = Callable[[np.ndarray], int]
MP4 = ["constant.mp4", "variable.mp4", "open_gop.mp4", "late.mp4"]
ALL = [*MP4, "variable.mkv", "variable.ts", "vp9.webm", "vp8.webm", "h264.avi", "mpeg4.avi"]


def test_the_clips_do_hold_b_frames_and_key_frames_in_between(clips: Path) -> None:
    for name in ("constant.mp4", "variable.mp4", "open_gop.mp4"):
        with av.open(str(clips / name)) as file:
            packets = [packet for packet in file.demux(video=0) if packet.size]
        assert [packet.pts for packet in packets] != sorted(packet.pts for packet in packets)
        assert sum(packet.is_keyframe for packet in packets) >= 7


@pytest.mark.parametrize("name", ALL)
def test_every_frame_is_exact_one_by_one_in_shuffled_order(clips: Path, name: str, read_stamp: Stamp) -> None:
    media = open_media(path=clips / name, kind="video")
    assert len(media.times) == 90
    order = list(range(90))
    random.Random(name).shuffle(order)
    for index in order[:45]:
        media._cache.clear()  # each one is really looked up in the file
        assert read_stamp(media.frames([index])[0]) == index


@pytest.mark.parametrize("name", ALL)
def test_a_shuffled_list_with_doubles_comes_back_in_its_order(clips: Path, name: str, read_stamp: Stamp) -> None:
    order = [88, 3, 3, 0, 89, 41, 40, 12, 13, 11, 3]
    frames = open_media(path=clips / name, kind="video").frames(order)
    assert frames.shape == (11, 48, 64, 3)
    assert frames.dtype == np.uint8
    assert [read_stamp(frame) for frame in frames] == order


@pytest.mark.parametrize("name", ["variable.mp4", "late.mp4", "variable.mkv", "variable.ts", "vp9.webm", "vp8.webm"])
def test_times_of_a_variable_rate_are_those_that_were_written(clips: Path, name: str, variable_ms: list[int]) -> None:
    media = open_media(path=clips / name, kind="video")
    np.testing.assert_allclose(media.times, np.array(variable_ms) / 1000, atol=1e-9)
    assert variable_ms[-1] / 1000 < media.duration <= variable_ms[-1] / 1000 + 0.048


@pytest.mark.parametrize("name", ["constant.mp4", "h264.avi", "mpeg4.avi"])
def test_times_of_a_constant_rate(clips: Path, name: str) -> None:
    media = open_media(path=clips / name, kind="video")
    np.testing.assert_allclose(media.times, np.arange(90) / 30, atol=1e-9)
    assert media.duration == pytest.approx(3.0)
    assert media.size == (64, 48)


def test_frames_shown_before_the_files_zero_are_left_out(tmp_path: Path, clip_writer: Callable[..., Path], read_stamp: Stamp) -> None:
    # An edit list: the first six frames are in the file, but players do not show them.
    path = clip_writer(tmp_path / "edited.mp4", [i * 40 - 240 for i in range(30)])
    media = open_media(path=path, kind="video")
    assert len(media.times) == 24
    assert [read_stamp(frame) for frame in media.frames([23, 0, 5, 6])] == [29, 6, 11, 12]


def test_reading_in_pieces_gives_every_frame_once_and_keeps_none(clips: Path, read_stamp: Stamp) -> None:
    for name in ("variable.mp4", "vp8.webm"):
        media = open_media(path=clips / name, kind="video")
        pieces = list(media.iterate(chunk=16))
        assert [len(indices) for indices, _ in pieces] == [16, 16, 16, 16, 16, 10]
        assert [read_stamp(frame) for _, frames in pieces for frame in frames] == list(range(90))
        assert not media._cache
    some = [index for indices, frames in media.iterate([4, 9, 80], chunk=2) for index, _ in zip(indices, frames, strict=True)]
    assert some == [4, 9, 80]


def test_memory_stays_flat_over_a_long_clip(tmp_path: Path, clip_writer: Callable[..., Path]) -> None:
    media = open_media(path=clip_writer(tmp_path / "long.mp4", range(600), base=Fraction(1, 30)), kind="video")
    tracemalloc.start()
    peaks = []
    for number, _ in enumerate(media.iterate(chunk=20)):
        if number in (2, 29):
            peaks.append(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
    one_piece = 20 * 48 * 64 * 3
    assert peaks[1] - peaks[0] < one_piece


def test_frames_are_decoded_once_and_the_cache_is_bounded(clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    media = open_media(path=clips / "constant.mp4", kind="video")
    first = media.frames([5, 6])
    read = []
    monkeypatch.setattr(media._source, "read", lambda positions: read.append(list(positions)) or iter(()))
    np.testing.assert_array_equal(media.frames([6, 5]), first[::-1])
    assert read == [[]]
    monkeypatch.undo()
    frame_bytes = 64 * 48 * 3
    monkeypatch.setattr("tpo_core.media.medium.CACHE_BYTES", 4 * frame_bytes)
    media.frames(range(20))
    assert len(media._cache) == 4
    media.close()
    assert len(media._cache) == 0
    np.testing.assert_array_equal(media.frames([5, 6]), first)


def test_the_caller_may_change_what_he_got(clips: Path) -> None:
    media = open_media(path=clips / "constant.mp4", kind="video")
    frames = media.frames([7])
    kept = frames.copy()
    frames[:] = 0
    np.testing.assert_array_equal(media.frames([7]), kept)


def test_pickling_leaves_open_files_and_frames_behind(clips: Path, read_stamp: Stamp) -> None:
    media = open_media(path=clips / "variable.mp4", kind="video", start=1.0)
    media.frames(range(30))
    data = pickle.dumps(media)
    assert len(data) < 10_000
    again = pickle.loads(data)
    assert (again.times, again.key, again.size, again.duration) == (media.times, media.key, media.size, media.duration)
    np.testing.assert_array_equal(again.frames([2, 1]), media.frames([2, 1]))


def _stamps_in_child(media: Medium, order: list[int], results: multiprocessing.Queue[tuple[list[list[int]], bool]]) -> None:
    bits = (media.frames(order)[:, 24, 4::8, 0] > 127).astype(int).tolist()
    gc.collect()  # frees what the parent left in the child's memory
    results.put((bits, media._source._process == os.getpid()))


def test_a_forked_worker_does_not_share_the_parents_place_in_the_file(clips: Path) -> None:
    media = open_media(path=clips / "variable.mp4", kind="video")
    media.frames([40])
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    workers = [context.Process(target=_stamps_in_child, args=(media, [60, 10, 85], results), daemon=True) for _ in range(2)]
    for worker in workers:
        worker.start()
    here = media.frames([41, 70, 20])
    there = [results.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join(60)
    assert there == [([[i >> bit & 1 for bit in range(8)] for i in (60, 10, 85)], True)] * 2
    assert (here[:, 24, 4::8, 0] > 127).astype(int).tolist() == [[i >> bit & 1 for bit in range(8)] for i in (41, 70, 20)]


@pytest.mark.parametrize("name", ["open_gop.mp4", "variable.mkv", "variable.ts"])
def test_a_container_that_seeks_too_far_is_corrected(clips: Path, name: str, read_stamp: Stamp) -> None:
    media = open_media(path=clips / name, kind="video")
    index = media._source._index
    late = np.append(index.key_seek[2:], index.key_seek[-1:].repeat(2))  # every seek lands two key frames too late
    media._source._index = dataclasses.replace(index, key_seek=late)
    order = [50, 14, 85, 3, 37]
    for place in order:
        assert read_stamp(media.frames([place])[0]) == place


@pytest.mark.parametrize(
    ("matrix", "size", "turns"), [((0, 1, -1, 0), (48, 64), 3), ((-1, 0, 0, -1), (64, 48), 2), ((0, -1, 1, 0), (48, 64), 1)]
)
def test_a_phones_rotation_is_applied(
    clips: Path, tmp_path: Path, matrix: tuple[int, int, int, int], size: tuple[int, int], turns: int
) -> None:
    # ISO 14496-12: a point (p, q) of the track is shown at (a p + c q, b p + d q), y down; (0, 1, -1, 0) is a quarter turn clockwise.
    data = bytearray((clips / "constant.mp4").read_bytes())
    a, b, c, d = (value * 65536 for value in matrix)
    place = data.index(b"tkhd") + 4 + 40
    data[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    (tmp_path / "turned.mp4").write_bytes(data)
    media = open_media(path=tmp_path / "turned.mp4", kind="video")
    assert media.size == size
    upright = open_media(path=clips / "constant.mp4", kind="video").frames([9])[0]
    np.testing.assert_array_equal(media.frames([9])[0], np.rot90(upright, turns))


def test_an_animated_gif_is_a_clip_or_its_first_picture(tmp_path: Path) -> None:
    pictures = [Image.fromarray(np.full((20, 30, 3), 40 * i, np.uint8)) for i in range(5)]
    pictures[0].save(tmp_path / "a.gif", save_all=True, append_images=pictures[1:], duration=[100, 200, 50, 100, 300])
    clip = open_media(path=tmp_path / "a.gif", kind="video")
    np.testing.assert_allclose(clip.times, [0, 0.1, 0.3, 0.35, 0.45])
    assert clip.duration == pytest.approx(0.75)
    assert clip.frames([4, 0, 2])[:, 3, 3].tolist() == [[160] * 3, [0] * 3, [80] * 3]
    picture = open_media(path=tmp_path / "a.gif", kind="image")
    assert (picture.times, picture.duration, picture.size) == ((0.0,), 0.0, (30, 20))
    assert picture.frames([0])[0, 3, 3].tolist() == [0, 0, 0]


def test_a_clip_of_one_frame(tmp_path: Path, clip_writer: Callable[..., Path]) -> None:
    media = open_media(path=clip_writer(tmp_path / "one.mp4", [0], base=Fraction(1, 30)), kind="video")
    assert media.times == (0.0,)
    assert media.duration == pytest.approx(1 / 30)


def test_a_changed_file_is_indexed_anew_and_has_another_key(tmp_path: Path, clip_writer: Callable[..., Path]) -> None:
    path = clip_writer(tmp_path / "a.mp4", range(5), base=Fraction(1, 30))
    old = open_media(path=path, kind="video")
    clip_writer(path, range(8), base=Fraction(1, 30))
    new = open_media(path=path, kind="video")
    assert (len(old.times), len(new.times)) == (5, 8)
    assert old.key != new.key
    assert open_media(path=path, kind="video").key == new.key
    assert open_media(path=path, kind="video", start=0.1).key != new.key


def test_tables_of_frames_are_kept_up_to_a_number_of_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many short clips or one film: what is kept weighs alike; the one used longest ago goes first."""
    made: list[str] = []

    def index(path: str, size: int, mtime_ns: int) -> SimpleNamespace:
        made.append(path)
        return SimpleNamespace(pts=range(int(path)))

    monkeypatch.setattr(video, "_index", index)
    cache = video._IndexCache(frames=10)
    for path in ("4", "5", "4", "3", "4", "5", "100", "4"):
        cache.get(path, 1, 1)
    assert made == ["4", "5", "3", "5", "100", "4"]
    assert cache.get("4", 1, 2) is not cache.get("4", 1, 1)


def test_an_index_outside_the_clip_is_an_error(clips: Path) -> None:
    media = open_media(path=clips / "constant.mp4", kind="video", end=1.0)
    for index in (-1, 30):
        with pytest.raises(MediaError, match=rf"frame {index} was asked for, but there are 30 frames \(0 to 29\) after the cut"):
            media.frames([0, index])
