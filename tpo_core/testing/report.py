"""What the conformance kit found, as values and as text."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePath
from typing import Literal

from pydantic import ValidationError

from tpo_core.plugins.load import one_line

_LIBRARIES = {"torch", "numpy", "pydantic", "pydantic_core", "scipy", "safetensors"}
"""Folders whose frames are not the author's."""

Outcome = Literal["passed", "failed", "expected", "unexpected", "not run"]


class CheckFailed(AssertionError):
    """A head does not keep its contract. The message says what was found, what was expected and what to fix."""


class DoesNotApply(Exception):
    """The check has nothing to look at; the message says why."""


@contextmanager
def doing(what: str) -> Iterator[None]:
    """Turn any exception of plugin code into a failed check that says what was being done, and where it broke."""
    try:
        yield
    except (CheckFailed, DoesNotApply):
        raise
    except Exception as error:
        raise CheckFailed(f"{what} raised {describe(error)}; it must not raise here") from error


def describe(error: Exception) -> str:
    """Return an exception in one line, with the place in the author's code; of a pydantic error, the first field and what is wrong."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not _LIBRARIES & set(PurePath(frame.filename).parts)]
    where = f" (at {PurePath(own[-1].filename).name}:{own[-1].lineno})" if own else ""
    if not isinstance(error, ValidationError):
        return f"{one_line(error)}{where}"
    first = error.errors()[0]
    return f"ValidationError: {'.'.join(str(part) for part in first['loc'])}: {first['msg']}{where}"


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
