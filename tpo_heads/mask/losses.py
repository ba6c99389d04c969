"""The losses with which SAM2 was trained, one value per frame and nothing averaged over rows.

Legend: R rows (a frame of a query), M candidate masks, X pixels or sampled points, H W pixels.

Sources: focal loss (Lin et al. 2017, alpha 0.25, gamma 2), dice (Milletari et al. 2016, smoothed by 1), SAM 2 (Ravi et al. 2024, section D:
the candidate of least focal + dice is supervised, all predicted IoUs are, by L1; object score by cross-entropy), projection loss of boxes
(BoxInst, Tian et al. 2021). All in float32: in bfloat16 a focal loss over many pixels loses its small terms.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

ALPHA = 0.25
GAMMA = 2.0


class MaskLosses(NamedTuple):
    """One value per row of the frames where the object's mask is known."""

    focal_R: Tensor
    dice_R: Tensor
    iou_R: Tensor


def focal_loss(logits_RMX: Tensor, truth_RX: Tensor) -> Tensor:
    """Return the sigmoid focal loss, averaged over pixels, (R, M)."""
    truth_RMX = truth_RX[:, None].expand_as(logits_RMX)
    cross = functional.binary_cross_entropy_with_logits(logits_RMX, truth_RMX, reduction="none")
    share = logits_RMX.sigmoid()
    wrong = share + truth_RMX - 2 * share * truth_RMX
    alpha = ALPHA * truth_RMX + (1 - ALPHA) * (1 - truth_RMX)
    return (alpha * wrong**GAMMA * cross).mean(dim=2)


def dice_loss(logits_RMX: Tensor, truth_RX: Tensor) -> Tensor:
    """Return 1 - (2 overlap + 1) / (sum of both + 1) of the masks' probabilities, (R, M)."""
    share = logits_RMX.sigmoid()
    overlap_RM = (share * truth_RX[:, None]).sum(dim=2)
    return 1 - (2 * overlap_RM + 1) / (share.sum(dim=2) + truth_RX.sum(dim=1)[:, None] + 1)


def mask_iou(logits_RMX: Tensor, truth_RX: Tensor) -> Tensor:
    """Return the IoU of the thresholded masks with the truth, (R, M); two empty masks give 0, as in SAM2's training."""
    drawn = logits_RMX > 0
    truth = truth_RX[:, None] > 0
    overlap_RM = (drawn & truth).sum(dim=2)
    union_RM = (drawn | truth).sum(dim=2)
    return overlap_RM / union_RM.clamp(min=1)


def mask_losses(
    logits_RMX: Tensor, iou_RM: Tensor, truth_RX: Tensor, *, focal: float, dice: float, real_RM: Tensor | None = None
) -> MaskLosses:
    """Return focal and dice of the candidate with the least weighted sum of both, and the mean L1 of all predicted IoUs.

    Args:
        logits_RMX: candidates. iou_RM: their predicted IoUs. truth_RX: 0 or 1.
        focal, dice: factors by which the candidate is chosen (SAM2: 20 and 1).
        real_RM: the candidates' real IoUs, or None to measure them on these pixels.
    """
    logits_RMX, truth_RX = logits_RMX.float(), truth_RX.float()
    focal_RM, dice_RM = focal_loss(logits_RMX, truth_RX), dice_loss(logits_RMX, truth_RX)
    best_R1 = (focal * focal_RM + dice * dice_RM).argmin(dim=1, keepdim=True)
    real_RM = mask_iou(logits_RMX, truth_RX) if real_RM is None else real_RM
    iou_R = (iou_RM.float() - real_RM).abs().mean(dim=1)
    return MaskLosses(focal_RM.gather(1, best_R1).squeeze(1), dice_RM.gather(1, best_R1).squeeze(1), iou_R)


def object_loss(object_R: Tensor, present_R: Tensor) -> Tensor:
    """Return the cross-entropy of the object's score (logit) with its presence, (R,)."""
    return functional.binary_cross_entropy_with_logits(object_R.float(), present_R.float(), reduction="none")


def projection_loss(logits_RHW: Tensor, boxes_R4: Tensor) -> Tensor:
    """Return the dice loss of a mask's projections on both axes with those of its box (xyxy, 0-1), summed over the axes, (R,).

    A mask fills its tight box in projection whatever its shape, so that a box alone can supervise it.
    """
    share_RHW = logits_RHW.float().sigmoid()
    loss_R = share_RHW.new_zeros(len(share_RHW))
    for dim, low, high in ((1, 0, 2), (2, 1, 3)):
        shadow_RX = share_RHW.amax(dim=dim)
        count = shadow_RX.shape[1]
        centre_X = (torch.arange(count, device=shadow_RX.device) + 0.5) / count
        inside_RX = ((centre_X >= boxes_R4[:, low, None]) & (centre_X < boxes_R4[:, high, None])).float()
        overlap_R = (shadow_RX * inside_RX).sum(dim=1)
        loss_R = loss_R + 1 - (2 * overlap_R + 1) / (shadow_RX.square().sum(dim=1) + inside_RX.sum(dim=1) + 1)
    return loss_R


def sample_points(logits_RMhw: Tensor, points_RP2: Tensor) -> Tensor:
    """Return the logits at points (x, y in 0-1), bilinear, (R, M, P)."""
    grid_R1P2 = (points_RP2 * 2 - 1)[:, None].to(logits_RMhw.dtype)
    return functional.grid_sample(logits_RMhw, grid_R1P2, mode="bilinear", padding_mode="border", align_corners=False)[:, :, 0]


def enlarge(logits_RMhw: Tensor, side: int) -> Tensor:
    """Return the logits at the picture's size, flat, (R, M, side * side)."""
    full = functional.interpolate(logits_RMhw.float(), size=(side, side), mode="bilinear", align_corners=False)
    return full.flatten(2)
