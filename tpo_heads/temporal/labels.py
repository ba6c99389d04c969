"""Annotation in seconds -> what the losses compare with, on the time steps that the features have.

Legend: N queries, T time steps, X annotated windows, P pairs of clips.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tpo_core.types import Tensors
from tpo_heads.temporal.timeline import saliency_of_steps, steps_in_windows, xx_to_cxw

PAIRS = 2
DRAWS = 2 * PAIRS
"""Random numbers per query that choose the pairs; the codec draws them, so that the device needs no random state."""


def make_labels(steps_NT2: Tensor, valid_NT: Tensor, origin_N: Tensor, length_N: Tensor, targets: Tensors) -> Tensors:
    """Return the labels of each query.

    Args:
        targets: ``spans`` (N, X, 2) seconds with ``spans_valid``, ``saliency`` (N, S) 0-12 with ``clip_seconds`` (N,), ``draws``
            (N, `DRAWS`) in 0-1.

    Returns:
        ``windows`` (N, X, 2) cxw in 0-1 of the covered time, ``windows_valid`` (N, X), ``level`` (N, T) 0-12, ``moment`` (N, T) bool,
        ``high`` and ``low`` (N, P): clips of which the first should score above the second, ``pairs`` (N, P): bool, whether they count.
    """
    spans_NX2, there_NX = targets["spans"].float(), targets["spans_valid"].bool()
    share_NX2 = ((spans_NX2 - origin_N[:, None, None]) / length_N[:, None, None]).clamp(0, 1)
    windows_NX2 = xx_to_cxw(share_NX2)
    inside_NT = steps_in_windows(steps_NT2, valid_NT, spans_NX2, there_NX).float()
    level_NT = saliency_of_steps(steps_NT2, valid_NT, targets["saliency"].float(), targets["clip_seconds"].float())
    # Without a saliency annotation the clips of the windows count 1.
    level_NT = torch.where((level_NT > 0).any(1, keepdim=True), level_NT, inside_NT)
    high_NP, low_NP, pairs_NP = choose_pairs(level_NT, valid_NT, targets["draws"])
    return {
        "windows": windows_NX2,
        "windows_valid": there_NX & (windows_NX2[..., 1] > 0),
        "level": level_NT,
        "moment": (level_NT > 0) & valid_NT,
        "high": high_NP,
        "low": low_NP,
        "pairs": pairs_NP,
    }


def choose_pairs(level_NT: Tensor, valid_NT: Tensor, draws_ND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return clips that should score high, clips that should score low, and which pairs count; each (N, P).

    The second pair is a clip of the moment against another clip. So is the first, but where the moment's clips have different scores it
    is its best clip against its worst.
    """
    moment_NT, other_NT = (level_NT > 0) & valid_NT, (level_NT <= 0) & valid_NT
    high_NP, low_NP = _draw_two(moment_NT, draws_ND[:, :PAIRS]), _draw_two(other_NT, draws_ND[:, PAIRS:])
    both_N = moment_NT.any(1) & other_NT.any(1)
    worst_N = level_NT.masked_fill(~moment_NT, float("inf")).argmin(1)
    best_N = level_NT.masked_fill(~moment_NT, float("-inf")).argmax(1)
    rated_N = level_NT.gather(1, best_N[:, None]).squeeze(1) > level_NT.gather(1, worst_N[:, None]).squeeze(1)
    rated_N = rated_N & moment_NT.any(1)
    high_NP = torch.stack((torch.where(rated_N, best_N, high_NP[:, 0]), high_NP[:, 1]), 1)
    low_NP = torch.stack((torch.where(rated_N, worst_N, low_NP[:, 0]), low_NP[:, 1]), 1)
    return high_NP, low_NP, torch.stack((rated_N | both_N, both_N), 1)


def _draw_two(mask_NT: Tensor, draws_N2: Tensor) -> Tensor:
    """Return two members of each mask, different ones where it has two, chosen by numbers in 0-1; (N, 2), 0 where it is empty."""
    count_N1 = mask_NT.sum(1, keepdim=True)
    first_N1 = (draws_N2[:, :1] * count_N1).long()
    further_N1 = 1 + (draws_N2[:, 1:] * (count_N1 - 1).clamp(min=0)).long()
    place_N2 = torch.cat((first_N1, (first_N1 + further_N1) % count_N1.clamp(min=1)), 1)
    rank_NT = mask_NT.cumsum(1) - 1
    hit_N2T = mask_NT[:, None] & (rank_NT[:, None] == place_N2[:, :, None])
    return hit_N2T.int().argmax(-1)
