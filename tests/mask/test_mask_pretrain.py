"""Pre-training a small SAM2 from points: the steps it takes, what it asks for, and that it learns."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tpo_heads.mask.pretrain import ClipBatch, _rate, clip_loss, pretrain, tight_boxes
from tpo_heads.mask.sam import build_sam


def batches(frames: int, count: int | None = None) -> Iterator[ClipBatch]:
    """Yield bright squares on dark ground: two clips, three objects."""
    noise = torch.Generator().manual_seed(frames)
    made = 0
    while count is None or made < count:
        images = torch.randint(0, 40, (2, frames, 3, 64, 64), dtype=torch.uint8, generator=noise)
        clip = torch.tensor([0, 0, 1])
        masks = torch.zeros(3, frames, 64, 64, dtype=torch.bool)
        corner = torch.randint(0, 40, (3, 2), generator=noise)
        for row, (x, y) in enumerate(corner.tolist()):
            masks[row, :, y : y + 20, x : x + 20] = True
            images[clip[row]] = torch.where(masks[row][:, None], 80 * (row + 1), images[clip[row]]).to(torch.uint8)
        yield ClipBatch(images, masks, (corner + 10) / 64, clip)
        made += 1


def sam_of(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return build_sam("tiny")


def test_it_learns_and_counts_its_steps() -> None:
    seen: list[tuple[int, float]] = []
    sam = pretrain(sam_of(), batches(1), batches(2), steps_single=14, steps_clips=2, log=lambda step, loss: seen.append((step, loss)))
    assert [step for step, _ in seen] == list(range(16))
    assert sum(loss for _, loss in seen[10:14]) < 0.8 * sum(loss for _, loss in seen[:4])
    assert not sam.training


def test_it_is_reproducible() -> None:
    ours, theirs = (
        pretrain(sam_of(), batches(1), batches(2), steps_single=2, steps_clips=1).state_dict()["no_mem_embed"] for _ in range(2)
    )
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, sam_of().state_dict()["no_mem_embed"])


def test_objects_share_their_clips_features() -> None:
    sam = sam_of()
    batch = next(batches(2))
    apart = ClipBatch(batch.frames_KTCHW[batch.clip_B], batch.masks_BTHW, batch.points_B2)
    for boxes in (False, True):
        torch.testing.assert_close(clip_loss(sam, batch, boxes=boxes), clip_loss(sam, apart, boxes=boxes), rtol=1e-5, atol=1e-5)


def test_points_and_boxes_prompt_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = []
    real = clip_loss

    def noted(sam: Any, batch: ClipBatch, *, boxes: bool) -> torch.Tensor:
        kinds.append(boxes)
        return real(sam, batch, boxes=boxes)

    monkeypatch.setattr("tpo_heads.mask.pretrain.clip_loss", noted)
    pretrain(sam_of(), batches(1), batches(2), steps_single=3, steps_clips=2)
    assert kinds == [False, True, False, False, True]


def test_tight_boxes_by_hand() -> None:
    masks = torch.zeros(2, 48, 64, dtype=torch.bool)
    masks[0, 12:36, 16:48] = True
    torch.testing.assert_close(tight_boxes(masks), torch.tensor([[0.25, 0.25, 0.75, 0.75], [0, 0, 0, 0]]))


def test_batches_that_end_early() -> None:
    with pytest.raises(ValueError, match="the batches ended after 1 of 3 steps"):
        pretrain(sam_of(), batches(1, count=1), [], steps_single=3, steps_clips=0)


def test_a_loss_that_is_not_finite() -> None:
    sam = sam_of()
    with torch.no_grad():
        sam.no_mem_embed.fill_(math.nan)
    with pytest.raises(ValueError, match="is nan at step 0; lower `lr`"):
        pretrain(sam, batches(1), [], steps_single=1, steps_clips=0)


def test_rate() -> None:
    rates = [_rate(step, 10, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9:80] == [1.0] * 71
    assert rates[90] == pytest.approx(0.05 + 0.95 / 2)
    assert rates[99] == pytest.approx(0.05 + 0.95 / 20)
