"""Checks of the codec: what runs in data workers."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Sequence
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import torch

from tpo_core.stack import stack_rows
from tpo_core.testing.case import Case
from tpo_core.testing.compare import tensors_differ
from tpo_core.testing.report import CheckFailed, doing
from tpo_core.types import Answer, Tensors


def check_codec_pure(case: Case) -> None:
    """The same clip gives the same tensors, whatever was encoded in between, and nothing given is changed."""
    with doing("making the codec and its media"):
        _ = case.codec, case.media
    first = [_encode_all(case, example) for example in range(len(case.examples))]
    for example in reversed(range(len(case.examples))):
        before = copy.deepcopy(case.examples[example].model_dump())
        again = _encode_all(case, example)
        if case.examples[example].model_dump() != before:
            raise CheckFailed(f"Codec.encode or Codec.inputs changed example {example}; copy what you change")
        _compare(first[example], again, example)
        _compare_absence(case, example, len(again[1]))
    if not any(encoded for _, encoded in first):
        raise CheckFailed("Codec.encode gave no query for any example; give the card at least one example that has something to find")


def check_codec_pickle(case: Case) -> None:
    """The codec travels to data workers and encodes the same there."""
    try:
        copied = ForkingPickler.loads(ForkingPickler.dumps(case.codec))
    except Exception as error:
        raise CheckFailed(
            f"the codec cannot be pickled ({type(error).__name__}: {error}), so data workers cannot have it; keep open files, "
            f"lambdas and locks out of its attributes"
        ) from error
    for example in range(len(case.examples)):
        with doing(f"the pickled codec on example {example}"):
            theirs = _encode_all(case, example, codec=copied)
        _compare(_encode_all(case, example), theirs, example, what="the pickled copy of the codec gives other tensors for")


def check_counts(case: Case) -> None:
    """`Codec.terms`, the keys of `Codec.counts` and those of `Head.loss` are the same."""
    terms = tuple(case.codec.terms)
    if not terms or len(set(terms)) != len(terms):
        raise CheckFailed(f"Codec.terms is {terms}; name every loss term once")
    for row in case.rows(training=True):
        with doing("Codec.counts"):
            counts = case.codec.counts(row.encoded)
        if counts.keys() != set(terms):
            raise CheckFailed(f"Codec.counts names {sorted(counts)}, Codec.terms {sorted(terms)}; they must be the same")
        odd = {name: value for name, value in counts.items() if not isinstance(value, float | int) or not 0 <= value < math.inf}
        if odd:
            raise CheckFailed(f"Codec.counts gives {odd}, expected finite numbers, 0 or more (plain floats, no tensors)")
    head, small = case.head(), case.small([0], training=True)
    losses = head.loss(head(small.queries, small.targets), small.targets)
    if losses.keys() != set(terms):
        raise CheckFailed(f"Head.loss returns the terms {sorted(losses)}, Codec.terms names {sorted(terms)}; they must be the same")
    for what, names in (("Head.term_weights", set(head.term_weights)), ("Head.mixing_terms", set(head.mixing_terms))):
        if names - set(terms):
            raise CheckFailed(f"{what} names {sorted(names - set(terms))}, which is not in Codec.terms {sorted(terms)}")


def check_fidelity(case: Case) -> None:
    """What the annotation says survives encode, `Head.ideal` and decode, on media that are not square, by the head's own metric."""
    if all(width == height for width, height in (medium.size for medium in case.media)):
        raise CheckFailed("every example is on a square medium, where a swapped width and height is not seen; give one with another `size`")
    head = case.head().eval()
    total = case.loaded.metric()
    scores: list[float] = []
    for example, target in enumerate(case.examples):
        answers = _ideal_answers(case, head, example)
        alone = case.loaded.metric()
        with doing(f"Metric.update with the answers {answers} for example {example}"):
            alone.update(answers, target)
            total.update(answers, target)
            scores.append(float(alone.compute()[case.spec.primary]))
    score = float(total.compute()[case.spec.primary])
    if not score >= case.spec.fidelity - 1e-9:
        worst = min(range(len(scores)), key=scores.__getitem__)
        raise CheckFailed(
            f"decode(ideal(encode(target))) scores {case.spec.primary} = {score:.4f} over all examples, expected at least "
            f"{case.spec.fidelity:g}; worst is example {worst} with {scores[worst]:.4f}: answers {_ideal_answers(case, head, worst)} for "
            f"{case.examples[worst].fields()}. Look for swapped axes, a wrong scale, or rounding"
        )


