"""Loss terms and the assignment: hand-worked values, a brute-force reference, and what must drop out."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tpo_core.types import Tensors
from tpo_heads.temporal.config import TemporalConfig
from tpo_heads.temporal.head import choose_wrong_questions
from tpo_heads.temporal.losses import alignment_losses, margin, rank_contrast, ranking_losses, window_losses
from tpo_heads.temporal.matching import match
from tpo_heads.temporal.timeline import cxw_to_xx, giou

CONFIG = TemporalConfig(hidden=8, attention_heads=1, dummies=2, moment_queries=4)


def brute_force(spans_Q2: Tensor, logits_Q2: Tensor, windows_X2: Tensor) -> float:
    """The least cost over all ways to give every window a query of its own."""

    def cost(q: int, x: int) -> float:
        distance = float((spans_Q2[q] - windows_X2[x]).abs().sum())
        overlap = float(giou(cxw_to_xx(spans_Q2[q]), cxw_to_xx(windows_X2[x])))
        return 10 * distance - overlap - 4 * float(logits_Q2[q].softmax(-1)[0])

    count = len(windows_X2)
    return min(sum(cost(q, x) for x, q in enumerate(order)) for order in itertools.permutations(range(len(spans_Q2)), count))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 3))
def test_assignment_has_the_least_cost(seed: int, count: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    spans, logits = torch.rand(1, 1, 4, 2, generator=generator), torch.randn(1, 1, 4, 2, generator=generator)
    windows = torch.rand(1, 3, 2, generator=generator)
    there = torch.arange(3)[None] < count
    index, found = match(spans, logits, windows, there, CONFIG)
    assert found.tolist() == [there.tolist()]
    chosen = index[0, 0, :count].tolist()
    assert len(set(chosen)) == count
    one = [brute_force(spans[0, 0, [q]], logits[0, 0, [q]], windows[0, [x]]) for x, q in enumerate(chosen)]
    assert sum(one) == pytest.approx(brute_force(spans[0, 0], logits[0, 0], windows[0, :count]), abs=1e-4)


def test_assignment_skips_windows_that_are_not_there_wherever_they_stand() -> None:
    spans = torch.tensor([[[[0.2, 0.1], [0.8, 0.1]]]])
    windows, there = torch.tensor([[[0.5, 0.0], [0.8, 0.1], [0.2, 0.1]]]), torch.tensor([[False, True, True]])
    index, found = match(spans, torch.zeros(1, 1, 2, 2), windows, there, CONFIG)
    assert found.tolist() == [[[False, True, True]]]
    assert index[0, 0, 1:].tolist() == [1, 0]


def test_more_windows_than_queries_leave_some_without_a_partner() -> None:
    windows = torch.tensor([[[0.1, 0.1], [0.5, 0.1], [0.9, 0.1]]])
    _, found = match(torch.tensor([[[[0.5, 0.1]]]]), torch.zeros(1, 1, 1, 2), windows, torch.ones(1, 3, dtype=torch.bool), CONFIG)
    assert found.tolist() == [[[False, True, False]]]


def test_a_diverged_prediction_does_not_stop_the_assignment() -> None:
    spans = torch.full((1, 1, 4, 2), math.nan)
    losses = window_losses(spans, torch.zeros(1, 1, 4, 2), torch.rand(1, 1, 2), torch.ones(1, 1, dtype=torch.bool), CONFIG)
    assert torch.isnan(losses["span"]).all()


def test_window_terms_by_hand() -> None:
    spans = torch.tensor([[[[0.5, 0.2], [0.1, 0.1]]]])
    logits = torch.tensor([[[[math.log(3.0), 0.0], [0.0, 0.0]]]])
    windows = torch.tensor([[[0.6, 0.2]]])
    losses = window_losses(spans, logits, windows, torch.ones(1, 1, dtype=torch.bool), CONFIG)
    # [0.4, 0.6] against [0.5, 0.7]: |d| = (0.1, 0); IoU 1/3, hull = union.
    assert float(losses["span"]) == pytest.approx(0.05)
    assert float(losses["giou"]) == pytest.approx(2 / 3, abs=1e-5)
    # foreground with 3/4; background with 1/2, which counts a tenth.
    assert float(losses["label"]) == pytest.approx((-math.log(0.75) - 0.1 * math.log(0.5)) / 2)


def test_a_query_without_windows_teaches_background_alone() -> None:
    logits = torch.zeros(1, 2, 4, 2)
    windows, there = torch.rand(2, 1, 2), torch.tensor([[True], [False]])
    losses = window_losses(torch.rand(1, 2, 4, 2), logits, windows, there, CONFIG)
    assert float(losses["span"][0, 1]) == 0
    assert float(losses["giou"][0, 1]) == 0
    assert float(losses["label"][0, 1]) == pytest.approx(0.1 * math.log(2))
    empty = window_losses(torch.rand(1, 2, 4, 2), logits, torch.zeros(2, 0, 2), torch.zeros(2, 0, dtype=torch.bool), CONFIG)
    assert empty["span"].tolist() == [[0, 0]]


def test_margin_by_hand() -> None:
    score = torch.tensor([[1.0, 0.9, 0.0]])
    value = margin(score, torch.tensor([[0, 0]]), torch.tensor([[1, 2]]), torch.tensor([[True, True]]), 0.2)
    assert float(value) == pytest.approx(0.1)  # 2 * mean(0.1, 0)
    assert float(margin(score, torch.tensor([[0, 2]]), torch.tensor([[1, 0]]), torch.tensor([[True, False]]), 0.2)) == pytest.approx(0.1)


def test_rank_contrast_by_hand() -> None:
    # Level 2 is reached by clip 0 at levels 1 and 2, by clip 1 at level 1. Scores over a temperature of 0.5: 2, 0, and padding.
    value = rank_contrast(torch.tensor([[1.0, 0.0, 9.0]]), torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([[True, True, False]]))
    log_sum = math.log(1 + math.exp(-2))
    at_one, at_two = ((0 + 2) / 2 + log_sum), log_sum
    assert float(value) == pytest.approx((at_one + at_two) / 12, rel=1e-4)


def test_rank_contrast_is_zero_without_a_moment() -> None:
    assert float(rank_contrast(torch.randn(1, 4), torch.zeros(1, 4), torch.ones(1, 4, dtype=torch.bool))) == 0


def output_of(rows: int, *, negatives: bool, seed: int = 0) -> Tensors:
    """A made-up output of the network: 6 clips, of which the last is padding in row 0; 2 dummies, 3 words; clips 1 and 2 are the moment."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    valid = torch.ones(rows, 6, dtype=torch.bool)
    valid[0, 5] = False
    level = torch.tensor([0.0, 8.0, 3.0, 0.0, 0.0, 0.0]).expand(rows, 6)
    output = {
        "valid": valid,
        "level": level,
        "moment": level > 0,
        "high": torch.tensor([[1, 2]]).expand(rows, 2),
        "low": torch.tensor([[2, 0]]).expand(rows, 2),
        "pairs": torch.ones(rows, 2, dtype=torch.bool),
        "has_negative": torch.full((rows,), negatives),
        "text_valid": torch.ones(rows, 5, dtype=torch.bool),
        "saliency": noise(rows, 6),
        "attention": noise(rows, 6, 5).softmax(-1),
        "similarity": noise(rows, 6, 5),
        "dummies": noise(rows, 2, 8),
        "globals": noise(3, 8).expand(rows, 3, 8),
        "framed": noise(rows, 6, 8),
    }
    output |= {name: noise(rows, 8) for name in ("moment_token", "other_token", "sentence_token", "dummy_token")}
    if negatives:
        output |= {"negative_saliency": noise(rows, 6), "negative_attention": noise(rows, 6, 5).softmax(-1)}
    return output


