"""The codec: frames drawn alike by `inputs` and `encode`, what counts, bad annotations, answers in pixels of the medium."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tpo_core.types import Target
from tpo_heads.mask.cache import file_of, frame_name
from tpo_heads.mask.config import MaskConfig
from tpo_heads.mask.rle import decode
from tpo_heads.mask.target import read_truth

SIZE = (64, 48)


@settings(max_examples=60, deadline=None)
@given(
    present=st.lists(st.booleans(), min_size=1, max_size=12),
    other=st.lists(st.booleans(), min_size=1, max_size=12),
    seed=st.integers(0, 1000),
    rule=st.sampled_from(["seen", "best", "first"]),
    frames=st.integers(1, 5),
)
def test_draws(bench: Any, present: list[bool], other: list[bool], seed: int, rule: Any, frames: int) -> None:
    config = MaskConfig(train_frames=frames, prompt_frame=rule, max_stride=3)
    codec = bench.codec(config)
    count = max(len(present), len(other)) * 2
    empty = np.zeros((48, 64), dtype=bool)
    targets = [
        bench.target({2 * i: bench.block(i) if there else empty for i, there in enumerate(shown)}, name)
        for name, shown in (("a", present), ("b", other))
    ]
    clip = bench.clip(bench.media(count), *targets, seed=seed)
    drawn = codec.inputs(clip)["frame_index"].tolist()
    assert drawn == sorted(set(drawn))
    assert 1 <= len(drawn) <= frames
    assert len({b - a for a, b in pairwise(drawn)}) <= 1
    annotated = [set(read_truth(target)) for target in targets]
    assert any(set(drawn) <= own for own in annotated)
    for target in targets:
        (row,) = codec.encode(target, clip)
        assert row["frame_index"].tolist() == drawn
        truth = read_truth(target)
        seen = [frame in truth and truth[frame].present for frame in drawn]
        assert row["present"].tolist() == seen
        position = int(row["prompt_position"])
        assert not any(seen) or seen[position]
        if rule != "best" and any(seen):
            assert position == seen.index(True)


def test_full_length_where_it_fits(bench: Any) -> None:
    codec = bench.codec(MaskConfig(train_frames=4))
    target = bench.target({frame: bench.block(frame) for frame in range(9)})
    lengths, strides = set(), set()
    for seed in range(20):
        drawn = codec.inputs(bench.clip(bench.media(9), target, seed=seed))["frame_index"].tolist()
        lengths.add(len(drawn))
        strides.add(drawn[1] - drawn[0])
        assert drawn[0] == 0
    assert lengths == {4}
    assert strides == {1, 2}


def test_tensors_by_hand(bench: Any) -> None:
    codec = bench.codec(MaskConfig())
    masks = {0: np.zeros((48, 64), dtype=bool), 1: bench.block(8, 12, 32, 24), 2: None}
    target = bench.target(masks)
    clip = bench.clip(bench.media(3), target)
    (row,) = codec.encode(target, clip)
    drawn = row["frame_index"].tolist()
    assert drawn == [0, 1]
    assert row["present"].tolist() == [False, True]
    assert row["annotated"].tolist() == [True, True]
    torch.testing.assert_close(row["boxes"], torch.tensor([[0, 0, 0, 0], [8 / 64, 12 / 48, 40 / 64, 36 / 48]]))
    expected = torch.zeros(64, 64, dtype=torch.uint8)
    expected[16:48, 8:40] = 1
    assert torch.equal(row["masks"][1], expected)
    assert codec.counts(row) == {"focal": 1, "dice": 1, "iou": 1, "object": 2, "projection": 0}
    pixels = codec.inputs(clip)
    small = Image.fromarray(clip.media.frames([1])[0]).resize((64, 64), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(pixels["frames"][1].permute(1, 2, 0).numpy(), np.asarray(small))
    assert pixels["frames"].dtype == torch.uint8


def test_boxes_alone_and_absence(bench: Any) -> None:
    codec = bench.codec(MaskConfig(objective="both"))
    target = Target.model_validate(
        {
            "id": "t",
            "size": SIZE,
            "frames": [0, 1, 2, 3],
            "boxes": [[8, 12, 40, 36], None, [1, 1, 9, 9], [0, 0, 64.5, 48]],
            "visible": [1, 0, 0, 1],
        }
    )
    clip = bench.clip(bench.media(4), target)
    codec.check(target, clip.media)
    (row,) = codec.encode(target, clip)
    assert row["present"].tolist() == [True, False, False, True]
    assert row["mask_known"].tolist() == [False, True, True, False]
    torch.testing.assert_close(row["boxes"][3], torch.tensor([0.0, 0.0, 1.0, 1.0]))
    assert codec.counts(row) == {"focal": 0, "dice": 0, "iou": 0, "object": 4, "projection": 2, "distil": 1, "aux_box": 1}


def test_a_mask_too_small_for_the_grid_keeps_a_pixel(bench: Any) -> None:
    codec = bench.codec(MaskConfig())
    media = type(bench.media(1))(np.zeros((1, 480, 640, 3), dtype=np.uint8))
    mask = np.zeros((480, 640), dtype=bool)
    mask[100:102, 200:202] = True
    target = bench.target({0: mask}, size=[640, 480])
    (row,) = codec.encode(target, bench.clip(media, target))
    assert torch.nonzero(row["masks"][0]).tolist() == [[100 * 64 // 480, 20]]


def test_a_prompt_where_the_object_is_not_teaches_its_absence_alone(bench: Any) -> None:
    codec = bench.codec(MaskConfig(absent_prompts=1.0))
    empty = np.zeros((48, 64), dtype=bool)
    target = bench.target({0: empty, 1: bench.block(3), 2: bench.block(4)})
    (row,) = codec.encode(target, bench.clip(bench.media(3), target))
    assert row["frame_index"].tolist() == [0, 1, 2]
    assert int(row["prompt_position"]) == 0
    assert row["annotated"].tolist() == [True, False, False]
    assert codec.counts(row)["focal"] == 0


def test_points_carry_the_masks_labels(bench: Any) -> None:
    codec = bench.codec(MaskConfig(points=200))
    target = bench.target({0: bench.block(8, 12, 32, 24)})
    (row,) = codec.encode(target, bench.clip(bench.media(1), target))
    x, y = row["points"][0].unbind(1)
    inside = (x >= 8 / 64) & (x < 40 / 64) & (y >= 12 / 48) & (y < 36 / 48)
    assert torch.equal(row["point_labels"][0].bool(), inside)
    assert inside[:100].float().mean() > 0.3


def test_parts_become_queries(bench: Any) -> None:
    first, second = bench.block(2), bench.block(40)
    parts = [[bench.target({0: part})["rle"][0]] for part in (first, second)]
    target = bench.target({0: first | second}, parts=parts, object_ids=[1, 2])
    clip = bench.clip(bench.media(1), target)
    assert len(bench.codec(MaskConfig()).encode(target, clip)) == 1
    rows = bench.codec(MaskConfig(parts="each")).encode(target, clip)
    assert [row["boxes"][0, 0].item() * 64 for row in rows] == [2, 40]


def test_a_worker_that_finds_the_features_neither_decodes_nor_sends_pixels(bench: Any, tmp_path: Path) -> None:
    codec = bench.codec(MaskConfig(cache_dir=str(tmp_path)))
    target = bench.target({frame: bench.block(frame) for frame in range(3)})
    media = bench.media(3)
    clip = bench.clip(media, target)
    for frame in (0, 2):
        file = file_of(tmp_path, frame_name(media.key, frame, "tiny", 64))
        file.parent.mkdir(exist_ok=True)
        file.touch()
    inputs = codec.inputs(clip)
    assert media.read == [1]
    assert inputs["frames"].shape == (1, 3, 64, 64)
    assert inputs["pixel_of"].tolist() == [-1, 0, -1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"size": [48, 64]}, r"size of \[48, 64\] but the medium is \[64, 48\] \(it is shown turned"),
        ({"frames": [0, 7]}, "frame 7 lies past the end of the medium, which has 3 frames"),
        ({"frames": [1, 0]}, "must ascend"),
        ({"frames": [0]}, "rle has 2 entries for 1 frames"),
        ({"rle": [None, None]}, "no frame is annotated"),
        ({"rle": None}, "neither `rle` nor `boxes`"),
        ({"rle": [{"size": [48, 64], "counts": "PP"}, None]}, "mask of frame 0 does not decode: .* end within a number"),
        ({"rle": [{"size": [48, 64], "counts": "1"}, None]}, "mask of frame 0 does not decode: .* add up to 1"),
        ({"rle": [{"size": [32, 64], "counts": "PP3"}, None]}, "frame 0 has size .* but the medium is 48 high and 64 wide"),
        ({"rle": [{"counts": "PP3"}, None]}, "does not decode"),
        ({"boxes": [[5, 5, 5, 9], None]}, "box of frame 0 .* empty or reversed"),
        ({"boxes": [[5, 5, 70, 9], None]}, "outside the medium of 64 x 48"),
        ({"visible": [1]}, "visible has 1 entries"),
        ({"parts": [[None]]}, r"parts\[0\] has 1 entries"),
    ],
)
def test_bad_annotations_give_one_sentence(bench: Any, change: dict[str, Any], words: str) -> None:
    target = bench.target({0: bench.block(3), 1: None})
    broken = Target.model_validate({"id": "t0", "head": "mask", **target.fields(), **change})
    with pytest.raises(ValueError, match=words) as raised:
        bench.codec(MaskConfig()).check(broken, bench.media(3))
    assert "\n" not in str(raised.value)


def test_unknown_fields_are_refused(bench: Any) -> None:
    target = bench.target({0: bench.block(3)}, mask=1)
    with pytest.raises(ValueError, match="mask"):
        bench.codec(MaskConfig()).schema.model_validate(target.fields())


def test_prompts(bench: Any) -> None:
    codec = bench.codec(MaskConfig())
    clip = bench.clip(bench.media(3))
    box = Target.model_validate({"id": "p", "role": "prompt", "kind": "box", "size": SIZE, "frame": 2, "boxes": [[16, 12, 32, 36]]})
    encoded = codec.encode_prompt(box, clip)
    torch.testing.assert_close(encoded["box"], torch.tensor([0.25, 0.25, 0.5, 0.75]))
    assert int(encoded["frame"]) == 2
    point = Target.model_validate({"id": "p", "role": "prompt", "kind": "point", "size": SIZE, "points": [[16, 12]]})
    torch.testing.assert_close(codec.encode_prompt(point, clip)["point"], torch.tensor([0.25, 0.25]))
    for change, words in (
        ({"kind": "mask"}, "got kind 'mask'"),
        ({"boxes": []}, "one box"),
        ({"frame": 3}, "frame 3 lies past the end"),
        ({"boxes": [[16, 12, 80, 36]]}, "outside"),
        ({"size": [10, 10]}, "size of"),
    ):
        broken = Target.model_validate({**box.model_dump(by_alias=True), **change})
        with pytest.raises(ValueError, match=words):
            codec.encode_prompt(broken, clip)


def test_answers_in_pixels_of_the_medium(bench: Any) -> None:
    codec = bench.codec(MaskConfig())
    logits = torch.full((3, 16, 16), -5.0)
    logits[:, 4:12, 2:10] = 5.0
    output = {
        "masks": logits,
        "object": torch.tensor([3.0, -3.0, 3.0]),
        "iou": torch.tensor([0.5, 0.9, 0.9]),
        "frame_index": torch.tensor([5, 6, 0]),
        "valid": torch.tensor([True, True, False]),
    }
    answer = codec.decode(output, bench.clip(bench.media(8), training=False))
    assert answer["frames"] == [5, 6]
    assert answer["boxes"] == [[8.0, 12.0, 40.0, 36.0], None]
    assert answer["scores"] == [pytest.approx(0.5 / (1 + np.exp(-3)), abs=1e-4), pytest.approx(0.9 / (1 + np.exp(3)), abs=1e-4)]
    mask = decode(answer["rle"][0], SIZE)
    # Corners of an upsampled block are rounded by the bilinear kernel; the edges lie where the logit changes its sign.
    assert mask[24, 8:40].all()
    assert mask.sum() > 0.97 * 32 * 24
    assert not decode(answer["rle"][1], SIZE).any()


def test_pieces_merge_in_order(bench: Any) -> None:
    codec = bench.codec(MaskConfig())
    pieces = [
        {"frames": [], "rle": [], "scores": [], "boxes": []},
        {"frames": [4, 5], "rle": ["d", "e"], "scores": [0.4, 0.5], "boxes": [None, [0, 0, 1, 1]]},
        {"frames": [1, 0], "rle": ["b", "a"], "scores": [0.1, 0.0], "boxes": [None, None]},
    ]
    merged = codec.merge(pieces, bench.clip(bench.media(8), training=False))
    assert merged["frames"] == [0, 1, 4, 5]
    assert merged["rle"] == ["a", "b", "d", "e"]
    assert merged["scores"] == [0.0, 0.1, 0.4, 0.5]
    assert codec.describe([merged]) == "masks on 1 of 4 frames, from frame 5 at x 0-1, y 0-1"
    assert codec.describe([]) == "no mask"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"objective": "distil", "num_prompt_tokens": 1}, "imitates SAM2's box prompt"),
        ({"anchor": "box", "num_prompt_tokens": 4}, "anchor box adds to SAM2's box prompt"),
        ({"trains": "all", "cache_dir": "x"}, "cache_dir cannot keep"),
        ({"sam": "tiny", "weights": "hub"}, "no published weights"),
        ({"sam": "huge"}, "sam2.1_hiera_l"),
        ({"focus": 2}, "Extra inputs"),
    ],
)
def test_options_that_disagree(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        MaskConfig(**options)
