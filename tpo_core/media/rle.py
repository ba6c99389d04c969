"""COCO run lengths: a mask as ``{"size": [H, W], "counts": ...}``, runs of 0 and 1 in turn, down the columns.

``counts`` is COCO's compressed text or a plain list of runs. Masks are written by pycocotools; they are read here, every run checked, since
its C code trusts what it reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from pycocotools import mask as coco

from tpo_core.errors import DataError

MAX_PIXELS = 80_000_000
"""Masks of more pixels are refused before memory is taken for them."""

Rle = Mapping[str, Any]


def encode_mask(mask_HW: np.ndarray) -> dict[str, Any]:
    """Return the compressed run lengths of a mask (bool or numbers, not 0 = inside), shape (H, W), JSON-ready.

    Raises:
        DataError: not two-dimensional, or empty of pixels.
    """
    if mask_HW.ndim != 2 or 0 in mask_HW.shape:
        raise DataError(f"a mask has shape {mask_HW.shape}; expected (H, W) with H, W of at least 1")
    packed = coco.encode(np.asfortranarray(mask_HW != 0, dtype=np.uint8))
    return {"size": [int(side) for side in packed["size"]], "counts": packed["counts"].decode("ascii")}


def decode_mask(rle: Rle) -> np.ndarray:
    """Return the mask, bool, shape (H, W), C order.

    Raises:
        DataError: the run lengths are not well formed.
    """
    height, width = _size(rle)
    runs = run_lengths(rle)
    mask_WH = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height)
    return np.ascontiguousarray(mask_WH.T)


def run_lengths(rle: Rle) -> np.ndarray:
    """Return the runs (of 0, of 1, of 0, ...) as int64; their sum is H * W.

    Raises:
        DataError: the run lengths are not well formed.
    """
    height, width = _size(rle)
    counts = rle["counts"]
    if isinstance(counts, str | bytes):
        runs = _uncompress(counts)
    elif isinstance(counts, list):
        if not all(isinstance(run, int) and not isinstance(run, bool) and 0 <= run <= MAX_PIXELS for run in counts):
            raise DataError("the rle's counts hold something that is no run length; expected whole numbers of at least 0")
        runs = np.array(counts, dtype=np.int64)
    else:
        raise DataError(f"the rle's counts are {type(counts).__name__}; expected COCO's text or a list of run lengths")
    if (runs < 0).any() or (runs > MAX_PIXELS).any() or int(runs.sum()) != height * width:
        raise DataError(f"the rle's runs do not add up to its size {height} x {width} (H x W); encode the mask anew")
    return runs


def mask_area(rle: Rle) -> int:
    """Return the number of pixels inside.

    Raises:
        DataError: the run lengths are not well formed.
    """
    return int(run_lengths(rle)[1::2].sum())


def mask_box(rle: Rle) -> tuple[float, float, float, float] | None:
    """Return the tight box xyxy in pixels, x2 and y2 exclusive, or None of an empty mask.

    Raises:
        DataError: the run lengths are not well formed.
    """
    height, _ = _size(rle)
    ends = run_lengths(rle).cumsum()
    starts, stops = ends[0::2][: len(ends) // 2], ends[1::2]
    inside = stops > starts
    if not inside.any():
        return None
    starts, lasts = starts[inside], stops[inside] - 1
    # A run that enters another column covers the bottom of the first one and the top of the next.
    spills = bool((starts // height != lasts // height).any())
    top = 0 if spills else int((starts % height).min())
    bottom = height if spills else int((lasts % height).max()) + 1
    return float(starts[0] // height), float(top), float(lasts[-1] // height + 1), float(bottom)


def _size(rle: Rle) -> tuple[int, int]:
    if not isinstance(rle, Mapping) or "size" not in rle or "counts" not in rle:
        raise DataError('an rle must read {"size": [H, W], "counts": ...}')
    size = rle["size"]
    whole = isinstance(size, list | tuple) and len(size) == 2 and all(isinstance(side, int) and not isinstance(side, bool) for side in size)
    if not whole or size[0] < 1 or size[1] < 1 or size[0] * size[1] > MAX_PIXELS:
        raise DataError(
            f"the rle's size is {str(size)[:60]}; expected [H, W], whole numbers of at least 1 and at most {MAX_PIXELS:,} pixels"
        )
    return int(size[0]), int(size[1])


def _uncompress(text: str | bytes) -> np.ndarray:
    """Return the runs in COCO's text: 5 bits per character from low to high, bit 6 says that more follow; from the fourth run on, each is
    the difference to the run two before it."""
    try:
        raw = text.encode("ascii") if isinstance(text, str) else bytes(text)
    except UnicodeEncodeError:
        raise DataError("the rle's counts hold characters that COCO's text does not have; encode the mask anew") from None
    codes = np.frombuffer(raw, dtype=np.uint8).astype(np.int64) - 48
    if len(codes) == 0 or (codes < 0).any() or (codes > 63).any() or codes[-1] & 32:
        raise DataError("the rle's counts break off or hold characters that COCO's text does not have; encode the mask anew")
    is_last = (codes & 32) == 0
    ends = np.flatnonzero(is_last)
    firsts = np.append(0, ends[:-1] + 1)
    lengths = ends - firsts + 1
    if int(lengths.max()) > 6:
        raise DataError(f"the rle's counts hold a run of more than {MAX_PIXELS:,} pixels; encode the mask anew")
    place = np.arange(len(codes)) - np.repeat(firsts, lengths)
    values = np.add.reduceat((codes & 31) << (5 * place), firsts)
    values = np.where(codes[ends] & 16, values - (1 << (5 * lengths)), values)
    runs = values.copy()
    runs[1::2] = values[1::2].cumsum()
    runs[2::2] = values[2::2].cumsum()
    return runs
