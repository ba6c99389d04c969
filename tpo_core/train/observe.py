"""Observers: they may watch, they may not steer. They run in the main process only."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StagePlan:
    """A stage about to run.

    Args:
        index, name: of the stage.
        steps: optimiser steps of the whole stage; first: the step it goes on from.
        global_step: optimiser steps done before `first`, in all stages.
        rates: group -> learning rate. trained: group -> how many numbers train.
        batch_size: samples of an optimiser step.
    """

    index: int
    name: str
    steps: int
    first: int
    global_step: int
    rates: Mapping[str, float]
    trained: Mapping[str, int]
    batch_size: int


@dataclass(frozen=True)
class StepReport:
    """One optimiser step done.

    Args:
        step: steps done in the stage. global_step: in all stages.
        metrics: ``loss``; each term's share by its key; ``grad_norm``; ``lr/<group>`` and ``muon/<group>``; ``samples``, ``tokens``,
            ``bad_rows``; ``samples_per_s``, ``tokens_per_s``, ``seconds`` (since the step before).
    """

    step: int
    global_step: int
    metrics: Mapping[str, float] = field(default_factory=dict)


class Observer:
    """Base of observers; every method does nothing until it is overridden."""

    def stage_begins(self, plan: StagePlan) -> None:
        """Before the first step."""

    def step_ends(self, report: StepReport) -> None:
        """After every optimiser step."""

    def checkpoint_saved(self, path: Path) -> None:
        """After a checkpoint is complete on the disk."""

    def stage_ends(self, plan: StagePlan) -> None:
        """After the last step and its checkpoint."""


class StepFunction(Protocol):
    """What a plugin's `tpo_step_end` is: called by keyword."""

    def __call__(self, *, step: int, metrics: Mapping[str, float]) -> object: ...


class StepHook(Observer):
    """Passes each step to a function, such as a plugin's `tpo_step_end`."""

    def __init__(self, call: StepFunction, name: str) -> None:
        self._call = call
        self._name = name

    def step_ends(self, report: StepReport) -> None:
        """Call the function with the run's step and a copy of the metrics."""
        self._call(step=report.global_step, metrics=dict(report.metrics))

    def __repr__(self) -> str:
        return self._name


class Observers:
    """Tells all observers; one that raises is logged once and not told again, and the run goes on."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = list(observers)

    def stage_begins(self, plan: StagePlan) -> None:
        """See `Observer`."""
        self._tell(lambda observer: observer.stage_begins(plan))

    def step_ends(self, report: StepReport) -> None:
        """See `Observer`."""
        self._tell(lambda observer: observer.step_ends(report))

    def checkpoint_saved(self, path: Path) -> None:
        """See `Observer`."""
        self._tell(lambda observer: observer.checkpoint_saved(path))

    def stage_ends(self, plan: StagePlan) -> None:
        """See `Observer`."""
        self._tell(lambda observer: observer.stage_ends(plan))

    def _tell(self, call: Callable[[Observer], None]) -> None:
        for observer in list(self._observers):
            try:
                call(observer)
            except Exception:
                logger.exception("observer %r raised and is switched off for the rest of this stage", observer)
                self._observers.remove(observer)