def test_negative_terms_are_the_wrong_questions_scores_on_valid_clips() -> None:
    output = output_of(2, negatives=True)
    losses = ranking_losses(output, CONFIG)
    for row, valid in enumerate(output["valid"]):
        expected = -torch.log(1 - output["negative_saliency"][row].sigmoid())[valid].sum()
        torch.testing.assert_close(losses["saliency_negative"][row], expected)
        expected = -torch.log(1 - output["negative_attention"][row, :, 2:].sum(-1))[valid].sum()
        torch.testing.assert_close(losses["attention_negative"][row], expected, rtol=1e-4, atol=1e-5)


def test_wrong_questions_that_score_high_cost_much_but_never_infinity() -> None:
    output = output_of(2, negatives=True)
    output["negative_saliency"] = torch.full((2, 6), 200.0)
    output["negative_attention"] = torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0]).expand(2, 6, 5)
    losses = ranking_losses(output, CONFIG)
    assert float(losses["saliency_negative"][1]) == pytest.approx(1200)
    assert torch.isfinite(losses["attention_negative"]).all()


def test_without_wrong_questions_their_terms_drop_out() -> None:
    losses = ranking_losses(output_of(1, negatives=False), CONFIG)
    assert float(losses["saliency_negative"]) == 0
    assert float(losses["attention_negative"]) == 0
    assert all(bool(torch.isfinite(loss).all()) for loss in losses.values())


