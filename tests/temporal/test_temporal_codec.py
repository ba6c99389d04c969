"""The codec: annotation to tensors, output to seconds, long clips in pieces, and the words of its complaints."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tpo_core.stack import stack_rows
from tpo_core.testing import ArrayMedia
from tpo_core.types import BackboneView, ClipView, FrameFeatures, Queries, Target, Widths
from tpo_heads.temporal.codec import TemporalCodec, window_contrast
from tpo_heads.temporal.config import TemporalConfig
from tpo_heads.temporal.head import TemporalHead
from tpo_heads.temporal.windows import frames_of_piece, iou_pairwise, merge_highlights, pieces, suppress

VIEW = BackboneView(model_type="toy", frames=8, temporal_patch=1, feature_dim=12, hidden=16)


class Clip:
    """A clip of any length without a frame in memory."""

    kind = "video"
    size = (4, 2)
    key = "0"

    def __init__(self, duration: float, times: Sequence[float] = (), path: str = "clips/a.mp4") -> None:
        self.duration, self.path = duration, path
        self.times = tuple(times) or tuple(i / 4 for i in range(max(int(duration * 4), 1)))

    def frames(self, indices: Sequence[int]) -> np.ndarray:
        raise AssertionError("the temporal codec needs no pixels")


def target(**fields: Any) -> Target:
    return Target(id="t0", head="temporal", **fields)


def view(duration: float, **more: Any) -> ClipView:
    return ClipView(Clip(duration), frame_indices=(0, 1), **more)


def codec(**options: Any) -> TemporalCodec:
    return TemporalCodec(TemporalConfig(**options), VIEW)


RATED = {"clip_len": 2.0, "num_clips": 5, "clip_ids": [1, 2], "scores": [[4, 4, 2], [1, 0, 2]]}


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"spans": [[3.0, 20.0]]}, r"window 0 \[3, 20\] lies outside the clip of 10 s; write seconds"),
        ({"spans": [[1.0, 2.0], [-1.0, 2.0]]}, r"window 1 \[-1, 2\] lies outside"),
        ({"spans": [[10.0, 10.2]]}, r"window 0 \[10, 10.2\] lies outside"),
        ({"spans": [[5.0, 4.0]]}, r"window 0 \[5, 4\] is empty or reversed; write \[start, end\] with start < end"),
        ({"spans": [[5.0, 5.0]]}, "is empty or reversed"),
        ({"spans": [], "duration": 33.0}, "the annotated duration is 33 s, but the clip lasts 10 s"),
        ({"spans": [], "saliency": {**RATED, "num_clips": 75}}, "saliency has 75 clips of 2 s, which is 150 s, but the clip lasts 10 s"),
        ({"spans": [], "saliency": {**RATED, "scores": [[1, 1, 1]]}}, "1 rows of scores for 2 clip_ids"),
        ({"spans": [], "saliency": {**RATED, "clip_ids": [1, 7]}}, "names clip 7, but there are 5 clips"),
        ({"spans": [], "saliency": {**RATED, "clip_ids": [1, 1]}}, "names a clip twice"),
        ({"spans": [], "saliency": {**RATED, "scores": [[1], [1, 2]]}}, "differ in length"),
        ({"spans": [[1.0]]}, "spans"),
        ({"spans": [["a", 2]]}, "spans"),
        ({}, "spans"),
    ],
)
def test_wrong_annotation_is_refused_in_one_sentence(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        codec().check(target(**fields), Clip(10.0))


@pytest.mark.parametrize(
    "fields",
    [
        {"spans": []},
        {"spans": [[0.0, 10.0]], "duration": 10.4},
        {"spans": [[3.0, 10.4]]},  # past the end by less than 5 %: data sets do that
        {"spans": [[3.0, 4.0]], "saliency": RATED, "qid": 12, "distractors": [[5, 6]]},
    ],
)
def test_legal_annotation_passes(fields: dict[str, Any]) -> None:
    codec().check(target(**fields), Clip(10.0))


def test_a_picture_has_no_moments() -> None:
    picture = ArrayMedia(np.zeros((1, 2, 4, 3), np.uint8))
    with pytest.raises(ValueError, match="needs a video, but the medium is an image"):
        codec().check(target(spans=[]), picture)


def test_windows_are_clipped_for_training_and_counted() -> None:
    (encoded,) = codec().encode(target(spans=[[3.0, 10.4], [0.0, 1.0]]), view(10.0))
    assert encoded["spans"].tolist() == [[3.0, 10.0], [0.0, 1.0]]
    counts = codec().counts(encoded)
    assert counts["span"] == counts["giou_1"] == 2
    assert counts["label"] == counts["distill"] == 1


def test_not_there_is_one_query_without_a_window() -> None:
    (encoded,) = codec().encode(target(spans=[]), view(10.0))
    assert encoded["spans"].shape == (0, 2)
    counts = codec().counts(encoded)
    assert counts["span"] == counts["distill"] == counts["align_sentence"] == 0
    assert counts["label"] == counts["saliency_negative"] == 1


def test_more_windows_than_queries_are_drawn_by_the_clips_own_generator() -> None:
    spans = [[float(i), i + 0.5] for i in range(9)]
    small = codec(moment_queries=3)
    first, again = (small.encode(target(spans=spans), view(10.0, seed=(4,)))[0] for _ in range(2))
    assert first["spans"].shape == (3, 2)
    assert torch.equal(first["spans"], again["spans"])
    others = [small.encode(target(spans=spans), view(10.0, seed=(s,)))[0]["spans"] for s in range(5)]
    assert any(not torch.equal(first["spans"], other) for other in others)


def test_saliency_is_the_sum_of_three_raters_and_zero_where_unrated() -> None:
    (encoded,) = codec().encode(target(spans=[[2.0, 6.0]], saliency=RATED), view(10.0))
    assert encoded["saliency"].tolist() == [0, 10, 3, 0, 0]
    assert float(encoded["clip_seconds"]) == 2.0


def test_one_file_is_one_video_however_it_is_cut() -> None:
    a, b, c = (codec().inputs(ClipView(Clip(9.0, path=path)))["video"] for path in ("x/a.mp4", "x/a.mp4", "y/a.mp4"))
    assert a == b != c


def output(spans: list[list[float]], scores: list[float], *, origin: float = 0.0, length: float = 10.0) -> dict[str, torch.Tensor]:
    """An output row that means these windows in seconds."""
    windows = (torch.tensor(spans).reshape(-1, 2) - origin) / length
    chance = torch.tensor(scores)
    return {
        "spans": torch.stack((windows.mean(-1), windows[:, 1] - windows[:, 0]), -1),
        "logits": torch.stack((torch.log(chance), torch.log(1 - chance)), -1),
        "origin": torch.tensor(origin),
        "length": torch.tensor(length),
        "saliency": torch.tensor([0.5, -1.0, 3.0]),
        "steps": torch.tensor([[0.0, 1.0], [1.0, 2.5], [2.5, 2.5]]) + origin,
        "valid": torch.tensor([True, True, False]),
    }


def test_windows_come_ranked_in_seconds_and_stay_inside_the_clip() -> None:
    answer = codec().decode(output([[1, 2], [8, 12], [-1, 3]], [0.2, 0.9, 0.5]), view(10.0))
    assert answer["windows"] == [[8.0, 10.0, 0.9], [0.0, 3.0, 0.5], [1.0, 2.0, 0.2]]
    assert answer["highlights"] == [[0.0, 1.0, 0.5], [1.0, 2.5, -1.0]]


def test_a_piece_is_decoded_on_the_clock_of_the_whole_clip() -> None:
    answer = codec().decode(output([[103, 105]], [0.9], origin=100.0, length=20.0), view(200.0))
    assert answer["windows"] == [[pytest.approx(103, abs=1e-3), pytest.approx(105, abs=1e-3), 0.9]]
    assert answer["highlights"][0] == [100.0, 101.0, 0.5]


def test_options_of_the_answer() -> None:
    row = output([[1, 3.1], [1, 3], [6, 7.2]], [0.9, 0.8, 0.05])
    assert [w[2] for w in codec(min_score=0.1).decode(row, view(10.0))["windows"]] == [0.9, 0.8]
    assert [w[2] for w in codec(nms=0.5).decode(row, view(10.0))["windows"]] == [0.9, 0.05]
    assert codec(round_to=2.0).decode(row, view(10.0))["windows"] == [[0.0, 4.0, 0.9], [0.0, 4.0, 0.8], [6.0, 8.0, 0.05]]


def test_windows_may_be_ranked_by_their_saliency_as_well() -> None:
    """Two windows of equal class: the one over the salient steps wins, by the log-odds that a hand would write."""
    row = output([[0, 4], [6, 8]], [0.5, 0.5]) | {
        "steps": torch.tensor([[float(i), i + 1.0] for i in range(10)]),
        "saliency": torch.tensor([0.0] * 6 + [0.6, 0.6] + [0.0] * 2),
        "valid": torch.ones(10, dtype=torch.bool),
    }
    assert codec().decode(row, view(10.0))["windows"][0][:2] == [0.0, 4.0]
    best, other = codec(saliency_rank=10.0).decode(row, view(10.0))["windows"]
    assert (best[:2], other[:2]) == ([6.0, 8.0], [0.0, 4.0])
    assert best[2] == pytest.approx(1 / (1 + 2.718281828**-6), abs=1e-3)
    assert other[2] == pytest.approx(1 / (1 + 2.718281828**2), abs=1e-3)
    whole = window_contrast(torch.tensor([[0.0, 10.0], [3.2, 3.3]]).double(), row["steps"].double(), row["saliency"].double(), row["valid"])
    assert whole.tolist() == [0.0, 0.0]


def test_a_diverged_head_is_told() -> None:
    row = output([[1, 2]], [0.5])
    row["spans"] = row["spans"] * math.nan
    with pytest.raises(ValueError, match="not finite; the model has diverged"):
        codec().decode(row, view(10.0))


def test_answers_in_words() -> None:
    sure = {"windows": [[3.21, 5.0, 0.91], [7.0, 8.0, 0.6], [0.0, 1.0, 0.2]], "highlights": []}
    assert codec().describe([sure]) == "3.2-5.0 s (0.91), 7.0-8.0 s (0.60)"
    assert codec().describe([{"windows": [[1.0, 2.0, 0.3]], "highlights": []}]) == "probably not there (best guess 1.0-2.0 s (0.30))"
    assert codec().describe([{"windows": [], "highlights": []}]) == "not there"
    assert codec().describe([]) == "no moment"


@settings(max_examples=50, deadline=None)
@given(st.floats(0.1, 8000), st.floats(1, 300), st.floats(0, 0.9))
def test_pieces_cover_the_clip_and_overlap_as_asked(duration: float, length: float, overlap: float) -> None:
    parts = pieces(duration, length, overlap)
    assert parts[0][0] == 0
    assert parts[-1][1] == pytest.approx(duration)
    for (start, end), (following, _) in pairwise(parts):
        assert end - start == pytest.approx(length)
        assert start < following
        assert end - following >= overlap * length - 1e-6


def test_frames_of_a_piece_follow_the_clock_not_the_index() -> None:
    # Many frames in the first second, few later: a variable frame rate.
    times = [i / 100 for i in range(100)] + [1.0, 4.0, 7.0]
    assert frames_of_piece(times, 0.0, 8.0, 4) == (100, 101, 102)
    assert frames_of_piece(times, 0.0, 1.0, 4) == (12, 37, 62, 87)
    assert frames_of_piece([0.0], 0.0, 0.02, 8) == (0,)


def test_a_short_clip_is_one_piece_with_the_models_own_features() -> None:
    (chunk,) = codec(window_seconds=150).chunks(view(150.0))
    assert chunk.frame_indices == ()
    assert chunk.inputs["window"].tolist() == [0, 150]


def test_a_long_clip_comes_in_pieces_that_ask_for_few_frames_each() -> None:
    chunks = list(codec(window_seconds=60, window_overlap=0.5).chunks(ClipView(Clip(7200.0, times=range(7200)))))
    assert len(chunks) == 239
    assert all(0 < len(chunk.frame_indices) <= VIEW.frames for chunk in chunks)
    starts = [float(chunk.inputs["window"][0]) for chunk in chunks]
    assert starts == sorted(starts)
    for chunk, start in zip(chunks, starts):
        assert min(chunk.frame_indices) >= start - 1
        assert max(chunk.frame_indices) < start + 60


def test_the_mlp_needs_no_pieces() -> None:
    assert len(list(codec(kind="mlp", window_seconds=60).chunks(view(7200.0)))) == 1


def test_windows_of_pieces_are_merged_each_moment_once() -> None:
    first = {"windows": [[50.0, 58.0, 0.9], [2.0, 3.0, 0.4]], "highlights": [[0.0, 30.0, 1.0], [30.0, 60.0, 2.0]]}
    second = {"windows": [[50.5, 58.0, 0.8], [80.0, 81.0, 0.7]], "highlights": [[30.0, 60.0, 5.0], [60.0, 90.0, 6.0]]}
    merged = codec().merge([first, second], view(90.0))
    assert merged["windows"] == [[50.0, 58.0, 0.9], [80.0, 81.0, 0.7], [2.0, 3.0, 0.4]]
    assert [step[0] for step in merged["highlights"]] == [0.0, 30.0, 60.0]


def test_highlights_come_from_the_piece_with_the_nearer_middle() -> None:
    left = [[0.0, 4.0, 1.0], [4.0, 8.0, 1.0], [8.0, 12.0, 1.0]]
    right = [[6.0, 10.0, 2.0], [10.0, 14.0, 2.0], [14.0, 18.0, 2.0]]
    assert merge_highlights([left, right, []]) == [[0.0, 4.0, 1.0], [4.0, 8.0, 1.0], [10.0, 14.0, 2.0], [14.0, 18.0, 2.0]]
    assert merge_highlights([]) == []


def test_suppression_keeps_the_better_of_two_that_overlap() -> None:
    windows = [[0.0, 4.0, 0.9], [0.0, 3.0, 0.8], [5.0, 6.0, 0.7], [0.0, 1.0, 0.6]]
    assert suppress(windows, 0.7) == [windows[0], windows[2], windows[3]]
    assert suppress([], 0.5) == []


def test_iou_by_hand() -> None:
    iou = iou_pairwise(np.array([[0, 2], [3, 3]]), np.array([[1, 3], [0, 2], [5, 6], [3, 3]]))
    np.testing.assert_allclose(iou, [[1 / 3, 1, 0, 0], [0, 0, 0, 0]])


def test_a_long_clip_is_answered_piece_by_piece_in_seconds_of_the_whole() -> None:
    config = TemporalConfig(hidden=8, attention_heads=1, inner_width=8, dummies=2, window_seconds=60.0)
    torch.manual_seed(0)
    head = TemporalHead(config, Widths(hidden=16, features=12, words=16)).eval()
    long = ClipView(Clip(7200.0, times=range(7200)))
    made, alive = TemporalCodec(config, VIEW), 0
    queries = Queries(torch.randn(2, 1, 16), torch.zeros(2, dtype=torch.long), torch.randn(2, 3, 16), torch.ones(2, 3, dtype=torch.bool))

    def encoded() -> Any:
        nonlocal alive
        for chunk in made.chunks(long):
            alive += 1
            assert alive == 1, "one piece at a time, or a long clip does not fit into memory"
            time = torch.tensor([[[float(i), i + 0.04] for i in chunk.frame_indices]])
            frames = torch.randn(1, len(chunk.frame_indices), 4, 12)
            features = FrameFeatures(frames, torch.ones(frames.shape[:3], dtype=torch.bool), time, torch.tensor([[2, 2]]))
            yield type(chunk)(stack_rows([chunk.inputs], made.ragged), chunk.frame_indices, features)
            alive -= 1

    answers: list[list[dict[str, Any]]] = [[], []]
    with torch.no_grad():
        for result in head.stream(queries, encoded()):
            for row, kept in enumerate(answers):
                kept.append(made.decode({key: value[row] for key, value in result.items()}, long))
    merged = made.merge(answers[0], long)
    assert len(merged["windows"]) == config.moment_queries
    assert 7000 < max(step[1] for step in merged["highlights"]) <= 7200
    edges = [(a[1], b[0]) for a, b in pairwise(merged["highlights"])]
    assert max(abs(end - start) for end, start in edges) < 10
