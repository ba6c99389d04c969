"""Heads of other packages in the default recipe: each brings a reader under its own name, which makes its records of the scenes' truth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tpo_core import load_plugins
from tpo_core.errors import ConfigError

MOST_TESTED = 300
"""Test records of a guest, at most: a reader may make several of a scene."""


def check_guests(names: Sequence[str], own: Sequence[str]) -> None:
    """Check that every head which the playground has no records for brings a reader of its own name.

    Raises:
        ConfigError: one does not.
    """
    readers = load_plugins().readers() if names else {}
    for name in names:
        if name not in readers:
            raise ConfigError(
                f"the playground has records for {', '.join(own)}, not for {name!r}; give a recipe of your own with --config, or let the "
                f"head's package announce a reader {name!r} that makes records of the playground's scenes (docs/playground.md)"
            )


def guest_sources(names: Sequence[str], data: Path, split: str) -> list[dict[str, Any]]:
    """Return a recipe's sources for these heads: the scenes' truth of a split, read by each head's own reader."""
    most = {"max_samples": MOST_TESTED} if split == "test" else {"weight": 1.0}
    return [{"name": name, "reader": name, "path": str(data / f"scenes-{split}.jsonl"), **most} for name in names]
