"""What the conformance kit found, as values and as text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Outcome = Literal["passed", "failed", "expected", "unexpected", "not run"]


class CheckFailed(AssertionError):
    """A head does not keep its contract. The message says what was found, what was expected and what to fix."""


@dataclass(frozen=True)
class Result:
    """One check of one head.

    Args:
        check: its name. about: what it asks for, in a few words.
        outcome: ``passed``; ``failed``; ``expected`` (it failed, as announced); ``unexpected`` (it passed, though announced as
            failing); ``not run`` (a check that it builds on failed, or it does not apply).
        message: why, where it did not pass.
    """

    check: str
    about: str
    outcome: Outcome
    message: str = ""
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        return self.outcome in ("passed", "expected", "not run")


@dataclass(frozen=True)
class Report:
    """The results of all checks of one head."""

    head: str
    results: tuple[Result, ...]

    @property
    def ok(self) -> bool:
        """Whether no check failed unexpectedly and none that should fail passed."""
        return all(result.ok for result in self.results)

    @property
    def failures(self) -> dict[str, str]:
        """Return check -> message of those that spoil `ok`."""
        return {result.check: result.message for result in self.results if not result.ok}

    @property
    def seconds(self) -> float:
        return sum(result.seconds for result in self.results)

    def verify(self) -> None:
        """Raise `CheckFailed` with all messages unless the report is ok."""
        if not self.ok:
            raise CheckFailed(str(self))

    def __str__(self) -> str:
        good = sum(result.outcome == "passed" for result in self.results)
        lines = [f"head {self.head!r}: {good} of {len(self.results)} checks passed in {self.seconds:.1f} s"]
        lines += [f"  {result.check}: {result.outcome}: {result.message}" for result in self.results if result.outcome != "passed"]
        return "\n".join(lines)
