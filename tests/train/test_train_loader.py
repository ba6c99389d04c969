"""Positions -> batches: every position once, any number of workers, bad rows replaced and reported."""

from __future__ import annotations

import pytest
import torch
from toys_train import Endless, loader, stage

from tpo_core.errors import DataError, TrainError
from tpo_core.train import BadRow, Loader, StepBatches


def ids(steps: list[StepBatches]) -> list[list[list[str]]]:
    return [[batch.sample_ids for batch in step.micro] for step in steps]


def flat(steps: list[StepBatches]) -> list[int]:
    return [int(sample[1:]) for step in ids(steps) for micro in step for sample in micro]


def test_positions_are_dealt_out_once_and_by_step() -> None:
    config = stage(micro_batch=5)
    ranks = [list(loader(config, rank=rank, world=2).steps(0, 3)) for rank in range(2)]
    assert ids(ranks[1])[0] == [["s5", "s6", "s7", "s8", "s9"], ["s15", "s16", "s17", "s18", "s19"]]
    for step in range(3):
        assert sorted(flat([ranks[0][step]]) + flat([ranks[1][step]])) == list(range(20 * step, 20 * step + 20))


def test_a_stage_goes_on_at_any_step() -> None:
    config = stage(micro_batch=10)
    whole = ids(list(loader(config).steps(0, 5)))
    assert ids(list(loader(config).steps(3, 5))) == whole[3:]


def test_workers_change_nothing_and_leave_the_global_generator_alone() -> None:
    config = stage(micro_batch=5)
    source = Endless(bad=[3, 11, 1003])
    torch.manual_seed(0)
    before = torch.get_rng_state()
    alone = list(loader(config, source=source).steps(0, 3))
    helped = list(loader(config, source=source, workers=2).steps(0, 3))
    assert ids(alone) == ids(helped)
    assert torch.equal(torch.get_rng_state(), before)
    for left, right in zip(alone, helped, strict=True):
        assert left.bad == right.bad
        assert all(torch.equal(a.extra["x"], b.extra["x"]) for a, b in zip(left.micro, right.micro, strict=True))


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_rows_are_replaced_and_reported_in_the_main_process(workers: int) -> None:
    seen: list[BadRow[int]] = []
    source = Endless(bad=[3, 1003])
    step = next(loader(stage(), source=source, workers=workers, report=seen.append).steps(0, 1))
    assert step.failure is None
    assert flat([step])[3] == 2003
    assert step.bad == 2
    assert seen == [BadRow(3, 0, "rows.jsonl:4: broken", 3), BadRow(3, 1, "rows.jsonl:1004: broken", 1003)]


def test_too_many_bad_rows_is_a_failure_of_the_step() -> None:
    def report(row: BadRow[int]) -> None:
        raise DataError("cap of 0 bad rows reached")

    step = next(loader(stage(), source=Endless(bad=[3]), report=report).steps(0, 1))
    assert isinstance(step.failure, DataError)


def test_a_position_without_any_good_row_gives_up() -> None:
    step = next(loader(stage(), source=Endless(bad=[7, 1007, 2007]), attempts=3).steps(0, 1))
    assert isinstance(step.failure, TrainError)
    assert "3 rows in a row could not be used at position 7; the last: rows.jsonl:2008: broken" in str(step.failure)


def test_a_mixture_that_cannot_draw_counts_as_a_bad_row() -> None:
    class Broken(Endless):
        def draw(self, position: int, attempt: int = 0) -> int:
            if (position, attempt) == (2, 0):
                raise DataError("rows.jsonl:9: not JSON")
            return super().draw(position, attempt)

    seen: list[BadRow[int]] = []
    step = next(loader(stage(), source=Broken(), report=seen.append).steps(0, 1))
    assert flat([step])[2] == 1002
    assert seen == [BadRow(2, 0, "rows.jsonl:9: not JSON", None)]


def test_other_errors_are_not_hidden() -> None:
    source = Endless()

    def prepare(row: int) -> int:
        raise ZeroDivisionError("a bug")

    broken: Loader[int, int] = Loader(source, prepare, lambda rows: rows, batch_size=2, size=2)  # type: ignore[arg-type, return-value]
    with pytest.raises(ZeroDivisionError):
        next(broken.steps(0, 1))


def test_uneven_sizes_are_refused() -> None:
    with pytest.raises(TrainError, match="batch_size 20 is not a multiple of 3 processes x 5 samples"):
        loader_of(world=3)


def loader_of(*, world: int) -> Loader[int, int]:
    source = Endless()
    return Loader(source, source.prepare, lambda rows: rows, batch_size=20, size=5, world=world)  # type: ignore[arg-type, return-value]
