"""Teach a SAM2 with random weights to segment from a point or a box, then to follow through its memory: the stand-in for SAM2's checkpoint.

Legend: K clips, B objects in them, T frames, H W the picture's side (SAM2's own).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from tpo_heads.mask.losses import enlarge, mask_losses, object_loss
from tpo_heads.mask.track import Tracker, corner_tokens, encode_frames, point_tokens, propagate, stack_steps

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base

FOCAL, DICE = 20.0, 1.0
WARMUP = 50


class ClipBatch(NamedTuple):
    """Clips and objects in them; several objects of one clip share its image features, and teach that the point decides.

    Args:
        frames_KTCHW: uint8 RGB at SAM2's size, T = 1 for pictures.
        masks_BTHW: true where the object is seen; a frame without it is a legal target.
        points_B2: x, y in 0-1 of a pixel on the object in frame 0.
        clip_B: which clip each object is in; None = one object per clip, in order.
    """

    frames_KTCHW: Tensor
    masks_BTHW: Tensor
    points_B2: Tensor
    clip_B: Tensor | None = None


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

    Points and boxes (tight, of the mask on frame 0) prompt it in turn, step by step.

    Each phase has its own AdamW: warm-up, `lr` held (skill comes suddenly, and not at a step that can be foretold), and a fall to a
    twentieth of it over the last fifth. Randomness is the caller's (batches, initial weights).

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
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(_rate, warm=warm, steps=steps))
        source = iter(batches)
        for step in range(steps):
            batch = next(source, None)
            if batch is None:
                raise ValueError(f"the batches ended after {step} of {steps} steps; give at least as many batches as steps")
            loss = clip_loss(sam, batch, boxes=step % 2 == 1)
            if not bool(torch.isfinite(loss)):
                raise ValueError(f"the loss of SAM2's pre-training is {loss.item()} at step {done}; lower `lr` ({lr})")
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(sam.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            if log is not None:
                log(done, float(loss.detach()))
            done += 1
    return sam.eval()


def clip_loss(sam: SAM2Base, batch: ClipBatch, *, boxes: bool) -> Tensor:
    """Return SAM2's training loss (20 focal + dice + IoU + object score) of clips prompted by a point or a box on frame 0, a scalar."""
    clips, count = batch.frames_KTCHW.shape[:2]
    features = encode_frames(sam, batch.frames_KTCHW.flatten(0, 1), at_once=clips * count)
    index_BT = torch.arange(clips * count, device=batch.frames_KTCHW.device).view(clips, count)
    if batch.clip_B is not None:
        index_BT = index_BT[batch.clip_B]
    tracker = Tracker(sam, num_frames=count, prompt_frame=0, learning=True)
    tokens_BPC = corner_tokens(sam, tight_boxes(batch.masks_BTHW[:, 0])) if boxes else point_tokens(sam, batch.points_B2)
    masks_BTMhw, iou_BTM, object_BT = stack_steps(propagate(tracker, features, index_BT, tokens_BPC))
    logits = enlarge(masks_BTMhw.flatten(0, 1), sam.image_size)
    truth = batch.masks_BTHW.flatten(0, 1).flatten(1)
    present = truth.any(dim=1).float()
    losses = mask_losses(logits, iou_BTM.flatten(0, 1), truth, focal=FOCAL, dice=DICE)
    seen = (FOCAL * losses.focal_R + DICE * losses.dice_R + losses.iou_R) * present
    return seen.sum() / present.sum().clamp(min=1) + object_loss(object_BT.flatten(), present).mean()


def tight_boxes(masks_BHW: Tensor) -> Tensor:
    """Return the boxes (B, 4; xyxy in 0-1, exclusive) around masks; an empty one gives zeros."""
    sides = []
    for dim, size in ((1, masks_BHW.shape[2]), (2, masks_BHW.shape[1])):
        covered_BX = masks_BHW.any(dim=dim)
        place_X = torch.arange(size, device=masks_BHW.device)
        low_B = torch.where(covered_BX, place_X, size).amin(dim=1)
        high_B = torch.where(covered_BX, place_X + 1, 0).amax(dim=1)
        sides.append((torch.minimum(low_B, high_B) / size, high_B / size))
    (left, right), (top, bottom) = sides
    return torch.stack([left, top, right, bottom], dim=1)


def _rate(step: int, warm: int, steps: int) -> float:
    fall = max(1, steps // 5)
    return min((step + 1) / warm, 1.0, 0.05 + 0.95 * (steps - step) / fall)
