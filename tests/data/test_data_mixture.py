"""The mixture: exact shares, whole epochs, and one integer to resume from."""

from __future__ import annotations

import pickle
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tpo_core.data import Draw, Mixture, Source
from tpo_core.data.mixture import _floor_sum, permuted
from tpo_core.errors import TrainError

THREE = [Source("a", 100, 0.5), Source("b", 7, 0.3), Source("c", 50, 0.2)]


def draws(mixture: Mixture, count: int, start: int = 0) -> list[Draw]:
    return [mixture.draw(position) for position in range(start, start + count)]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 40), st.floats(0, 10)), min_size=1, max_size=5), st.integers(0, 2**40))
def test_shares_hold_at_every_length_and_epochs_are_whole(spec: list[tuple[int, float]], seed: int) -> None:
    sources = [Source(f"s{i}", size, weight) for i, (size, weight) in enumerate(spec)]
    total = sum(weight for _, weight in spec)
    if total < 1e-9:
        sources[0], total = Source("s0", spec[0][0], 1.0), 1.0
    mixture = Mixture(sources, seed)
    drawn = draws(mixture, 640)
    for index, source in enumerate(sources):
        mine = [draw for draw in drawn if draw.source == index]
        expected = (source.weight or 0) / total * np.arange(1, 11) * 64
        counts = [sum(draw.source == index for draw in drawn[: 64 * n]) for n in range(1, 11)]
        # The golden sequence's discrepancy: a handful of samples at any length, here at every block's end.
        assert np.abs(np.array(counts) - expected).max() < 4
        for first in range(0, len(mine), source.size):
            epoch = mine[first : first + source.size]
            assert {draw.epoch for draw in epoch} == {first // source.size}
            assert len({draw.row for draw in epoch}) == len(epoch)
            assert all(0 <= draw.row < source.size for draw in epoch)


def test_shares_are_exact_in_the_long_run() -> None:
    shares = Mixture(THREE, 1).table(10_000_000)
    for share, expected in zip(shares, (0.5, 0.3, 0.2), strict=True):
        assert abs(share.samples - expected * 10_000_000) < 4
    assert sum(share.samples for share in shares) == 10_000_000


def test_every_position_is_a_pure_function_of_seed_and_position() -> None:
    mixture = Mixture(THREE, 3)
    whole = draws(mixture, 1000)
    assert draws(pickle.loads(pickle.dumps(mixture)), 400, start=600) == whole[600:]
    assert [Mixture(THREE, 3).draw(position) for position in (999, 0, 517)] == [whole[999], whole[0], whole[517]]
    assert draws(Mixture(THREE, 4), 1000) != whole
    far = mixture.draw(10**15)
    assert far.epoch == pytest.approx(10**15 * (0.5, 0.3, 0.2)[far.source] / (100, 7, 50)[far.source], rel=1e-9)


def test_each_epoch_is_another_shuffle_and_each_sample_has_its_seed() -> None:
    drawn = draws(Mixture([Source("a", 50)], 0), 200)
    orders = [tuple(draw.row for draw in drawn[e * 50 : e * 50 + 50]) for e in range(4)]
    assert len(set(orders)) == 4
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({draw.seed for draw in drawn}) == 200
    assert all(isinstance(part, int) and part >= 0 for draw in drawn for part in draw.seed)
    rows = np.array(orders[0])
    assert abs(np.corrcoef(rows, np.arange(50))[0, 1]) < 0.5


def test_the_order_of_sources_is_mixed_within_batches() -> None:
    drawn = draws(Mixture([Source("a", 1000, 1.0), Source("b", 1000, 1.0)], 0), 6400)
    sources = np.array([draw.source for draw in drawn])
    for stride in (1, 2, 3, 5, 8, 13, 21):
        # One rank of `stride` ranks: runs of one source stay as short as those of a fair coin.
        mine = sources[::stride]
        changes = sum(a != b for a, b in pairwise(mine.tolist())) / (len(mine) - 1)
        assert 0.35 < changes < 0.65
        assert abs(mine.mean() - 0.5) < 0.06


def test_other_attempts_try_all_rows_of_the_same_source() -> None:
    mixture = Mixture(THREE, 5)
    for position in (0, 7, 300):
        first = mixture.draw(position)
        size = THREE[first.source].size
        tries = [mixture.draw(position, attempt) for attempt in range(size)]
        assert tries[0] == first
        assert {draw.source for draw in tries} == {first.source}
        assert sorted(draw.row for draw in tries) == list(range(size))
        assert {draw.epoch for draw in tries} == {first.epoch}


def test_a_source_keeps_its_order_when_others_join() -> None:
    alone = [draw.row for draw in draws(Mixture([Source("a", 30)], 9), 60)]
    joined = [draw.row for draw in draws(Mixture([Source("z", 5), Source("a", 30)], 9), 200) if draw.source == 1]
    assert joined[:60] == alone


def test_the_table_counts_what_is_drawn() -> None:
    mixture = Mixture([*THREE, Source("off", 0, 0.0)], 2)
    counts = Counter(draw.source for draw in draws(mixture, 777))
    table = mixture.table(777)
    assert [(share.source, share.samples) for share in table] == [("a", counts[0]), ("b", counts[1]), ("c", counts[2]), ("off", 0)]
    assert table[1].epochs == counts[1] / 7
    assert table[0].share == counts[0] / 777
    assert [share.samples for share in mixture.table(0)] == [0, 0, 0, 0]


def test_sources_that_are_off_are_never_drawn_wherever_they_stand() -> None:
    for at in range(3):
        sources = [Source("a", 3, 1.0), Source("b", 3, 2.0)]
        sources.insert(at, Source("off", 9, 0.0))
        assert at not in {draw.source for draw in draws(Mixture(sources, 0), 300)}


def test_without_weights_the_share_goes_by_size_or_flatter() -> None:
    sources = [Source("a", 900), Source("b", 100)]
    assert Mixture(sources, 0).table(1000)[0].samples == pytest.approx(900, abs=3)
    assert Mixture(sources, 0, temperature=1.0).table(1000)[0].samples == pytest.approx(900, abs=3)
    assert Mixture(sources, 0, temperature=2.0).table(1000)[0].samples == pytest.approx(750, abs=3)  # 30 to 10


@pytest.mark.parametrize(
    ("sources", "temperature", "words"),
    [
        ([], None, "the mixture is empty"),
        ([Source("a", 5, 0.0)], None, "the mixture is empty"),
        ([Source("a", 0)], None, "source a of the mixture has no rows"),
        ([Source("a", 0, 1.0), Source("b", 2, 1.0)], None, "source a of the mixture has no rows"),
        ([Source("a", 1), Source("a", 2)], None, "two sources of the mixture have the same name"),
        ([Source("a", 1), Source("b", 2, 1.0)], None, "have a weight, but not a; give all of them one, or none"),
        ([Source("a", 1, -1.0)], None, "the weight of a is not a number of at least 0"),
        ([Source("a", 1, float("nan"))], None, "the weight of a is not a number of at least 0"),
        ([Source("a", 1)], 0.0, "temperature is 0.0"),
        ([Source("a", 1, 1.0)], 2.0, "temperature is 2.0"),
    ],
)
def test_mixtures_that_mean_nothing(sources: list[Source], temperature: float | None, words: str) -> None:
    with pytest.raises(TrainError, match=words):
        Mixture(sources, 0, temperature=temperature)


def test_negative_positions_are_refused() -> None:
    for position, attempt in ((-1, 0), (0, -1)):
        with pytest.raises(ValueError, match="neither may be negative"):
            Mixture(THREE, 0).draw(position, attempt)


@pytest.mark.parametrize("size", [*range(1, 20), 63, 64, 65, 255, 256, 257, 1000])
def test_a_permutation_is_one(size: int) -> None:
    for key in (0, 1, 2**64 - 1):
        assert sorted(permuted(index, size, key=key) for index in range(size)) == list(range(size))


def test_small_permutations_are_nearly_uniform() -> None:
    counts = Counter(tuple(permuted(index, 3, key=key * 0x9E3779B97F4A7C15 % 2**64) for index in range(3)) for key in range(3000))
    assert len(counts) == 6
    assert max(abs(count - 500) for count in counts.values()) < 120


@given(st.integers(0, 300), st.integers(0, 2**64 - 1), st.integers(-(2**64), 2**64))
def test_floor_sums_equal_the_plain_sum(count: int, step: int, first: int) -> None:
    assert _floor_sum(count, step, first) == sum((step * i + first) // 2**64 for i in range(count))
