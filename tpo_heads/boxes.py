"""The only place where boxes live: forms, sizes, overlaps.

Forms: ``xyxy`` = left, top, right, bottom; ``cxcywh`` = centre and extent. Right and bottom are exclusive. A box whose right (bottom) does
not lie beyond its left (top) is empty: its area is 0 and it overlaps nothing. N and M count boxes; sizes are (width, height) in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def xyxy_to_cxcywh(boxes_xyxy: Tensor) -> Tensor:
    """Return centre and extent, shape (..., 4); the extent of a reversed box is negative."""
    low, high = boxes_xyxy[..., :2], boxes_xyxy[..., 2:]
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def cxcywh_to_xyxy(boxes_cxcywh: Tensor) -> Tensor:
    """Return corners, shape (..., 4)."""
    centre, half = boxes_cxcywh[..., :2], boxes_cxcywh[..., 2:] / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def normalise(boxes_xyxy: Tensor, size: Sequence[float]) -> Tensor:
    """Return pixels as shares of the image's (width, height), shape (..., 4)."""
    return boxes_xyxy / _corners_of(boxes_xyxy, size)


def denormalise(boxes_xyxy: Tensor, size: Sequence[float]) -> Tensor:
    """Return shares of the image's (width, height) as pixels, shape (..., 4)."""
    return boxes_xyxy * _corners_of(boxes_xyxy, size)


def clip(boxes_xyxy: Tensor, size: Sequence[float]) -> Tensor:
    """Return the part of each box that lies in an image of this (width, height), shape (..., 4)."""
    return torch.minimum(boxes_xyxy.clamp(min=0), _corners_of(boxes_xyxy, size))


def area(boxes_xyxy: Tensor) -> Tensor:
    """Return the areas, shape (...,); empty and reversed boxes have 0."""
    return _extent(boxes_xyxy[..., :2], boxes_xyxy[..., 2:])


def iou(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """Return intersection over union of boxes in the same place, shape (...,), in the input's precision; two empty boxes give 0."""
    overlap, union = _overlap_union(a_xyxy, b_xyxy)
    return torch.where(union > 0, overlap / union.clamp(min=_tiny(union)), torch.zeros_like(union))


def iou_pairwise(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """Return the IoU of each of N boxes with each of M, shape (N, M)."""
    return iou(a_xyxy[:, None], b_xyxy[None, :])


def giou(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """Return generalised IoU (Rezatofighi et al. 2019) of boxes in the same place, shape (...,), in -1..1, computed in float32.

    Where both boxes are empty and at one point the hull is empty too, and the value is 0. Differentiable; apart boxes still pull.
    """
    a, b = a_xyxy.float(), b_xyxy.float()
    overlap, union = _overlap_union(a, b)
    hull = _extent(torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:]))
    tiny = _tiny(union)
    return overlap / union.clamp(min=tiny) - (hull - union) / hull.clamp(min=tiny)


def _corners_of(boxes_xyxy: Tensor, size: Sequence[float]) -> Tensor:
    width, height = size
    return boxes_xyxy.new_tensor([width, height, width, height])


def _extent(low_xy: Tensor, high_xy: Tensor) -> Tensor:
    return (high_xy - low_xy).clamp(min=0).prod(dim=-1)


def _overlap_union(a_xyxy: Tensor, b_xyxy: Tensor) -> tuple[Tensor, Tensor]:
    low = torch.maximum(a_xyxy[..., :2], b_xyxy[..., :2])
    high = torch.minimum(a_xyxy[..., 2:], b_xyxy[..., 2:])
    overlap = _extent(low, high)
    return overlap, area(a_xyxy) + area(b_xyxy) - overlap


def _tiny(values: Tensor) -> float:
    return float(torch.finfo(values.dtype).tiny)
