"""Region similarity J and contour accuracy F of masks, by DAVIS' definition (Perazzi et al. 2016; davis2017-evaluation).

H W are pixels; masks are bool.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.ndimage import distance_transform_edt

TOLERANCE = 0.008
"""Radius within which contours match, as a share of the image's diagonal (rounded up to whole pixels)."""


def jaccard(mask_HW: np.ndarray, truth_HW: np.ndarray) -> float:
    """Return intersection over union; two empty masks give 1."""
    union = int((mask_HW | truth_HW).sum())
    return int((mask_HW & truth_HW).sum()) / union if union else 1.0


def contour(mask_HW: np.ndarray) -> np.ndarray:
    """Return the one-pixel contour: pixels that differ from their right, lower or lower right neighbour (the image's edge is none)."""
    right, down, both = mask_HW.copy(), mask_HW.copy(), mask_HW.copy()
    right[:, :-1] = mask_HW[:, 1:]
    down[:-1] = mask_HW[1:]
    both[:-1, :-1] = mask_HW[1:, 1:]
    # On the last row and column only the neighbour that exists counts.
    both[-1, :-1] = mask_HW[-1, 1:]
    both[:-1, -1] = mask_HW[1:, -1]
    drawn: np.ndarray = (mask_HW ^ right) | (mask_HW ^ down) | (mask_HW ^ both)
    return drawn


def contour_accuracy(mask_HW: np.ndarray, truth_HW: np.ndarray) -> float:
    """Return the F-measure of two masks' contours; both without a contour give 1, one of them 0."""
    ours, theirs = contour(mask_HW), contour(truth_HW)
    if not ours.any() or not theirs.any():
        return float(ours.any() == theirs.any())
    radius = math.ceil(TOLERANCE * math.hypot(*mask_HW.shape))
    precision = _near(ours, theirs, radius)
    recall = _near(theirs, ours, radius)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _near(points_HW: np.ndarray, goal_HW: np.ndarray, radius: int) -> float:
    """Return the share of points that lie within a disk of this radius around a goal."""
    distance_HW = distance_transform_edt(~goal_HW)
    return float((distance_HW[points_HW] <= radius).mean())
