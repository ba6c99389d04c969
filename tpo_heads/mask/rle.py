"""Masks as COCO run-length records, and the boxes around them.

COCO's runs go down the columns and begin with background. Reading is done here with every count checked, so that a broken or hostile
record raises `ValueError` and allocates nothing; writing is pycocotools'. H W are pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco

Rle = dict[str, Any]
"""``{"size": [height, width], "counts": str or list of ints}``."""


def encode(mask_HW: np.ndarray) -> Rle:
    """Return a mask (any type, true where not 0) as compressed COCO RLE, JSON-ready."""
    made = coco.encode(np.asfortranarray(np.asarray(mask_HW) != 0, dtype=np.uint8))
    return {"size": [int(side) for side in made["size"]], "counts": made["counts"].decode("ascii")}


def decode(rle: Rle, size: tuple[int, int] | None = None) -> np.ndarray:
    """Return the mask as bool (H, W).

    Args:
        size: (width, height) that the record must have; None takes the record's own.

    Raises:
        ValueError: not a COCO RLE, another size, or counts that do not add up to it.
    """
    height, width = _size(rle)
    if size is not None and (width, height) != tuple(size):
        raise ValueError(
            f"a mask of {width} x {height} pixels was found where {size[0]} x {size[1]} were expected; give it at the medium's size"
        )
    runs = _runs(rle["counts"], height * width)
    values = np.zeros(len(runs), dtype=bool)
    values[1::2] = True
    return np.repeat(values, runs).reshape((height, width), order="F")


def area(rle: Rle) -> int:
    """Return the number of true pixels, without building the mask.

    Raises:
        ValueError: as `decode`.
    """
    height, width = _size(rle)
    return int(sum(_runs(rle["counts"], height * width)[1::2]))


def tight_box(mask_HW: np.ndarray) -> list[float] | None:
    """Return the smallest box around a mask, [x1, y1, x2, y2] in pixels with exclusive x2 and y2, or None for an empty mask."""
    rows, columns = np.flatnonzero(mask_HW.any(axis=1)), np.flatnonzero(mask_HW.any(axis=0))
    if not len(rows):
        return None
    return [float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)]


def fill_box(box_xyxy: Sequence[float], size: tuple[int, int]) -> np.ndarray:
    """Return the mask (H, W) of the pixels whose centres lie in a box of an image of this (width, height)."""
    left, top, right, bottom = box_xyxy
    columns, rows = np.arange(size[0]) + 0.5, np.arange(size[1]) + 0.5
    filled: np.ndarray = ((rows >= top) & (rows < bottom))[:, None] & ((columns >= left) & (columns < right))[None]
    return filled


def _size(rle: Rle) -> tuple[int, int]:
    if not isinstance(rle, dict) or set(rle) != {"size", "counts"}:
        raise ValueError('a mask must read {"size": [height, width], "counts": ...} (COCO RLE)')
    size = rle["size"]
    if not isinstance(size, list | tuple) or len(size) != 2 or not all(isinstance(side, int) and 0 < side < 1 << 16 for side in size):
        raise ValueError(f"a mask's size must be [height, width] in whole pixels, got {str(size)[:60]}")
    return int(size[0]), int(size[1])


def _runs(counts: Any, total: int) -> list[int]:
    if isinstance(counts, bytes):
        counts = counts.decode("ascii", "replace")
    if isinstance(counts, str):
        runs = _unpack(counts)
    elif isinstance(counts, list) and all(isinstance(run, int) and not isinstance(run, bool) for run in counts):
        runs = counts
    else:
        raise ValueError("a mask's counts must be COCO's compressed string or a list of whole numbers; write it with pycocotools")
    if any(run < 0 for run in runs):
        raise ValueError(f"a mask's counts hold a run of {min(runs)} pixels; the RLE is broken, write it again")
    if sum(runs) != total:
        raise ValueError(f"a mask's counts add up to {sum(runs)} pixels where its size has {total}; the RLE is broken, write it again")
    return runs


def _unpack(text: str) -> list[int]:
    """Read COCO's string: five bits a letter from '0' on, a sixth says that more follow; from the fourth run on differences."""
    runs: list[int] = []
    value, shift = 0, 0
    for letter in text:
        bits = ord(letter) - 48
        if not 0 <= bits < 64 or shift > 30:
            raise ValueError(f"a mask's counts hold {letter!r}, which COCO's RLE does not; the RLE is broken, write it again")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value, shift = 0, 0
    if shift:
        raise ValueError("a mask's counts end within a number; the RLE is broken, write it again")
    return runs
