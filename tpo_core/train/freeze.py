"""What trains: set before wrapping, never on a wrapped model; and what no path reaches is frozen too."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator
from typing import Protocol

import torch
from torch import nn

from tpo_core.errors import TrainError
from tpo_core.train.rng import capture_rng, restore_rng
from tpo_core.types import Batch, Trainable

logger = logging.getLogger(__name__)


class TrainableModule(Trainable, Protocol):
    """A `Trainable` that is an `nn.Module` as well: what this room calls of it."""

    training: bool

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...
    def named_buffers(self) -> Iterator[tuple[str, torch.Tensor]]: ...
    def zero_grad(self, set_to_none: bool = True) -> None: ...
    def train(self, mode: bool = True) -> object: ...


def fixed_parameters(model: TrainableModule) -> frozenset[str]:
    """Return ``group/name`` of the parameters that a head's author froze (a segmenter's trunk). Call it once, on the model as built."""
    return frozenset(
        f"{group}/{name}"
        for group, parameters in model.groups().items()
        if group.startswith("heads.")
        for name, parameter in parameters.items()
        if not parameter.requires_grad
    )


def freeze(model: TrainableModule, trained: Collection[str], *, fixed: Collection[str] = frozenset()) -> dict[str, int]:
    """Let these groups train and freeze everything else. Return how many numbers train, by group.

    Args:
        trained: names of groups (the keys of `resolve_rates`).
        fixed: from `fixed_parameters`; these stay frozen in any stage.
    """
    for _, parameter in model.named_parameters():
        parameter.requires_grad_(False)
    counts: dict[str, int] = {}
    for group, parameters in model.groups().items():
        if group not in trained:
            continue
        counts[group] = 0
        for name, parameter in parameters.items():
            if f"{group}/{name}" in fixed or not parameter.is_floating_point():
                continue
            parameter.requires_grad_(True)
            counts[group] += parameter.numel()
    return counts


def freeze_unreached(model: TrainableModule, batches: Iterable[Batch]) -> list[str]:
    """Freeze what no path from the loss reaches, found by one dry step, and return its names.

    DDP waits for a gradient of every trainable parameter; one that never gets any makes it fail, or silently mix up gradients.
    Parameters, buffers and random state are left as they were.

    Args:
        batches: one or more that together hold every task of the stage, the same on every rank.

    Raises:
        TrainError: there is no batch.
    """
    rng = capture_rng()
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    training = model.training
    model.train()
    model.zero_grad()
    device = next(parameter.device for _, parameter in model.named_parameters())
    count = 0
    for batch in batches:
        denominators = {term: max(batch.counts.get(term, 0.0), 1.0) for term in model.terms()}
        torch.autograd.backward(model(batch.to(device), denominators).loss)
        count += 1
    if count == 0:
        raise TrainError("the dry step got no batch; give it one batch that holds every task of the stage")
    unreached = [(name, p) for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    for _, parameter in unreached:
        parameter.requires_grad_(False)
    model.zero_grad()
    model.train(training)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
    restore_rng(rng)
    names = sorted(name for name, _ in unreached)
    if names:
        logger.info("froze %d parameters that no path reaches: %s", len(names), ", ".join(names))
    return names
