"""Building blocks that replace torch's own on a CPU must be the same thing, only cheaper."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from tpo_heads.temporal.decoder import MomentDecoder, even_windows
from tpo_heads.temporal.layers import Dropout, PReLU, Residual, attend, sine_code


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_drops_its_share_and_keeps_the_mean(rate: float) -> None:
    torch.manual_seed(0)
    ones = torch.ones(200, 1001)
    kept = Dropout(rate)(ones)
    assert kept.unique().tolist() == pytest.approx([0.0, 1 / (1 - rate)])
    share = float((kept == 0).float().mean())
    assert share == pytest.approx(rate, abs=5 * math.sqrt(rate * (1 - rate) / ones.numel()))


def test_dropout_is_even_over_places_and_follows_the_seed() -> None:
    torch.manual_seed(3)
    drop = Dropout(0.5)
    first = drop(torch.ones(4000, 8))
    # Four entries share 64 random bits: each of them, and each pair, must be fair.
    share = (first == 0).float().mean(0)
    assert (share - 0.5).abs().max() < 0.05
    both = ((first[:, :4] == 0) & (first[:, 4:] == 0)).float().mean(0)
    assert (both - 0.25).abs().max() < 0.05
    torch.manual_seed(3)
    assert torch.equal(first, drop(torch.ones(4000, 8)))
    assert not torch.equal(first, drop(torch.ones(4000, 8)))


def test_dropout_does_nothing_in_evaluation_and_passes_gradients_of_what_it_kept() -> None:
    drop = Dropout(0.5)
    values = torch.randn(50, requires_grad=True)
    assert drop.eval()(values) is values
    kept = drop.train()(values)
    kept.sum().backward()
    assert values.grad is not None
    torch.testing.assert_close(values.grad, kept.detach() / values.detach())


def test_prelu_and_its_gradients_equal_torchs() -> None:
    ours = PReLU()
    with torch.no_grad():
        ours.slope.fill_(-0.3)
    values = torch.randn(7, 33, requires_grad=True)
    weight = torch.randn(7, 33)
    (ours(values) * weight).sum().backward()
    theirs, slope = values.detach().clone().requires_grad_(), torch.tensor([-0.3], requires_grad=True)
    (F.prelu(theirs, slope) * weight).sum().backward()
    torch.testing.assert_close(ours(values), F.prelu(theirs, slope))
    torch.testing.assert_close(values.grad, theirs.grad)
    torch.testing.assert_close(ours.slope.grad, slope.grad)


def test_attention_in_training_equals_torchs_where_nothing_is_dropped() -> None:
    query, key, value = torch.randn(3, 2, 4, 5, 6).unbind(0)
    seen = torch.rand(2, 1, 5, 5) > 0.4
    seen[..., 0] = True
    nothing = Dropout(1e-9).train()
    for mask in (None, seen):
        expected = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        torch.testing.assert_close(attend(query, key, value, mask, nothing), expected)
        torch.testing.assert_close(attend(query, key, value, mask, Dropout(0.5).eval()), expected)


def test_a_residual_branch_is_left_out_for_whole_queries() -> None:
    torch.manual_seed(0)
    residual = Residual(4, 0.5)
    added = residual.add(torch.zeros(64, 3, 4), torch.ones(64, 3, 4))
    assert all(set(row.unique().tolist()) in ({0.0}, {2.0}) for row in added)
    assert 10 < int((added[:, 0, 0] == 0).sum()) < 54
    assert torch.equal(residual.eval().add(torch.zeros(2, 3, 4), torch.ones(2, 3, 4)), torch.ones(2, 3, 4))


def test_sine_code_by_hand() -> None:
    code = sine_code(torch.tensor([0.25]), 4)
    slow = 0.5 * math.pi / 100
    torch.testing.assert_close(code, torch.tensor([[1.0, 0.0, math.sin(slow), math.cos(slow)]]), rtol=1e-5, atol=1e-6)


def test_windows_begin_evenly_spread() -> None:
    expected = torch.tensor([[0.125, 0.25], [0.375, 0.25], [0.625, 0.25], [0.875, 0.25]])
    torch.testing.assert_close(even_windows(4).sigmoid(), expected)
    decoder = MomentDecoder(8, 2, 16, 0.0, layers=2, queries=4)
    starts = decoder(torch.zeros(1, 3, 8), torch.zeros(1, 3, 8), torch.ones(1, 3, dtype=torch.bool))[1]
    torch.testing.assert_close(starts[0, 0], expected)
