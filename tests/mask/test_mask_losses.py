"""SAM2's losses against values derived by hand."""

from __future__ import annotations

import math

import pytest
import torch

from tpo_heads.mask.losses import (
    dice_loss,
    enlarge,
    focal_loss,
    mask_iou,
    mask_losses,
    object_loss,
    projection_loss,
    sample_points,
)

LOG3 = math.log(3)
"""A logit of log 3 is a probability of 3/4."""


def test_focal_by_hand() -> None:
    logits = torch.tensor([[[LOG3, -LOG3]]])
    truth = torch.tensor([[1.0, 1.0]])
    # p = 3/4: 0.25 * (1/4)^2 * -log(3/4); p = 1/4: 0.25 * (3/4)^2 * -log(1/4); averaged over two pixels.
    expected = 0.25 * ((1 / 16) * -math.log(0.75) + (9 / 16) * -math.log(0.25)) / 2
    assert float(focal_loss(logits, truth)) == pytest.approx(expected, rel=1e-6)
    # Background weighs three quarters.
    assert float(focal_loss(-logits, 1 - truth)) == pytest.approx(3 * expected, rel=1e-6)


def test_dice_by_hand() -> None:
    logits = torch.tensor([[[LOG3, -LOG3, LOG3]]])
    truth = torch.tensor([[1.0, 1.0, 0.0]])
    # overlap 3/4 + 1/4 = 1; sums 3/4 + 1/4 + 3/4 = 1.75 and 2: 1 - (2 + 1) / (3.75 + 1)
    assert float(dice_loss(logits, truth)) == pytest.approx(1 - 3 / 4.75, rel=1e-6)
    assert float(dice_loss(torch.full((1, 1, 3), -50.0), torch.zeros(1, 3))) == pytest.approx(0, abs=1e-6)


def test_iou_by_hand() -> None:
    logits = torch.tensor([[[1.0, 1.0, -1.0, -1.0], [-1.0, -1.0, -1.0, -1.0]]])
    truth = torch.tensor([[1, 0, 1, 0]])
    torch.testing.assert_close(mask_iou(logits, truth), torch.tensor([[1 / 3, 0.0]]))
    torch.testing.assert_close(mask_iou(logits[:, 1:], torch.zeros(1, 4)), torch.zeros(1, 1))


def test_the_best_candidate_is_supervised_and_every_iou() -> None:
    truth = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    good, bad = [5.0, 5.0, -5.0, -5.0], [-5.0, -5.0, 5.0, 5.0]
    logits = torch.tensor([[bad, good, bad]], requires_grad=True)
    iou = torch.tensor([[0.5, 0.75, 0.25]])
    losses = mask_losses(logits, iou, truth, focal=20, dice=1)
    torch.testing.assert_close(losses.focal_R, focal_loss(logits[:, 1:2], truth)[0])
    torch.testing.assert_close(losses.dice_R, dice_loss(logits[:, 1:2], truth)[0])
    assert float(losses.iou_R) == pytest.approx((0.5 + 0.25 + 0.25) / 3)
    (losses.focal_R + losses.dice_R).sum().backward()
    assert logits.grad is not None
    assert logits.grad.abs().sum(dim=2)[0].tolist() == [0.0, pytest.approx(float(logits.grad[0, 1].abs().sum())), 0.0]
    assert float(logits.grad[0, 1].abs().sum()) > 0


def test_factors_choose_the_candidate() -> None:
    # The first has the smaller focal loss, the second the smaller dice loss.
    truth = torch.tensor([[1.0] + [0.0] * 9])
    first, second = torch.full((10,), -2.0), torch.full((10,), -0.5)
    second[0] = 6.0
    logits = torch.stack([first, second])[None]
    focal, dice = focal_loss(logits, truth)[0], dice_loss(logits, truth)[0]
    assert float(dice[1]) < float(dice[0])
    by_dice = mask_losses(logits, torch.zeros(1, 2), truth, focal=0, dice=1)
    assert float(by_dice.dice_R) == pytest.approx(float(dice.min()))
    by_focal = mask_losses(logits, torch.zeros(1, 2), truth, focal=1, dice=0)
    assert float(by_focal.focal_R) == pytest.approx(float(focal.min()))


def test_object_score_by_hand() -> None:
    torch.testing.assert_close(
        object_loss(torch.tensor([LOG3, LOG3]), torch.tensor([True, False])), torch.tensor([-math.log(0.75), -math.log(0.25)])
    )


def test_projection_of_the_right_box_and_of_none() -> None:
    logits = torch.full((2, 8, 8), -30.0)
    logits[0, 2:6, 1:4] = 30.0
    boxes = torch.tensor([[1 / 8, 2 / 8, 4 / 8, 6 / 8]] * 2)
    loss = projection_loss(logits, boxes)
    assert float(loss[0]) == pytest.approx(0, abs=1e-5)
    # Nothing drawn: 1 - 1 / (3 + 1) across and 1 - 1 / (4 + 1) down.
    assert float(loss[1]) == pytest.approx(3 / 4 + 4 / 5, rel=1e-5)


def test_points_are_read_between_pixels() -> None:
    logits = torch.tensor([[[[0.0, 4.0], [8.0, 12.0]]]])
    points = torch.tensor([[[0.25, 0.25], [0.75, 0.25], [0.5, 0.5]]])
    torch.testing.assert_close(sample_points(logits, points), torch.tensor([[[0.0, 4.0, 6.0]]]))


def test_enlarge_keeps_constant_masks() -> None:
    torch.testing.assert_close(enlarge(torch.full((1, 2, 4, 4), 3.0), 16), torch.full((1, 2, 256), 3.0))
