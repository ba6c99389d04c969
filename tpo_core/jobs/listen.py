"""What a job tells whoever watches: the command line draws it, a script may ignore it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tpo_core.data.mixture import Share
from tpo_core.train import Observer


class JobListener(Observer):
    """Watches a job; every method does nothing until it is overridden. Called in the main process only."""

    def say(self, text: str) -> None:
        """Tell a sentence."""

    def mixture(self, stage: str, shares: Sequence[Share]) -> None:
        """Show what a stage will draw: source, samples, share, epochs."""

    def frozen(self, stage: str, names: Sequence[str]) -> None:
        """Tell which parameters no path of the stage reaches."""

    def evaluation_begins(self, records: int) -> None:
        """Before the test records are asked."""

    def evaluated(self, records: int) -> None:
        """After so many more test records."""

    def evaluation_ends(self, figures: Mapping[str, object]) -> None:
        """With the figures of the report."""