def check_rng(case: Case) -> None:
    """Codec, metric and decode leave the global generators alone; the head leaves numpy's and Python's alone."""
    head = case.head().eval()
    steps: list[tuple[str, Any]] = []
    for example, target in enumerate(case.examples):
        clip = case.clip(example, training=True)
        steps += [
            ("Codec.check", lambda t=target, c=clip: case.codec.check(t, c.media)),
            ("Codec.inputs", lambda c=clip: case.codec.inputs(c)),
            ("Codec.encode", lambda t=target, c=clip: case.codec.encode(t, c)),
            ("Codec.counts, Head.ideal or Codec.decode", lambda e=example: _ideal_answers(case, head, e)),
            ("Metric", lambda t=target: _score_nothing(case, [t])),
        ]
    for what, step in steps:
        before = _generators()
        with doing(what):
            step()
        _blame_generator(before, what, ("torch", "numpy", "random"), "draw from ClipView.rng(), which is seeded per sample and epoch")
    small = case.small([0, 1, 2], training=True)
    before = _generators()
    with doing("Head.forward and Head.loss in training"):
        head.train()
        head.loss(head(small.queries, small.targets), small.targets)
    _blame_generator(before, "Head.forward or Head.loss", ("numpy", "random"), "draw with torch, whose generator is checkpointed")


def _encode_all(case: Case, example: int, codec: Any = None) -> tuple[Tensors, list[Tensors]]:
    """Encode one example in training, from the same state of the global generators each time (`check_rng` looks at those)."""
    codec = case.codec if codec is None else codec
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    clip = case.clip(example, training=True)
    with doing(f"Codec.check, inputs and encode on example {example}"):
        codec.check(case.examples[example], clip.media)
        inputs = codec.inputs(clip)
        encoded = codec.encode(case.examples[example], clip)
    if not isinstance(encoded, list):
        raise CheckFailed(f"Codec.encode returned a {type(encoded).__name__}, expected a list with one dict of tensors per query")
    for name, tensor in [*inputs.items(), *(item for row in encoded for item in row.items())]:
        if not isinstance(tensor, torch.Tensor) or tensor.device.type != "cpu" or tensor.requires_grad:
            raise CheckFailed(f"the codec's {name!r} is {type(tensor).__name__}, expected a tensor on the CPU that needs no gradient")
    return {k: v.clone() for k, v in inputs.items()}, [{k: v.clone() for k, v in row.items()} for row in encoded]


def _compare(ours: Any, theirs: Any, example: int, what: str = "the codec gives other tensors the second time for") -> None:
    difference = tensors_differ(ours[0], theirs[0], exact=True)
    if len(ours[1]) != len(theirs[1]):
        difference = f"{len(ours[1])} and {len(theirs[1])} queries"
    for mine, other in zip(ours[1], theirs[1]):
        difference = difference or tensors_differ(mine, other, exact=True)
    if difference:
        raise CheckFailed(f"{what} example {example}: {difference}; keep no state, and draw only from ClipView.rng()")


def _compare_absence(case: Case, example: int, queries: int) -> None:
    with doing(f"Codec.is_absent on example {example}"):
        absent = case.codec.is_absent(case.examples[example])
    if absent != (queries == 0):
        raise CheckFailed(
            f"Codec.is_absent says {absent} of example {example}, but Codec.encode gives {queries} queries; "
            f"it must say True exactly where encode gives none"
        )


def _ideal_answers(case: Case, head: Any, example: int) -> list[Answer]:
    with doing(f"Codec.encode in evaluation on example {example}"):
        encoded = case.codec.encode(case.examples[example], case.clip(example, training=False))
    if not encoded:
        return []
    for row in encoded:
        with doing("Codec.counts"):
            case.codec.counts(row)
    with doing(f"Head.ideal on example {example}"):
        output = head.ideal(stack_rows(encoded, case.codec.ragged))
    clip = case.clip(example, training=False, annotated=False)
    with doing(f"Codec.decode of Head.ideal on example {example}"):
        return [case.codec.decode({k: v[n] for k, v in output.items()}, clip) for n in range(len(encoded))]


def _score_nothing(case: Case, targets: Sequence[Any]) -> None:
    metric = case.loaded.metric()
    for target in targets:
        metric.update([], target)
    metric.compute()
    metric.chance()


def _generators() -> dict[str, Any]:
    return {"torch": torch.get_rng_state(), "numpy": np.random.get_state(), "random": random.getstate()}


def _blame_generator(before: dict[str, Any], what: str, names: Sequence[str], remedy: str) -> None:
    after = _generators()
    for name in names:
        if repr(_plain(before[name])) != repr(_plain(after[name])):
            raise CheckFailed(f"{what} drew from (or seeded) the global generator of {name}; {remedy}")


def _plain(state: Any) -> Any:
    if isinstance(state, torch.Tensor):
        return bytes(state.numpy().tobytes())
    return tuple(part.tobytes() if isinstance(part, np.ndarray) else part for part in state)
