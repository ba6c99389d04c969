"""The hook specification. All of it is on this screen; a new hook needs two packages that want it.

Hooks announce, classes work: a plugin returns light cards (`tpo_core.contract`) and imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from tpo_core.contract import BackboneSpec, HeadSpec, ReaderSpec

PROJECT = "tpo"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def tpo_heads() -> Iterable[HeadSpec]:  # type: ignore[empty-body]
    """Return the cards of the heads that this package brings."""


@hookspec
def tpo_readers() -> Iterable[ReaderSpec]:  # type: ignore[empty-body]
    """Return the cards of the annotation formats that this package can read."""


@hookspec
def tpo_backbones() -> Iterable[BackboneSpec]:  # type: ignore[empty-body]
    """Return the cards of the model families whose vision layout this package knows."""


@hookspec
def tpo_step_end(step: int, metrics: Mapping[str, float]) -> None:
    """Watch an optimiser step (rank 0 only): its number and its metrics. May not steer; what it raises is logged."""
