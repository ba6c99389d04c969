"""How the tensors of single queries (or media) become one batch: the same code for collation, prediction and the conformance kit.

N rows; the letters are explained in `tpo_core.types`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tpo_core.types import Tensors

VALID = "_valid"
"""Added to a ragged tensor's name: the bool tensor (N, longest) that is True where a row has entries of its own."""


def stack_rows(rows: Sequence[Tensors], ragged: frozenset[str]) -> Tensors:
    """Stack the rows' tensors along a new first dimension; no row gives an empty dict.

    Args:
        rows: one dict per query or medium, no batch dimension, all with the same names.
        ragged: names whose first dimension varies; they are padded with zeros to the longest, and ``<name>_valid`` is added. A name
            that the rows do not have is ignored (it may belong to `encode` while `inputs` is stacked, or the other way round).

    Raises:
        ValueError: the rows disagree in names, dtype or shape (the message names the tensor and the two rows).
    """
    if not rows:
        return {}
    names = list(rows[0])
    for index, row in enumerate(rows):
        if row.keys() != rows[0].keys():
            odd = sorted(row.keys() ^ rows[0].keys())
            raise ValueError(f"tensors {odd} are in only one of row 0 and row {index}; every row must hold the same names")
    stacked: Tensors = {}
    for name in names:
        column = [row[name] for row in rows]
        if name not in ragged:
            stacked[name] = _stack_equal(name, column)
            continue
        if name + VALID in rows[0]:
            raise ValueError(f"tensor {name + VALID!r} clashes with the mask that is added for the ragged {name!r}; rename it")
        stacked[name], stacked[name + VALID] = _stack_ragged(name, column)
    return stacked


def _stack_equal(name: str, column: Sequence[Tensor]) -> Tensor:
    first = column[0]
    for index, tensor in enumerate(column):
        if tensor.shape != first.shape:
            raise ValueError(
                f"tensor {name!r} has shape {tuple(first.shape)} in row 0 and {tuple(tensor.shape)} in row {index}; "
                f"give every row one shape, or name it in the codec's `ragged`"
            )
        _check_dtype(name, first, tensor, index)
    return torch.stack(list(column))


def _stack_ragged(name: str, column: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    first = column[0]
    for index, tensor in enumerate(column):
        if tensor.ndim == 0 or tensor.shape[1:] != first.shape[1:]:
            raise ValueError(
                f"ragged tensor {name!r} has shape {tuple(first.shape)} in row 0 and {tuple(tensor.shape)} in row {index}; "
                f"only the first dimension may differ"
            )
        _check_dtype(name, first, tensor, index)
    longest = max(len(tensor) for tensor in column)
    padded = first.new_zeros((len(column), longest, *first.shape[1:]))
    valid = torch.zeros((len(column), longest), dtype=torch.bool, device=first.device)
    for index, tensor in enumerate(column):
        padded[index, : len(tensor)] = tensor
        valid[index, : len(tensor)] = True
    return padded, valid


def _check_dtype(name: str, first: Tensor, tensor: Tensor, index: int) -> None:
    if tensor.dtype != first.dtype:
        raise ValueError(f"tensor {name!r} is {first.dtype} in row 0 and {tensor.dtype} in row {index}; give every row one dtype")
