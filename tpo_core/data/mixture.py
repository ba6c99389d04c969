"""Which row of which source stands at a position of training: a pure function of (seed, position), so resuming needs one integer.

Sources are chosen by a low-discrepancy sequence, so that the shares hold exactly over time and nearly in every batch; within blocks of
positions their order is shuffled. The rows of a source come in epochs, each a new shuffle without repetition.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np

from tpo_core.errors import TrainError

_RING = 1 << 64
_STEP = 0x9E3779B97F4A7C15
"""2^64 divided by the golden ratio, made odd: multiples of it fill the ring most evenly."""
_BLOCK = 64


@dataclass(frozen=True)
class Source:
    """A named set of rows and its share.

    Args:
        name: unique in a mixture; the order of rows depends on it.
        size: number of rows.
        weight: relative share of the samples; None in all sources means by size (see `Mixture`).
    """

    name: str
    size: int
    weight: float | None = None


@dataclass(frozen=True)
class Draw:
    """What stands at a position.

    Args:
        source: index of the source. row: row in it. epoch: how often the source was gone through before.
        seed: for this sample's own random draws, from (run seed, source, row, epoch).
    """

    source: int
    row: int
    epoch: int
    seed: tuple[int, ...]


@dataclass(frozen=True)
class Share:
    """One row of the table that is shown before training: samples, their share of all, and how often the source is gone through."""

    source: str
    size: int
    samples: int
    share: float
    epochs: float


class Mixture:
    """Draws rows from weighted sources. Holds no state: every process and worker may have its own copy.

    Args:
        sources: at least one with rows and a weight above 0.
        seed: the run's seed, at least 0.
        temperature: without weights a source's share goes with ``size ** (1 / temperature)``: 1 (or None) is by size, larger is flatter.

    Raises:
        TrainError: the mixture is empty, an included source has no rows, names clash, or some sources have a weight and some have not.
    """

    def __init__(self, sources: Sequence[Source], seed: int, *, temperature: float | None = None) -> None:
        self.sources = tuple(sources)
        self.seed = seed
        self.weights = _weights(self.sources, temperature)
        total = sum(self.weights)
        borders = [0, *(round(sum(self.weights[: i + 1]) / total * _RING) for i in range(len(self.sources)))]
        self._borders = tuple(borders)
        # A border of 2^64 (sources of weight 0 stand behind it) does not fit into 64 bits; clipped, only the value 2^64 - 1 could meet it.
        self._inner = np.array([min(border, _RING - 1) for border in borders[1:-1]], dtype=np.uint64)
        self._keys = tuple(_number(seed, "source", source.name) for source in self.sources)
        self._first = _number(seed, "first")

    def draw(self, position: int, attempt: int = 0) -> Draw:
        """Return what stands at a position.

        Args:
            position: sample number over all processes, from 0.
            attempt: 0, or how many rows at this position turned out to be bad: each attempt gives another row of the same source, until
                all of them have been tried.

        Raises:
            ValueError: a negative position or attempt.
        """
        if position < 0 or attempt < 0:
            raise ValueError(f"position {position}, attempt {attempt}: neither may be negative")
        block, place = divmod(position, _BLOCK)
        chosen = self._block(block)
        source = int(chosen[place])
        visit = self._visits(source, block * _BLOCK) + int((chosen[:place] == source).sum())
        size = self.sources[source].size
        epoch, turn = divmod(visit, size)
        turn = (turn + attempt * _stride(size)) % size
        row = permuted(turn, size, key=_number(self._keys[source], "epoch", epoch))
        return Draw(source, row, epoch, (self.seed, self._keys[source] & 0xFFFFFFFF, row, epoch))

    def table(self, samples: int) -> list[Share]:
        """Return what the first `samples` positions hold, by source."""
        block, rest = divmod(samples, _BLOCK)
        tail = self._block(block)[:rest]
        rows = []
        for index, source in enumerate(self.sources):
            count = self._visits(index, block * _BLOCK) + int((tail == index).sum())
            epochs = count / source.size if source.size else 0.0
            rows.append(Share(source.name, source.size, count, count / samples if samples else 0.0, epochs))
        return rows

    def _block(self, block: int) -> np.ndarray:
        return _shuffled_block(self._inner.tobytes(), self._first, self.seed, block)

    def _visits(self, source: int, position: int) -> int:
        """Return how many of the first `position` members of the sequence fall to a source, without going through them."""
        low, high = self._borders[source], self._borders[source + 1]
        return _below(high, position, self._first) - _below(low, position, self._first)


def permuted(index: int, size: int, *, key: int) -> int:
    """Return where an index of ``range(size)`` goes in the permutation that a key names; needs no memory.

    A Feistel network over the next power of four, walked until it falls into the range (M. Luby and C. Rackoff 1988; J. Black and
    P. Rogaway 2002).
    """
    half = max((size - 1).bit_length() + 1, 2) // 2
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for turn in range(6):
            left, right = right, left ^ (_mixed(right + (turn << 56) ^ key) & mask)
        index = (left << half) | right
        if index < size:
            return index


def _mixed(value: int) -> int:
    """Return the finaliser of splitmix64: each bit of the output depends on all bits of the input."""
    value = (value + _STEP) % _RING
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) % _RING
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) % _RING
    return value ^ (value >> 31)


def _below(border: int, count: int, first: int) -> int:
    """Return how many i in range(count) have (first + i * step) mod 2^64 < border."""
    return _floor_sum(count, _STEP, first) - _floor_sum(count, _STEP, first - border)


def _floor_sum(count: int, step: int, first: int) -> int:
    """Return the sum of floor((step * i + first) / 2^64) over i in range(count), by Euclid's algorithm in about 90 rounds at most."""
    total, modulus = 0, _RING
    while count:
        total += (count - 1) * count // 2 * (step // modulus) + count * (first // modulus)
        step, first = step % modulus, first % modulus
        top = step * count + first
        count, first = divmod(top, modulus)
        modulus, step = step, modulus
    return total


