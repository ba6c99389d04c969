"""Seconds, steps and windows: conversions between a clip's clock, its time steps and windows in 0-1.

Legend: M media, N queries, T time steps, X annotated windows of a query, S annotated saliency clips, Q predicted windows.
``xx`` is [start, end], ``cxw`` centre and width.
"""

from __future__ import annotations

import torch
from torch import Tensor

TINY = 1e-6


def xx_to_cxw(spans_xx: Tensor) -> Tensor:
    """Return (..., 2) centre and width."""
    start, end = spans_xx.unbind(-1)
    return torch.stack(((start + end) / 2, end - start), -1)


def cxw_to_xx(spans_cxw: Tensor) -> Tensor:
    """Return (..., 2) start and end."""
    centre, width = spans_cxw.unbind(-1)
    return torch.stack((centre - width / 2, centre + width / 2), -1)


def giou(left_xx: Tensor, right_xx: Tensor) -> Tensor:
    """Return generalised IoU of windows that broadcast against each other, (...,); two points at one place give 0."""
    inter = (torch.minimum(left_xx[..., 1], right_xx[..., 1]) - torch.maximum(left_xx[..., 0], right_xx[..., 0])).clamp(min=0)
    union = (left_xx[..., 1] - left_xx[..., 0]) + (right_xx[..., 1] - right_xx[..., 0]) - inter
    hull = torch.maximum(left_xx[..., 1], right_xx[..., 1]) - torch.minimum(left_xx[..., 0], right_xx[..., 0])
    return inter / union.clamp(min=TINY) - (hull - union) / hull.clamp(min=TINY)


def tile_steps(time_MT2: Tensor, valid_MT: Tensor, window_M2: Tensor) -> Tensor:
    """Return steps that cover a window without gaps, (M, T, 2) seconds, float32; padding gets the window's end.

    Frames are samples of a clip: the time between two of them is shared, the first reaches back to the window's start and the last one
    on to its end. Steps that touch each other stay as they are.
    """
    start, end = time_MT2.float().unbind(-1)
    begin_M1, finish_M1 = window_M2.float().chunk(2, dim=-1)
    order = torch.arange(valid_MT.shape[1], device=valid_MT.device)
    first = valid_MT & (valid_MT.cumsum(1) == 1)
    last_M1 = (valid_MT * order).amax(1, keepdim=True)
    between = (torch.roll(end, 1, dims=1) + start) / 2
    left = torch.where(first, begin_M1, between).clamp(begin_M1, finish_M1)
    left = torch.where(valid_MT, left, finish_M1)
    right = torch.where(order == last_M1, finish_M1, torch.roll(left, -1, dims=1))
    return torch.stack((left, torch.where(valid_MT, right, finish_M1)), -1)


def covered(steps_NT2: Tensor, valid_NT: Tensor) -> tuple[Tensor, Tensor]:
    """Return start (N,) and length (N,) in seconds of the time that the valid steps cover; windows in 0-1 refer to it both ways."""
    start_N = steps_NT2[..., 0].masked_fill(~valid_NT, float("inf")).amin(1)
    end_N = steps_NT2[..., 1].masked_fill(~valid_NT, float("-inf")).amax(1)
    return start_N, (end_N - start_N).clamp(min=TINY)


def relative(steps_NT2: Tensor, valid_NT: Tensor, origin_N: Tensor, length_N: Tensor) -> Tensor:
    """Return the steps in 0-1 of the covered time, (N, T, 2); 1 on padding."""
    share = (steps_NT2 - origin_N[:, None, None]) / length_N[:, None, None]
    return share.clamp(0, 1).masked_fill(~valid_NT[..., None], 1.0)


def overlap(steps_NT2: Tensor, spans_NX2: Tensor) -> Tensor:
    """Return the seconds that each step shares with each window, (N, T, X)."""
    start = torch.maximum(steps_NT2[:, :, None, 0], spans_NX2[:, None, :, 0])
    end = torch.minimum(steps_NT2[:, :, None, 1], spans_NX2[:, None, :, 1])
    return (end - start).clamp(min=0)


def steps_in_windows(steps_NT2: Tensor, valid_NT: Tensor, spans_NX2: Tensor, spans_valid_NX: Tensor) -> Tensor:
    """Return bool (N, T): steps that lie at least half in a window; a window without such a step gets the step that it shares most with."""
    if spans_NX2.shape[1] == 0:
        return torch.zeros_like(valid_NT)
    shared_NTX = overlap(steps_NT2, spans_NX2)
    there_NTX = valid_NT[:, :, None] & spans_valid_NX[:, None]
    half_NTX = there_NTX & (2 * shared_NTX >= (steps_NT2[..., 1] - steps_NT2[..., 0])[:, :, None]) & (shared_NTX > 0)
    apart_NTX = (steps_NT2.mean(-1)[:, :, None] - spans_NX2.mean(-1)[:, None]).abs()
    near_NTX = (shared_NTX - TINY * apart_NTX).masked_fill(~there_NTX, float("-inf"))
    best_N1X = near_NTX.argmax(1, keepdim=True)
    alone_NTX = torch.zeros_like(half_NTX).scatter(1, best_N1X, spans_valid_NX[:, None] & ~half_NTX.any(1, keepdim=True))
    return (half_NTX | alone_NTX).any(-1)


def saliency_of_steps(steps_NT2: Tensor, valid_NT: Tensor, scores_NS: Tensor, clip_seconds_N: Tensor) -> Tensor:
    """Return the annotated score at each step, (N, T): the mean over the step's time of the clips' scores (clip k starts at k lengths)."""
    edges_S = torch.arange(scores_NS.shape[1], device=scores_NS.device)
    clips_NS2 = torch.stack((edges_S, edges_S + 1), -1) * clip_seconds_N[:, None, None]
    length_NT = (steps_NT2[..., 1] - steps_NT2[..., 0]).clamp(min=TINY)
    level_NT = torch.einsum("nts,ns->nt", overlap(steps_NT2, clips_NS2), scores_NS) / length_NT
    return level_NT * valid_NT
