"""The conformance kit: a good head passes, and every deliberately bad head is caught by exactly the check that is meant for it."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy_card import SPEC

from tpo_core.testing import CHECKS, CheckFailed, check_head, head_checks


def check(spec: Any = SPEC, **options: Any) -> Any:
    """Check without the fresh interpreter of `light_card` (no package announces the toy head), which has tests of its own."""
    return check_head(spec, **options)


def test_a_good_head_passes_every_check() -> None:
    report = check(module="toy_card")
    assert report.ok, str(report)
    assert {result.outcome for result in report.results} == {"passed"}
    assert [result.check for result in report.results] == list(CHECKS)
    report.verify()


def test_every_check_says_in_words_what_it_asks() -> None:
    assert all(check.about.endswith(".") for check in CHECKS.values())


BAD = [
    ("names", {"head": "toy_head:SpotHed"}, "toy_head has no 'SpotHed'; correct the card. Did you mean 'SpotHead'?"),
    ("names", {"metric": "toy_head:SpotHead"}, "expected a subclass of tpo_core.head.Metric"),
    ("names", {"examples": ()}, "the card has no examples"),
    (
        "names",
        {"examples": ({"size": [4, 3], "point": []},)},
        "validating example 0 with Codec.schema raised ValidationError: points: Field required",
    ),
    ("names", {"summary": "two\nlines"}, "write one line"),
    ("names", {"fidelity": 0.0}, "fidelity is 0.0"),
    ("config", {"config": "bad_heads:ConfigLax"}, "accepts the unknown option"),
    ("config", {"config": "bad_heads:ConfigDemanding"}, "ConfigDemanding() raised ValidationError: width: Field required"),
    ("codec_pure", {"codec": "bad_heads:CodecCounts"}, "gives other tensors the second time for example 3"),
    ("codec_pure", {"codec": "bad_heads:CodecDrawsFreely"}, "draw only from ClipView.rng()"),
    ("codec_pure", {"codec": "bad_heads:CodecMutates"}, "changed example"),
    ("codec_pure", {"codec": "bad_heads:CodecGivesArrays"}, "'colour' is ndarray, expected a tensor on the CPU"),
    ("codec_pure", {"codec": "bad_heads:CodecGivesOne"}, "returned a tuple, expected a list"),
    ("codec_pure", {"examples": ({"size": [64, 48], "points": []},)}, "gave no query for any example"),
    ("codec_pure", {"codec": "bad_heads:CodecForgetsAbsence"}, "is_absent says False of example 2, but Codec.encode gives 0 queries"),
    ("codec_pickle", {"codec": "bad_heads:CodecHoldsLambda"}, "cannot be pickled"),
    ("codec_pickle", {"codec": "bad_heads:CodecForgets"}, "the pickled copy of the codec gives other tensors for example 0"),
    ("metric", {"metric": "bad_heads:MetricOtherChance"}, "expected the names of compute(): ['hit']"),
    ("metric", {"metric": "bad_heads:MetricOtherPrimary"}, "primary value is 'hit'"),
    ("metric", {"metric": "bad_heads:MetricDividesByNothing"}, "before any target gave {'hit': 0.0}, expected {}"),
    ("metric", {"metric": "bad_heads:MetricNan"}, "expected finite numbers"),
    ("batch", {"head": "bad_heads:BatchSqueezes"}, "with N = 1, in training: 'spot' has shape (2,), expected (1, ...)"),
    ("batch", {"head": "bad_heads:BatchRaises"}, "Head.forward with N = 1, in evaluation raised TypeError"),
    ("losses", {"head": "bad_heads:LossIsMean"}, "has shape () for N = 1, expected (1,)"),
    ("losses", {"head": "bad_heads:LossIsNan"}, "expected finite floats"),
    ("counts", {"codec": "bad_heads:CountsOtherTerm"}, "Codec.counts names ['points'], Codec.terms ['l1']"),
    ("counts", {"head": "bad_heads:LossOtherTerm"}, "Head.loss returns the terms ['distance']"),
    ("counts", {"codec": "bad_heads:CountsNegative"}, "expected finite numbers, 0 or more"),
    ("counts", {"head": "bad_heads:WeightsOtherTerm"}, "Head.term_weights names ['l2']"),
    ("fidelity", {"codec": "bad_heads:DecodeSwapsAxes"}, "Look for swapped axes"),
    ("fidelity", {"head": "bad_heads:IdealRounds"}, "worst is example"),
    ("fidelity", {"examples": ({"size": [64, 64], "points": [[1, 1]]},)}, "every example is on a square medium"),
    ("predict", {"codec": "bad_heads:PredictGivesNumpy"}, "not JSON-ready"),
    ("predict", {"codec": "bad_heads:PredictChanges"}, "Codec.decode changed the output"),
    ("predict", {"codec": "bad_heads:PredictTwoChunks"}, "does not say how to merge"),
    ("draw", {"draw": "bad_heads:draw_needs_answer"}, "draw with no answer, example 0 raised IndexError"),
    ("draw", {"draw": "bad_heads:draw_takes_two"}, "draw must take (canvas, answers, target)"),
    ("gradient", {"head": "bad_heads:GradientCut"}, "no gradient reaches the task embedding"),
    ("gradient", {"head": "bad_heads:GradientOfOneSlot"}, "no gradient reaches slot [1] of 2"),
    ("gradient", {"head": "bad_heads:GradientNan"}, "not finite"),
    ("mixing", {"head": "bad_heads:MixingCentres"}, "in evaluation, outputs of two queries change with a third: 'spot'"),
    ("mixing", {"head": "bad_heads:MixingDivides"}, "losses of two queries change with a third: 'l1'"),
    ("mixing", {"head": "bad_heads:MixingOnlyInTraining"}, "in training, losses of two queries change with a third"),
    ("mixing", {"head": "bad_heads:MixingDividesByRows"}, "changes with the size of the batch"),
    ("mixing", {"head": "bad_heads:MixingReadsPadding"}, "use the `_valid` masks"),
    ("targets", {"head": "bad_heads:TargetsLeak"}, "with its targets, the decoded answer differs from that without"),
    ("eval", {"head": "bad_heads:EvalDrops"}, "obey self.training"),
    ("bf16", {"head": "bad_heads:Bf16MixesTypes"}, "under bfloat16 autocast raised RuntimeError"),
    ("bf16", {"head": "bad_heads:Bf16Saturates"}, "under bfloat16 autocast the loss is"),
    ("bf16", {"codec": "bad_heads:DecodeByNumpy", "head": "bad_heads:Bf16Leaves"}, "(call .float() before .numpy()) raised TypeError"),
    ("state", {"head": "bad_heads:StateOutside"}, "register_buffer"),
    ("state", {"head": "bad_heads:StateShared"}, "cannot be written as safetensors"),
    ("wrapper", {"head": "bad_heads:WrapperLazy"}, "no lazy modules"),
    ("wrapper", {"head": "bad_heads:WrapperNotFinite"}, "a parameter is not finite at the start"),
    ("prompt", {"head": "bad_heads:PromptNone"}, "the card has prompt_examples, but Head.prompt is None"),
    ("prompt", {"prompt_examples": ()}, "the card has no prompt_examples"),
    ("prompt", {"prompt_examples": ({"size": [4, 3], "point": [1, 1]},)}, "prompt example 0 has kind None"),
    ("prompt", {"head": "bad_heads:PromptNarrow"}, "Head.prompt gave (3, 47) for 3 prompts"),
    ("prompt", {"head": "bad_heads:PromptMixes"}, "a prompt's embedding changes with the other prompts"),
    ("prompt", {"head": "bad_heads:PromptFrozen"}, "no gradient reaches Head.prompt"),
    ("prompt", {"codec": "bad_heads:PromptTakesAll"}, "takes the kind 'no_such_kind'"),
    ("prompt", {"codec": "bad_heads:PromptDraws"}, "other tensors the second time for prompt example 0"),
    ("prompt", {"codec": "bad_heads:PromptRaises"}, "Codec.encode_prompt on prompt example 0 raised ValueError: no prompts today"),
    ("rng", {"codec": "bad_heads:RngNumpy"}, "Codec.encode drew from (or seeded) the global generator of numpy"),
    ("rng", {"codec": "bad_heads:RngSeeds"}, "Codec.inputs drew from (or seeded) the global generator of torch"),
    ("rng", {"head": "bad_heads:RngHead"}, "Head.forward or Head.loss drew from (or seeded) the global generator of numpy"),
]


@pytest.mark.parametrize(("caught_by", "change", "message"), BAD, ids=[f"{name}-{next(iter(c.values()))}" for name, c, _ in BAD])
def test_a_bad_head_is_caught_by_exactly_its_check(caught_by: str, change: dict[str, Any], message: str) -> None:
    report = check(replace(SPEC, **change))
    assert list(report.failures) == [caught_by], str(report)
    assert message in report.failures[caught_by]
    assert not report.ok
    with pytest.raises(CheckFailed):
        report.verify()


def test_a_heavy_card_is_caught_by_its_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "jax.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    report = check(module="heavy_card")
    assert list(report.failures) == ["light_card"], str(report)
    assert "importing heavy_card imports jax (" in report.failures["light_card"]


def test_a_broken_card_is_caught_too() -> None:
    report = check(module="no_such_card")
    assert "importing no_such_card raised ModuleNotFoundError" in report.failures["light_card"]


def test_what_raises_is_named_with_its_place_in_the_authors_code() -> None:
    message = check(replace(SPEC, head="bad_heads:BatchRaises")).failures["batch"]
    assert "TypeError: 'NoneType' object is not subscriptable (at bad_heads.py:" in message


def test_a_head_that_raises_where_nothing_was_expected_is_still_a_failed_check() -> None:
    report = check(replace(SPEC, head="bad_heads:WeightsRaise"))
    assert set(report.failures) >= {"counts", "gradient"}
    assert "the check 'counts' raised RuntimeError: no weights (at bad_heads.py:" in report.failures["counts"]


def test_every_check_has_a_bad_head() -> None:
    assert {name for name, _, _ in BAD} | {"light_card"} == set(CHECKS)


def test_a_card_that_nobody_announces_is_not_checked_for_weight() -> None:
    results = {result.check: result for result in check().results}
    assert results["light_card"].outcome == "not run"
    assert "pass module=" in results["light_card"].message


def test_named_mixing_is_allowed() -> None:
    assert check(replace(SPEC, head="bad_heads:MixingAllowed")).ok


def test_expected_failures_are_strict() -> None:
    bad = replace(SPEC, head="bad_heads:EvalDrops")
    report = check(bad, expected_failures={"eval": "it samples"})
    assert report.ok
    assert next(result for result in report.results if result.check == "eval").outcome == "expected"
    report = check(expected_failures={"eval": "it samples"})
    assert list(report.failures) == ["eval"]
    assert "it passes, though expected_failures names it (it samples)" in report.failures["eval"]
    with pytest.raises(ValueError, match=r"names 'evel', which is no check. Did you mean 'eval'\?"):
        check(expected_failures={"evel": "typo"})


@pytest.mark.parametrize("one", head_checks(SPEC, module="toy_card"), ids=str)
def test_the_parametriser_on_the_good_head(one: Any) -> None:
    one()


def test_the_parametriser_raises_what_the_report_says() -> None:
    checks = {str(one): one for one in head_checks(replace(SPEC, head="bad_heads:LossIsMean"), module="toy_card")}
    assert list(checks) == list(CHECKS)
    checks["batch"]()
    with pytest.raises(CheckFailed, match=r"spot: losses: failed: loss term 'l1' has shape \(\)"):
        checks["losses"]()
    with pytest.raises(CheckFailed, match="spot: gradient: not run: 'losses' did not pass"):
        checks["gradient"]()


def test_a_check_that_does_not_apply_is_no_failure() -> None:
    bare = replace(SPEC, head="bad_heads:PromptNone", prompt_examples=(), draw=None)
    checks = {str(one): one for one in head_checks(bare, module="toy_card")}
    for name in ("prompt", "draw"):
        checks[name]()
        assert checks[name].session.result(name).outcome == "not run"


def test_what_builds_on_an_announced_failure_is_not_run_and_no_failure() -> None:
    bad = replace(SPEC, head="bad_heads:LossIsMean")
    checks = {str(one): one for one in head_checks(bad, module="toy_card", expected_failures={"losses": "one number"})}
    checks["losses"]()
    checks["gradient"]()
    assert checks["gradient"].session.result("gradient").outcome == "not run"


def test_the_kit_leaves_threads_and_generators_alone() -> None:
    torch.manual_seed(9)
    before = torch.get_rng_state(), np.random.get_state()[1].tobytes(), random.getstate(), torch.get_num_threads()
    check(replace(SPEC, codec="bad_heads:RngSeeds"))
    after = torch.get_rng_state(), np.random.get_state()[1].tobytes(), random.getstate(), torch.get_num_threads()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


def test_another_config_can_be_checked() -> None:
    from toy_head import SpotConfig

    assert check(config=SpotConfig(slots=3)).ok


def test_media_can_be_given() -> None:
    from tpo_core.testing import ArrayMedia

    seen = []

    def media_of(target: Any) -> ArrayMedia:
        seen.append(target.id)
        width, height = target["size"]
        return ArrayMedia(np.zeros((2, height, width, 3), dtype=np.uint8))

    assert check(media_of=media_of).ok
    assert seen == ["t0", "t1", "t2", "t3", "p0", "p1"]
