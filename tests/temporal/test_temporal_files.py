"""Precomputed features: formats, joining, and complaints that name the file."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.numpy import save_file

from tpo_core.stack import stack_rows
from tpo_core.types import BackboneView, ClipView, Queries, Target, Widths
from tpo_heads.temporal.codec import TemporalCodec
from tpo_heads.temporal.config import FeatureFiles, TemporalConfig
from tpo_heads.temporal.files import read_clips, read_rows
from tpo_heads.temporal.head import TemporalHead

VIEW = BackboneView(model_type="toy", frames=8, temporal_patch=1, feature_dim=12, hidden=16)
SMALL: dict[str, Any] = {"hidden": 8, "attention_heads": 1, "inner_width": 8, "dummies": 2, "dropout": 0.0, "input_dropout": 0.0}


class Clip:
    kind, size, key, times = "video", (4, 2), "0", (0.0,)

    def __init__(self, path: Path | str, duration: float) -> None:
        self.path, self.duration = str(path), duration


def files(folder: Path, **more: Any) -> FeatureFiles:
    given = {"clips": (str(folder / "{stem}.npz"),), "clip_width": 3, "clip_seconds": 2.0, **more}
    return FeatureFiles(**given)


def rows(count: int, width: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)


@pytest.mark.parametrize("suffix", ["npz", "npy", "safetensors"])
def test_three_formats_give_the_same_rows(tmp_path: Path, suffix: str) -> None:
    data, path = rows(4), tmp_path / f"a.{suffix}"
    if suffix == "npz":
        np.savez(path, features=data, other=np.zeros(2))
    elif suffix == "npy":
        np.save(path, data)
    else:
        save_file({"features": data, "other": np.zeros(2)}, path)
    np.testing.assert_array_equal(read_rows(path, "features", normalize=False), data)


def test_rows_are_scaled_to_length_one_on_request_and_half_precision_is_read(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([[3, 4], [0, 0]], dtype=np.float16))
    found = read_rows(tmp_path / "a.npy", "features", normalize=True)
    np.testing.assert_allclose(found, [[0.6, 0.8], [0, 0]], rtol=1e-6)
    assert found.dtype == np.float32


def test_a_pickle_is_never_executed(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "executed",))

    (tmp_path / "a.npy").write_bytes(pickle.dumps(Trap()))
    np.save(tmp_path / "b.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "c.npz", features=np.array([{}], dtype=object))
    for name in ("a.npy", "b.npy", "c.npz"):
        with pytest.raises(ValueError, match=name.replace(".", r"\.")):
            read_rows(tmp_path / name, "features", normalize=False)
    assert not (tmp_path / "executed").exists()


def test_complaints_about_a_file_name_it(tmp_path: Path) -> None:
    (tmp_path / "torn.npz").write_bytes(b"PK\x03\x04torn")
    np.save(tmp_path / "flat.npy", np.zeros(3))
    np.save(tmp_path / "text.npy", np.array([["a"]]))
    np.save(tmp_path / "empty.npy", np.zeros((0, 3)))
    np.save(tmp_path / "nan.npy", np.array([[1.0, 2], [np.nan, 0]]))
    np.savez(tmp_path / "keys.npz", x=rows(2), y=rows(2))
    for name, says in {
        "missing.npy": "there is no such feature file",
        "torn.npz": "not readable",
        "flat.npy": r"shape \(rows, width\), got float64 \(3,\)",
        "text.npy": "must be numbers",
        "empty.npy": r"got float64 \(0, 3\)",
        "nan.npy": "row 1 holds values that are not finite",
        "keys.npz": r"holds \['x', 'y'\], but no 'features'; set clip_key or word_key",
    }.items():
        with pytest.raises(ValueError, match=says) as caught:
            read_rows(tmp_path / name, "features", normalize=False)
        assert str(tmp_path / name) in str(caught.value)


def test_clips_end_with_the_video(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", features=rows(5))
    clips, times = read_clips(files(tmp_path), "videos/a.mp4", 9.0)
    assert clips.shape == (5, 3)
    np.testing.assert_array_equal(times, [[0, 2], [2, 4], [4, 6], [6, 8], [8, 9]])
    assert len(read_clips(files(tmp_path), "videos/a.mp4", 7.9)[0]) == 4


def test_files_are_joined_along_the_width_and_cut_to_the_shortest(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", features=rows(5))
    np.save(tmp_path / "a.npy", rows(4, 2))
    config = files(tmp_path, clips=(str(tmp_path / "{stem}.npz"), str(tmp_path / "{stem}.npy")), clip_width=5, normalize=False)
    clips, _ = read_clips(config, "a.mp4", 9.0)
    np.testing.assert_array_equal(clips, np.concatenate([rows(5)[:4], rows(4, 2)], axis=1))


@pytest.mark.parametrize(
    ("more", "duration", "says"),
    [
        ({"clip_width": 4}, 10.0, r"a\.npz: features are 3 wide, but the config's clip_width is 4"),
        ({}, 150.0, r"a\.npz: 5 clips of 2 s cover 10 s, but the video lasts 150 s"),
        ({}, 3.0, "cover 10 s, but the video lasts 3 s"),
        ({"clips": ("{vid}.npz",)}, 10.0, r"pattern '\{vid\}.npz' cannot be filled .* it may use dir, stem"),
    ],
)
def test_features_that_do_not_fit_the_video_are_refused(tmp_path: Path, more: dict[str, Any], duration: float, says: str) -> None:
    np.savez(tmp_path / "a.npz", features=rows(5))
    with pytest.raises(ValueError, match=says):
        read_clips(files(tmp_path, **more), "a.mp4", duration)


def test_joined_files_of_very_different_length_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", features=rows(5))
    np.save(tmp_path / "a.npy", rows(50))
    config = files(tmp_path, clips=(str(tmp_path / "{stem}.npz"), str(tmp_path / "{stem}.npy")), clip_width=6)
    with pytest.raises(ValueError, match=r"a\.npz has 5 clips, its companions have \[50\]"):
        read_clips(config, "a.mp4", 10.0)


def test_config_of_files_is_checked() -> None:
    with pytest.raises(ValidationError, match="words and word_width together"):
        FeatureFiles(clips=("a",), clip_width=1, clip_seconds=1, words="b")
    with pytest.raises(ValidationError, match="with source: files, and only then"):
        TemporalConfig(source="files")
    with pytest.raises(ValidationError, match="must be a multiple of 4"):
        TemporalConfig(hidden=30)


def setup(folder: Path, **more: Any) -> tuple[TemporalCodec, TemporalHead]:
    config = TemporalConfig(source="files", files=files(folder, **more), **SMALL)
    torch.manual_seed(0)
    return TemporalCodec(config, VIEW), TemporalHead(config, Widths(hidden=16, features=12, words=16))


def ask(codec: TemporalCodec, clips: list[ClipView], media: list[int]) -> Queries:
    inputs = stack_rows([codec.inputs(clip) for clip in clips], codec.ragged)
    count = len(media)
    states = torch.randn(count, 1, 16, generator=torch.Generator().manual_seed(1))
    words = torch.randn(count, 2, 16, generator=torch.Generator().manual_seed(2))
    return Queries(states, torch.tensor(media), words, torch.ones(count, 2, dtype=torch.bool), None, inputs)


def test_head_trains_from_clip_files_of_different_length(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", features=rows(5))
    np.savez(tmp_path / "b.npz", features=rows(3, seed=1))
    codec, head = setup(tmp_path)
    clips = [ClipView(Clip("a.mp4", 10.0)), ClipView(Clip("b.mp4", 5.5))]
    queries = ask(codec, clips, [0, 1, 1])
    spans = ([[1.0, 4.0]], [[0.0, 2.0]], [])
    rows_ = [codec.encode(Target(id="t", spans=s), clips[m])[0] for s, m in zip(spans, (0, 1, 1))]
    output = head(queries, stack_rows(rows_, codec.ragged))
    assert output["length"].tolist() == [10.0, 5.5, 5.5]
    losses = head.loss(output, stack_rows(rows_, codec.ragged))
    assert all(bool(torch.isfinite(loss).all()) for loss in losses.values())
    torch.stack([loss.sum() for loss in losses.values()]).sum().backward()
    assert head.network.clip_input.linear1.weight.grad is not None


def test_words_from_files_belong_to_their_question(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", features=rows(5))
    for name, seed in (("q7", 3), ("q8", 4), ("q9", 5)):
        np.savez(tmp_path / f"{name}.npz", last_hidden_state=rows(2 + seed, 6, seed))
    codec, head = setup(tmp_path, words=str(tmp_path / "q{qid}.npz"), word_width=6, max_words=7)
    head.eval()

    def answer(qids: list[int]) -> torch.Tensor:
        targets = tuple(Target(id=f"t{q}", head="temporal", spans=[], qid=q) for q in qids)
        queries = ask(codec, [ClipView(Clip("a.mp4", 10.0), targets)], [0] * len(qids))
        with torch.no_grad():
            spans: torch.Tensor = head(queries)["spans"]
        return spans

    both, first, swapped = answer([7, 8]), answer([7]), answer([7, 9])
    torch.testing.assert_close(both[:1], first)
    torch.testing.assert_close(swapped[:1], first)
    assert not torch.allclose(both[1], swapped[1], atol=1e-4)


def test_words_named_by_the_video_serve_questions_without_an_annotation(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", features=rows(5))
    np.save(tmp_path / "a_words.npy", rows(4, 6))
    codec, head = setup(tmp_path, words=str(tmp_path / "{stem}_words.npy"), word_width=6)
    output = head.eval()(ask(codec, [ClipView(Clip("a.mp4", 10.0))], [0, 0]))
    assert torch.isfinite(output["spans"]).all()
    named, _ = setup(tmp_path, words="q{qid}.npz", word_width=6)
    with pytest.raises(ValueError, match="names fields of a target, but a question of your own has none"):
        named.inputs(ClipView(Clip("a.mp4", 10.0)))


def test_words_of_another_width_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", features=rows(5))
    np.save(tmp_path / "a.npy", rows(4, 6))
    codec, _ = setup(tmp_path, words=str(tmp_path / "{stem}.npy"), word_width=5)
    with pytest.raises(ValueError, match=r"a\.npy: words are 6 wide, the config's word_width is 5"):
        codec.inputs(ClipView(Clip("a.mp4", 10.0)))


def test_long_videos_are_cut_from_one_reading_of_the_file(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", features=rows(200))
    config = TemporalConfig(source="files", files=files(tmp_path), window_seconds=100, **SMALL)
    chunks = list(TemporalCodec(config, VIEW).chunks(ClipView(Clip("a.mp4", 400.0))))
    assert [chunk.inputs["clip_times"][0, 0].item() for chunk in chunks] == [0, 50, 100, 150, 200, 250, 300]
    assert {len(chunk.inputs["clips"]) for chunk in chunks} == {50}
    assert all(chunk.frame_indices == () for chunk in chunks)
