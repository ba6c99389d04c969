"""Where two answers, or two dicts of tensors, differ; in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from tpo_core.types import Tensors

CLOSE = 1e-4
"""Relative and absolute tolerance of float32 results that should be equal but for the order of sums."""


def answers_differ(ours: Any, theirs: Any, where: str = "answer") -> str | None:
    """Return where two JSON values differ by more than `CLOSE`, or None."""
    if isinstance(ours, bool) or isinstance(theirs, bool) or not isinstance(ours, int | float) or not isinstance(theirs, int | float):
        return _others_differ(ours, theirs, where)
    equal = math.isclose(ours, theirs, rel_tol=CLOSE, abs_tol=CLOSE)
    return None if equal else f"{where} is {ours!r} and {theirs!r}"


def tensors_differ(ours: Tensors, theirs: Tensors, rows: Sequence[int] | None = None, *, exact: bool = False) -> str | None:
    """Return which tensor differs (in these rows, where given), or None. NaN equals NaN."""
    if ours.keys() != theirs.keys():
        return f"the names {sorted(ours)} and {sorted(theirs)}"
    for name, tensor in ours.items():
        mine, other = (tensor, theirs[name]) if rows is None else (tensor[list(rows)], theirs[name][list(rows)])
        tolerance = 0.0 if exact else CLOSE
        if mine.shape != other.shape or mine.dtype != other.dtype:
            return f"{name!r}: {mine.dtype} {tuple(mine.shape)} and {other.dtype} {tuple(other.shape)}"
        if not torch.allclose(mine.double(), other.double(), rtol=tolerance, atol=tolerance, equal_nan=True):
            return f"{name!r} (largest difference {float((mine.double() - other.double()).abs().max()):.3g})"
    return None


def _others_differ(ours: Any, theirs: Any, where: str) -> str | None:
    if isinstance(ours, dict) and isinstance(theirs, dict) and ours.keys() == theirs.keys():
        found = (answers_differ(value, theirs[key], f"{where}[{key!r}]") for key, value in ours.items())
        return next((text for text in found if text), None)
    if isinstance(ours, list | tuple) and isinstance(theirs, list | tuple) and len(ours) == len(theirs):
        found = (answers_differ(a, b, f"{where}[{i}]") for i, (a, b) in enumerate(zip(ours, theirs)))
        return next((text for text in found if text), None)
    return None if ours == theirs else f"{where} is {ours!r} and {theirs!r}"
