"""Positions -> batches. A sample is a function of (seed, position, attempt), so any number of workers gives the same stream.

The main process hears of every bad row, and the row is replaced by the next attempt at the same position.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar, cast

import torch
from torch.utils.data import DataLoader, Dataset

from tpo_core.errors import DataError, TPOError, TrainError
from tpo_core.types import Batch

D = TypeVar("D")
D_co = TypeVar("D_co", covariant=True)
P = TypeVar("P")


class Draws(Protocol[D_co]):
    """An endless, pure mixture."""

    def draw(self, position: int, attempt: int = 0) -> D_co:
        """Return the same row for the same arguments, in any process.

        Raises:
            DataError: the row is bad.
        """
        ...


@dataclass(frozen=True)
class BadRow(Generic[D]):
    """A row that was set aside.

    Args:
        position, attempt: where it was drawn.
        message: what is wrong, with file and line.
        draw: the drawn row; None where drawing it failed.
    """

    position: int
    attempt: int
    message: str
    draw: D | None = None


@dataclass
class StepBatches:
    """One process's share of an optimiser step.

    Args:
        micro: its micro-batches; every process has as many.
        bad: how many rows were set aside while they were made.
        failure: why this process cannot go on. It is told to the others before any of them waits in a collective call.
    """

    micro: list[Batch]
    bad: int = 0
    failure: Exception | None = None


class StepSource(Protocol):
    """Where a trainer gets its batches."""

    def steps(self, first: int, last: int) -> Iterator[StepBatches]:
        """Yield the batches of optimiser steps ``first`` to ``last - 1``."""
        ...


@dataclass(frozen=True)
class _Made(Generic[D]):
    batch: Batch | None
    bad: list[BadRow[D]] = field(default_factory=list)


class _MicroBatches(Dataset[_Made[D]], Generic[D, P]):
    """Item k of a process: its k-th micro-batch. No state, so workers may make them in any order."""

    def __init__(
        self,
        draws: Draws[D],
        prepare: Callable[[D], P],
        collate: Callable[[list[P]], Batch],
        *,
        batch_size: int,
        size: int,
        rank: int,
        world: int,
        attempts: int,
    ) -> None:
        self.draws = draws
        self.prepare = prepare
        self.collate = collate
        self.batch_size = batch_size
        self.size = size
        self.rank = rank
        self.world = world
        self.attempts = attempts

    def positions(self, index: int) -> range:
        """Return the mixture positions of this process's micro-batch; processes take turns, so all see every source alike."""
        step, micro = divmod(index, self.batch_size // (self.world * self.size))
        start = step * self.batch_size + (micro * self.world + self.rank) * self.size
        return range(start, start + self.size)

    def __getitem__(self, index: int) -> _Made[D]:
        bad: list[BadRow[D]] = []
        samples: list[P] = []
        for position in self.positions(index):
            sample = self._sample(position, bad)
            if sample is None:
                return _Made(None, bad)
            samples.append(sample[0])
        return _Made(self.collate(samples), bad)

    def _sample(self, position: int, bad: list[BadRow[D]]) -> tuple[P] | None:
        for attempt in range(self.attempts):
            row: D | None = None
            try:
                row = self.draws.draw(position, attempt)
                return (self.prepare(row),)
            except DataError as error:
                bad.append(BadRow(position, attempt, str(error), row))
        return None


class Loader(Generic[D, P]):
    """Makes the batches of optimiser steps, in worker processes if wanted. Implements `StepSource`.

    Args:
        draws: the mixture.
        prepare: row -> sample; may raise `DataError`.
        collate: samples -> batch.
        batch_size: samples of an optimiser step over all processes.
        size: samples of a micro-batch; ``batch_size`` is a multiple of ``world * size``.
        rank, world: of this process.
        workers: processes that prepare; with 0 this one does. What they get must be picklable where processes are spawned.
        report: called in this process for every bad row; what it raises (too many bad rows) ends the run on all processes.
        attempts: rows tried at one position before giving up.
    """

    def __init__(
        self,
        draws: Draws[D],
        prepare: Callable[[D], P],
        collate: Callable[[list[P]], Batch],
        *,
        batch_size: int,
        size: int,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        report: Callable[[BadRow[D]], None] | None = None,
        attempts: int = 16,
    ) -> None:
        if batch_size % (world * size):
            raise TrainError(f"batch_size {batch_size} is not a multiple of {world} processes x {size} samples")
        self._micro: _MicroBatches[D, P] = _MicroBatches(
            draws, prepare, collate, batch_size=batch_size, size=size, rank=rank, world=world, attempts=attempts
        )
        self._per_step = batch_size // (world * size)
        self._workers = workers
        self._report = report

    def steps(self, first: int, last: int) -> Iterator[StepBatches]:
        """Yield this process's share of optimiser steps ``first`` to ``last - 1``."""
        # A generator of its own: the data loader would draw from the global one, and a resumed run would then differ.
        loader = DataLoader(
            cast("Dataset[_Made[D]]", self._micro),
            batch_size=None,
            sampler=range(first * self._per_step, last * self._per_step),
            num_workers=self._workers,
            generator=torch.Generator().manual_seed(first),
        )
        made = iter(loader)
        for _ in range(first, last):
            yield self._step(made)

    def _step(self, made: Iterator[_Made[D]]) -> StepBatches:
        result = StepBatches([])
        for _ in range(self._per_step):
            item = next(made)
            result.bad += len(item.bad)
            try:
                self._tell(item.bad)
            except TPOError as error:
                result.failure = error
                return result
            if item.batch is None:
                worst = item.bad[-1]
                result.failure = TrainError(
                    f"{len(item.bad)} rows in a row could not be used at position {worst.position}; the last: {worst.message}"
                )
                return result
            result.micro.append(item.batch)
        return result

    def _tell(self, bad: Sequence[BadRow[D]]) -> None:
        if self._report is not None:
            for row in bad:
                self._report(row)
