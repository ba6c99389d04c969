"""Teach a SAM2 with random weights to segment from a point, then to follow through its memory: the stand-in for SAM2's checkpoint.

Legend: B clips, T frames, H W the picture's side (SAM2's own).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from tpo_heads.mask.losses import enlarge, mask_losses, object_loss
from tpo_heads.mask.track import Tracker, encode_frames, point_tokens, propagate, stack_steps

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base

FOCAL, DICE = 20.0, 1.0
WARMUP = 50


class ClipBatch(NamedTuple):
    """Clips with one object each.

    Args:
        frames_BTCHW: uint8 RGB at SAM2's size, T = 1 for pictures.
        masks_BTHW: true where the object is seen; a frame without it is a legal target.
        points_B2: x, y in 0-1 of a pixel on the object in frame 0.
    """

    frames_BTCHW: Tensor
    masks_BTHW: Tensor
    points_B2: Tensor


Log = Callable[[int, float], None]


def pretrain(
    sam: SAM2Base,
    batches_single: Iterable[ClipBatch],
    batches_clips: Iterable[ClipBatch],
    *,
    steps_single: int,
    steps_clips: int,
    lr: float = 1e-3,
    log: Log | None = None,
) -> SAM2Base:
    """Train all of a SAM2 in place on pictures, then on clips (three frames teach the memory), and return it in eval mode.

    Each phase has its own AdamW with warm-up and a cosine to a twentieth of `lr`. Randomness is the caller's (batches, initial weights).

    Args:
        batches_single, batches_clips: read until the phase's steps are done; both may be endless.
        log: called with the step (counted through both phases) and the loss after every step.

    Raises:
        ValueError: batches end before the phase's steps, or the loss is not finite.
    """
    sam.train()
    for parameter in sam.parameters():
        parameter.requires_grad_(True)
    done = 0
    for batches, steps in ((batches_single, steps_single), (batches_clips, steps_clips)):
        optimizer = torch.optim.AdamW(sam.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
        warm = min(WARMUP, max(1, steps // 5))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step, warm=warm, steps=steps: _rate(step, warm, steps))
        source = iter(batches)
        for step in range(steps):
            batch = next(source, None)
            if batch is None:
                raise ValueError(f"the batches ended after {step} of {steps} steps; give at least as many batches as steps")
            loss = clip_loss(sam, batch)
            if not bool(torch.isfinite(loss)):
                raise ValueError(f"the loss of SAM2's pre-training is {float(loss)} at step {done}; lower `lr` ({lr})")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(sam.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            if log is not None:
                log(done, float(loss.detach()))
            done += 1
    return sam.eval()


def clip_loss(sam: SAM2Base, batch: ClipBatch) -> Tensor:
    """Return SAM2's training loss (20 focal + dice + IoU + object score) of clips prompted by a point on frame 0, a scalar."""
    rows, count = batch.frames_BTCHW.shape[:2]
    features = encode_frames(sam, batch.frames_BTCHW.flatten(0, 1), at_once=rows * count)
    index_BT = torch.arange(rows * count, device=batch.frames_BTCHW.device).view(rows, count)
    tracker = Tracker(sam, num_frames=count, prompt_frame=0, learning=True)
    masks_BTMhw, iou_BTM, object_BT = stack_steps(propagate(tracker, features, index_BT, point_tokens(sam, batch.points_B2)))
    logits = enlarge(masks_BTMhw.flatten(0, 1), sam.image_size)
    truth = batch.masks_BTHW.flatten(0, 1).flatten(1)
    present = truth.any(dim=1).float()
    losses = mask_losses(logits, iou_BTM.flatten(0, 1), truth, focal=FOCAL, dice=DICE)
    seen = (FOCAL * losses.focal_R + DICE * losses.dice_R + losses.iou_R) * present
    return seen.sum() / present.sum().clamp(min=1) + object_loss(object_BT.flatten(), present).mean()


def _rate(step: int, warm: int, steps: int) -> float:
    if step < warm:
        return (step + 1) / warm
    share = (step - warm) / max(1, steps - warm)
    return 0.05 + 0.95 * 0.5 * (1 + float(torch.cos(torch.tensor(share * torch.pi))))