def test_rank_terms_of_a_row_without_a_wrong_question_look_at_its_own_clips_alone() -> None:
    output = output_of(2, negatives=True)
    output["has_negative"] = torch.tensor([True, False])
    losses = ranking_losses(output, CONFIG)
    own = rank_contrast(output["saliency"], output["level"], output["valid"])
    torch.testing.assert_close(losses["saliency_rank"][1], own[1])
    assert float(losses["saliency_rank"][0]) > float(own[0])


@pytest.mark.parametrize("faults", [False, True])
def test_a_row_without_a_moment_has_no_alignment_and_stays_finite(faults: bool) -> None:
    config = CONFIG.model_copy(update={"release_faults": faults})
    output = output_of(3, negatives=True)
    output["level"] = output["level"].clone()
    output["level"][1] = 0
    output["moment"] = output["level"] > 0
    output["moment_token"].requires_grad_()
    losses = {**alignment_losses(output, config), **ranking_losses(output, config)}
    assert all(bool(torch.isfinite(loss).all()) for loss in losses.values())
    if not faults:
        assert all(float(losses[name][1].detach()) == 0 for name in ("align_sentence", "align_dummy", "align_clips", "distill"))


def test_alignment_prefers_the_own_sentence_and_shuns_the_own_dummies() -> None:
    output = output_of(3, negatives=True)
    before = alignment_losses(output, CONFIG)
    closer = alignment_losses(output | {"sentence_token": output["moment_token"]}, CONFIG)
    assert (closer["align_sentence"] < before["align_sentence"]).all()
    own_dummy = alignment_losses(output | {"dummy_token": output["moment_token"]}, CONFIG)
    assert (own_dummy["align_dummy"] > before["align_dummy"]).all()


def test_distillation_is_zero_where_attention_equals_similarity() -> None:
    output = output_of(2, negatives=True)
    output["attention"] = output["similarity"].softmax(-1)
    assert alignment_losses(output, CONFIG)["distill"].abs().max() < 1e-4


def test_orthogonal_term_by_hand() -> None:
    output = output_of(1, negatives=False)
    output["dummies"] = torch.tensor([[[1.0, 0.0], [1.0, 1.0]]])
    output["globals"] = torch.eye(2)[None]
    # |cos| = sqrt(1/2) off the diagonal, which is half of the matrix.
    assert float(alignment_losses(output, CONFIG)["orthogonal"]) == pytest.approx(math.sqrt(0.5) / 2)


@pytest.mark.parametrize(
    ("videos", "index", "there"),
    [
        ([7, 8, 9], [1, 2, 0], [True] * 3),
        ([7, 7, 8], [2, 2, 0], [True] * 3),
        ([7, 8, 8, 7], [1, 3, 3, 1], [True] * 4),
        ([7, 7], [0, 1], [False, False]),
        ([7], [0], [False]),
    ],
)
def test_a_wrong_question_is_the_next_one_about_another_video(videos: list[int], index: list[int], there: list[bool]) -> None:
    chosen, has = choose_wrong_questions(torch.tensor(videos), next_only=False)
    assert has.tolist() == there
    assert [i for i, ok in zip(chosen.tolist(), there) if ok] == [i for i, ok in zip(index, there) if ok]


def test_the_published_rule_looks_at_the_next_row_alone() -> None:
    index, has = choose_wrong_questions(torch.tensor([7, 7, 8]), next_only=True)
    assert index.tolist() == [1, 2, 0]
    assert has.tolist() == [False, True, True]
