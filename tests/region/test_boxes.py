"""Boxes: values derived by hand, parity with torchvision's own functions, round trips."""

from __future__ import annotations

import pytest
import torch
import torchvision.ops as reference
from hypothesis import given
from hypothesis import strategies as st

from tpo_heads.boxes import area, clip, cxcywh_to_xyxy, denormalise, giou, iou, iou_pairwise, normalise, xyxy_to_cxcywh

UNIT = torch.tensor([0.0, 0.0, 1.0, 1.0])


def random_boxes(count: int, seed: int) -> torch.Tensor:
    corners = torch.rand((count, 2, 2), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.cat([corners.amin(1), corners.amax(1) + 0.01], dim=-1)


def test_forms_by_hand() -> None:
    torch.testing.assert_close(xyxy_to_cxcywh(torch.tensor([[10.0, 20, 40, 30]])), torch.tensor([[25.0, 25, 30, 10]]))
    torch.testing.assert_close(cxcywh_to_xyxy(torch.tensor([[25.0, 25, 30, 10]])), torch.tensor([[10.0, 20, 40, 30]]))


def test_sizes_by_hand() -> None:
    box = torch.tensor([16.0, 12, 32, 48])
    torch.testing.assert_close(normalise(box, (64, 48)), torch.tensor([0.25, 0.25, 0.5, 1.0]))
    torch.testing.assert_close(denormalise(torch.tensor([0.25, 0.25, 0.5, 1.0]), (64, 48)), box)
    torch.testing.assert_close(clip(torch.tensor([-5.0, 40, 70, 60]), (64, 48)), torch.tensor([0.0, 40, 64, 48]))


def test_overlaps_by_hand() -> None:
    # Two unit squares shifted by half: overlap 1/2, union 3/2, hull 3/2.
    shifted = torch.tensor([0.5, 0.0, 1.5, 1.0])
    assert iou(UNIT, shifted).item() == pytest.approx(1 / 3)
    assert giou(UNIT, shifted).item() == pytest.approx(1 / 3)
    # Apart by one: union 2, hull 3.
    apart = torch.tensor([2.0, 0.0, 3.0, 1.0])
    assert iou(UNIT, apart).item() == 0
    assert giou(UNIT, apart).item() == pytest.approx(-1 / 3)
    assert giou(UNIT, UNIT).item() == 1


def test_touching_boxes_do_not_overlap() -> None:
    assert iou(UNIT, torch.tensor([1.0, 0.0, 2.0, 1.0])).item() == 0


@pytest.mark.parametrize("empty", [[0.5, 0.5, 0.5, 0.5], [0.2, 0.2, 0.8, 0.2], [0.8, 0.8, 0.2, 0.2], [0.8, 0.2, 0.2, 0.8]])
def test_empty_and_reversed_boxes(empty: list[float]) -> None:
    box = torch.tensor(empty, requires_grad=True)
    assert area(box).item() == 0
    assert iou(box, UNIT).item() == 0
    assert iou(box, box).item() == 0
    assert giou(box, UNIT).item() == pytest.approx(0)  # union 1, hull 1
    value = giou(box, torch.tensor([2.0, 2.0, 3.0, 3.0]))
    assert -1 <= value.item() < 0
    value.backward()
    assert box.grad is not None
    assert torch.isfinite(box.grad).all()


def test_two_equal_points_have_a_finite_giou() -> None:
    point = torch.full((4,), 0.5, requires_grad=True)
    value = giou(point, torch.full((4,), 0.5))
    value.backward()
    assert value.item() == 0
    assert point.grad is not None
    assert torch.isfinite(point.grad).all()


def test_parity_with_torchvision() -> None:
    a, b = random_boxes(40, 0), random_boxes(40, 1)
    torch.testing.assert_close(area(a), reference.box_area(a))
    torch.testing.assert_close(iou_pairwise(a, b[:7]), reference.box_iou(a, b[:7]))
    torch.testing.assert_close(iou(a, b), reference.box_iou(a, b).diagonal())
    torch.testing.assert_close(giou(a, b), reference.generalized_box_iou(a, b).diagonal().float())
    torch.testing.assert_close(xyxy_to_cxcywh(a), reference.box_convert(a, "xyxy", "cxcywh"))
    torch.testing.assert_close(clip(a * 80 - 10, (50, 30)), reference.clip_boxes_to_image(a * 80 - 10, (30, 50)))


def test_pairwise_of_no_boxes() -> None:
    assert iou_pairwise(torch.zeros(0, 4), random_boxes(3, 0)).shape == (0, 3)


def test_giou_of_half_precision_is_computed_in_float32() -> None:
    a, b = random_boxes(5, 2).bfloat16(), random_boxes(5, 3).bfloat16()
    assert giou(a, b).dtype == torch.float32
    torch.testing.assert_close(giou(a, b), giou(a.double(), b.double()))


def test_giou_pulls_boxes_that_are_apart() -> None:
    box = torch.tensor([0.0, 0.0, 0.2, 0.2], requires_grad=True)
    (1 - giou(box, torch.tensor([0.7, 0.7, 0.9, 0.9]))).backward()
    assert box.grad is not None
    assert (box.grad[2:] < 0).all()


@given(
    box=st.tuples(*[st.floats(-500, 5000) for _ in range(4)]),
    size=st.tuples(st.integers(1, 4000), st.integers(1, 4000)),
)
def test_round_trips(box: tuple[float, ...], size: tuple[int, int]) -> None:
    boxes = torch.tensor(box, dtype=torch.float64)
    torch.testing.assert_close(cxcywh_to_xyxy(xyxy_to_cxcywh(boxes)), boxes)
    torch.testing.assert_close(denormalise(normalise(boxes, size), size), boxes)
    torch.testing.assert_close(clip(clip(boxes, size), size), clip(boxes, size))