@lru_cache(maxsize=64)
def _shuffled_block(inner: bytes, first: int, seed: int, block: int) -> np.ndarray:
    places = np.arange(block * _BLOCK, (block + 1) * _BLOCK, dtype=np.uint64)
    values = places * np.uint64(_STEP) + np.uint64(first)
    chosen = np.searchsorted(np.frombuffer(inner, dtype=np.uint64), values, side="right")
    # Not numpy's generator: its streams may change from version to version, and a run is resumed with another one.
    key = _number(seed, "block", block)
    return chosen[[permuted(place, _BLOCK, key=key) for place in range(_BLOCK)]]


def _weights(sources: Sequence[Source], temperature: float | None) -> list[Fraction]:
    names = [source.name for source in sources]
    if len(set(names)) != len(names):
        raise TrainError(f"two sources of the mixture have the same name; there are {', '.join(names)}; name each differently")
    given = [source for source in sources if source.weight is not None]
    if given and len(given) != len(sources):
        without = ", ".join(source.name for source in sources if source.weight is None)
        raise TrainError(f"some sources of the mixture have a weight, but not {without}; give all of them one, or none")
    if temperature is not None and (given or not 0 < temperature < math.inf):
        raise TrainError(f"the mixture's temperature is {temperature}; expected a positive number, and sources without weights")
    if given:
        bad = [source.name for source in given if not 0 <= (source.weight or 0) < math.inf]
        if bad:
            raise TrainError(f"the weight of {', '.join(bad)} is not a number of at least 0; correct it")
        weights = [Fraction(source.weight or 0) for source in given]
    else:
        weights = [Fraction(float(source.size) ** (1 / temperature)) if temperature else Fraction(source.size) for source in sources]
    empty = [source.name for source, weight in zip(sources, weights, strict=True) if source.size < 1 and (weight > 0 or not given)]
    if empty:
        raise TrainError(f"the source {', '.join(empty)} of the mixture has no rows; drop it, or give its file")
    if not sum(weights):
        raise TrainError("the mixture is empty; name at least one source with rows and a weight above 0")
    return weights


@lru_cache(maxsize=1024)
def _stride(size: int) -> int:
    """Return a step near the golden part of a size that has no factor with it, so that its multiples meet every row."""
    stride = max(round(size * 0.618), 1)
    while math.gcd(stride, size) != 1:
        stride += 1
    return stride


@lru_cache(maxsize=4096)
def _number(*parts: int | str) -> int:
    """Return 64 bits that depend on all parts, the same in every process."""
    text = "\0".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")
