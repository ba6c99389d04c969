"""The conformance kit: `check_head` on its own, `head_checks` for pytest.

from tpo_core.testing import head_checks

@pytest.mark.parametrize("check", head_checks(SPEC), ids=str)
def test_contract(check):
    check()
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from tpo_core.contract import HeadConfig, HeadSpec
from tpo_core.errors import did_you_mean
from tpo_core.testing import checks_card, checks_data, checks_model, checks_prompt
from tpo_core.testing.case import Case, MediaOf
from tpo_core.testing.report import CheckFailed, DoesNotApply, Outcome, Report, Result, doing


@dataclass(frozen=True)
class Check:
    """One demand of the contract: how it is tested, and which checks it builds on."""

    run: Callable[[Case], None]
    needs: tuple[str, ...] = ()

    @property
    def about(self) -> str:
        return (self.run.__doc__ or "").strip().splitlines()[0]


CHECKS: dict[str, Check] = {
    "names": Check(checks_card.check_names),
    "light_card": Check(checks_card.check_light_card),
    "config": Check(checks_card.check_config, ("names",)),
    "codec_pure": Check(checks_data.check_codec_pure, ("config",)),
    "codec_pickle": Check(checks_data.check_codec_pickle, ("codec_pure",)),
    "metric": Check(checks_card.check_metric, ("names",)),
    "batch": Check(checks_model.check_batch, ("codec_pure",)),
    "losses": Check(checks_model.check_losses, ("batch",)),
    "counts": Check(checks_data.check_counts, ("batch",)),
    "fidelity": Check(checks_data.check_fidelity, ("batch", "metric")),
    "predict": Check(checks_model.check_predict, ("batch",)),
    "draw": Check(checks_card.check_draw, ("predict",)),
    "gradient": Check(checks_model.check_gradient, ("losses",)),
    "eval": Check(checks_model.check_eval, ("batch",)),
    "mixing": Check(checks_model.check_mixing, ("losses", "eval")),
    "targets": Check(checks_model.check_targets, ("predict", "eval")),
    "bf16": Check(checks_model.check_bf16, ("losses",)),
    "state": Check(checks_model.check_state, ("eval",)),
    "prompt": Check(checks_prompt.check_prompt, ("batch",)),
    "wrapper": Check(checks_model.check_wrapper, ("batch",)),
    "rng": Check(checks_data.check_rng, ("batch", "metric")),
}
"""Every check by name, in the order in which they run. A check is not run where one that it needs has failed."""


class Session:
    """Runs the checks of one head, each once."""

    def __init__(self, case: Case, expected_failures: Mapping[str, str] | None) -> None:
        self.case = case
        self.expected = dict(expected_failures or {})
        self._results: dict[str, Result] = {}
        for name in self.expected:
            if name not in CHECKS:
                raise ValueError(
                    f"expected_failures names {name!r}, which is no check.{did_you_mean(name, CHECKS)} Checks: {', '.join(CHECKS)}"
                )

    def result(self, name: str) -> Result:
        """Run a check (after those it needs) and return what came of it."""
        if name not in self._results:
            start = time.perf_counter()
            outcome, message = self._outcome(name)
            self._results[name] = Result(name, CHECKS[name].about, outcome, message, time.perf_counter() - start)
        return self._results[name]

    def blocked(self, name: str) -> bool:
        """Return whether a check was not run because of a failure, announced ones apart; one that does not apply was not."""
        if self.result(name).outcome != "not run":
            return False
        return any(not self.result(need).ok or self.blocked(need) for need in CHECKS[name].needs)

    def _outcome(self, name: str) -> tuple[Outcome, str]:
        check = CHECKS[name]
        blocked = [need for need in check.needs if self.result(need).outcome != "passed"]
        if blocked:
            return "not run", f"{blocked[0]!r} did not pass"
        try:
            with _quiet_machine(), doing(f"the check {name!r}"):
                check.run(self.case)
        except DoesNotApply as reason:
            return "not run", str(reason)
        except CheckFailed as failure:
            if name in self.expected:
                return "expected", f"{self.expected[name]} ({failure})"
            return "failed", str(failure)
        if name in self.expected:
            return "unexpected", f"it passes, though expected_failures names it ({self.expected[name]}); take it out"
        return "passed", ""


@dataclass(frozen=True)
class HeadCheck:
    """One check of one head, to be called by a test; its text is its name."""

    name: str
    session: Session

    def __call__(self) -> None:
        """Raise `CheckFailed` unless the check passes, fails as expected, or does not apply."""
        result = self.session.result(self.name)
        if not result.ok or self.session.blocked(self.name):
            raise CheckFailed(f"{self.session.case.spec.name}: {self.name}: {result.outcome}: {result.message}")

    def __str__(self) -> str:
        return self.name


def check_head(
    spec: HeadSpec,
    *,
    expected_failures: Mapping[str, str] | None = None,
    config: HeadConfig | None = None,
    media_of: MediaOf | None = None,
    module: str | None = None,
) -> Report:
    """Check a head against its contract, on the CPU, in seconds.

    Args:
        spec: the card.
        expected_failures: check -> reason, for what a head cannot keep by design. Strict: one of them that passes is a failure.
        config: options to check with; default: the config's own defaults.
        media_of: the medium of an example target; default: noise of the target's `size`, `duration` and `frames`.
        module: the module that announces the card (the entry point's value); default: found among the installed packages.

    Raises:
        ValueError: `expected_failures` names no check.
    """
    session = Session(Case(spec, config=config, media_of=media_of, module=module), expected_failures)
    return Report(spec.name, tuple(session.result(name) for name in CHECKS))


def head_checks(
    spec: HeadSpec,
    *,
    expected_failures: Mapping[str, str] | None = None,
    config: HeadConfig | None = None,
    media_of: MediaOf | None = None,
    module: str | None = None,
) -> list[HeadCheck]:
    """Return the checks one by one, for ``@pytest.mark.parametrize("check", head_checks(spec), ids=str)``. Arguments as `check_head`."""
    session = Session(Case(spec, config=config, media_of=media_of, module=module), expected_failures)
    return [HeadCheck(name, session) for name in CHECKS]


@contextmanager
def _quiet_machine() -> Iterator[None]:
    """One torch thread, fixed seeds; threads and global generators are put back afterwards."""
    threads = torch.get_num_threads()
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
