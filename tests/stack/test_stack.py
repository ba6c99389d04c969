"""`stack_rows`: equal shapes are stacked, ragged ones padded with a mask, everything else is refused by name."""

from __future__ import annotations

import pytest
import torch

from tpo_core.stack import stack_rows


def test_equal_shapes_are_stacked_and_keep_their_dtype() -> None:
    rows = [{"box": torch.tensor([1.0, 2.0]), "n": torch.tensor(3)}, {"box": torch.tensor([4.0, 5.0]), "n": torch.tensor(6)}]
    stacked = stack_rows(rows, frozenset())
    torch.testing.assert_close(stacked["box"], torch.tensor([[1.0, 2.0], [4.0, 5.0]]))
    torch.testing.assert_close(stacked["n"], torch.tensor([3, 6]))
    assert set(stacked) == {"box", "n"}


def test_ragged_is_padded_with_zeros_and_masked() -> None:
    rows = [{"spans": torch.tensor([[1, 2]])}, {"spans": torch.tensor([[3, 4], [5, 6]])}, {"spans": torch.zeros((0, 2), dtype=torch.int64)}]
    stacked = stack_rows(rows, frozenset({"spans", "not_here"}))
    assert stacked["spans"].tolist() == [[[1, 2], [0, 0]], [[3, 4], [5, 6]], [[0, 0], [0, 0]]]
    assert stacked["spans"].dtype == torch.int64
    assert stacked["spans_valid"].tolist() == [[True, False], [True, True], [False, False]]


def test_no_rows_give_no_tensors() -> None:
    assert stack_rows([], frozenset({"spans"})) == {}


def test_the_input_is_not_aliased() -> None:
    row = {"x": torch.zeros(2, 2)}
    stack_rows([row], frozenset({"x"}))["x"].add_(1)
    stack_rows([row], frozenset())["x"].add_(1)
    assert row["x"].sum() == 0


@pytest.mark.parametrize(
    ("rows", "ragged", "message"),
    [
        ([{"x": torch.zeros(2)}, {"x": torch.zeros(3)}], set(), r"'x' has shape \(2,\) in row 0 and \(3,\) in row 1.*`ragged`"),
        ([{"x": torch.zeros(2, 4)}, {"x": torch.zeros(3, 5)}], {"x"}, r"ragged tensor 'x' .* only the first dimension may differ"),
        ([{"x": torch.zeros(())}], {"x"}, "only the first dimension may differ"),
        ([{"x": torch.zeros(2)}, {"x": torch.zeros(2, dtype=torch.int64)}], set(), "'x' is torch.float32 in row 0 and torch.int64"),
        ([{"x": torch.zeros(2)}, {"y": torch.zeros(2)}], set(), r"\['x', 'y'\] are in only one of row 0 and row 1"),
        ([{"x": torch.zeros(2), "x_valid": torch.zeros(2)}], {"x"}, "'x_valid' clashes"),
    ],
)
def test_what_does_not_stack_is_named(rows: list[dict[str, torch.Tensor]], ragged: set[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stack_rows(rows, frozenset(ragged))
