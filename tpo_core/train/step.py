"""One optimiser step: denominators first, then forward and backward of each micro-batch, idle parameters, clipping.

Every loss term is a sum over the step's samples, of all micro-batches and processes, over a denominator that is known before the first
forward. Shares simply add up, so a step does not depend on how its samples were dealt out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tpo_core.errors import TrainError
from tpo_core.train.loader import StepBatches
from tpo_core.types import Batch

LOSS = "loss"


@dataclass(frozen=True)
class Totals:
    """What an optimiser step counts over all micro-batches and processes.

    Args:
        counts: by loss term, as they are; a term that nothing learns from is 0.
        samples, tokens, bad: samples, unpadded tokens, rows set aside.
    """

    counts: dict[str, float]
    samples: float
    tokens: float
    bad: float

    @property
    def denominators(self) -> dict[str, float]:
        """Counts, at least 1 each."""
        return {term: max(count, 1.0) for term, count in self.counts.items()}


def count_step(batches: StepBatches, terms: Sequence[str], accelerator: Any) -> Totals:
    """Sum the counts of a step, in one small all-reduce.

    Raises:
        TrainError: a batch counts a term that the model does not name, or another process cannot go on.
        Exception: this process cannot go on (`StepBatches.failure`).
    """
    failure = batches.failure or _unknown_term(batches.micro, terms)
    local = [sum(batch.counts.get(term, 0.0) for batch in batches.micro) for term in terms]
    local.append(float(sum(len(batch) for batch in batches.micro)))
    local.append(float(sum(int(batch.mask_BL.sum()) for batch in batches.micro)))
    local += [float(batches.bad), 1.0 if failure is not None else 0.0]
    *counts, samples, tokens, bad, failed = add_over_processes(torch.tensor(local, dtype=torch.float64), accelerator).tolist()
    if failure is not None:
        raise failure
    if failed:
        raise TrainError(f"{int(failed)} other process(es) of this run cannot go on; their messages say why")
    return Totals(dict(zip(terms, counts, strict=True)), samples, tokens, bad)


def _unknown_term(batches: Iterable[Batch], terms: Sequence[str]) -> TrainError | None:
    for batch in batches:
        unknown = sorted(batch.counts.keys() - set(terms))
        if unknown:
            return TrainError(f"a batch counts {unknown[0]!r}, but the model has only {', '.join(terms)}; give both the same heads")
    return None


def add_over_processes(values: Tensor, accelerator: Any) -> Tensor:
    """Return the element-wise sum over all processes, on the CPU."""
    if accelerator.num_processes == 1:
        return values
    total: Tensor = accelerator.reduce(values.to(accelerator.device), "sum")
    return total.cpu()


def run_micro_batches(
    model: nn.Module, micro: Sequence[Batch], denominators: Mapping[str, float], accelerator: Any, *, scale: float = 1.0
) -> list[dict[str, Tensor]]:
    """Forward and backward; gradients are exchanged once, in the last micro-batch. Return each micro-batch's metrics.

    Args:
        scale: factor of the loss, beside the number of processes (which undoes the averaging of gradients over them).
    """
    metrics: list[dict[str, Tensor]] = []
    for index, batch in enumerate(micro):
        last = index == len(micro) - 1
        with contextlib.nullcontext() if last else accelerator.no_sync(model):
            output = model(batch.to(accelerator.device), denominators)
            accelerator.backward(output.loss * (accelerator.num_processes * scale))
        metrics.append({**output.metrics, LOSS: output.loss.detach()})
    return metrics


def sum_metrics(metrics: Sequence[Mapping[str, Tensor]], names: Sequence[str], accelerator: Any) -> dict[str, float]:
    """Return the step's metrics by these names, added over micro-batches and processes; other names are ignored."""
    rows = torch.zeros(len(names), dtype=torch.float64)
    for shares in metrics:
        found = {name: shares[name] for name in names if name in shares}
        if found:
            values = torch.stack([value.float() for value in found.values()]).double().cpu()
            rows[[names.index(name) for name in found]] += values
    return dict(zip(names, add_over_processes(rows, accelerator).tolist(), strict=True))


def clear_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Take the gradient away, so that neither momentum nor decay moves these parameters; a zero gradient would not do."""
    for parameter in parameters:
        parameter.grad = None


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float | None) -> float:
    """Scale all gradients to a total norm of at most the limit. Return the norm before."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return 0.0
    norm = torch.nn.utils.get_total_norm(gradients)
    full = getattr(norm, "full_tensor", None)
    total = float(norm if full is None else full())
    if limit is not None and total > limit:
        for gradient in gradients:
            gradient.mul_(limit / total)
    return total


def not_finite(step: int, metrics: Mapping[str, float], norm: float, shares: Sequence[Mapping[str, Tensor]], micro: Sequence[Batch]) -> str:
    """Return the message for a step whose loss or gradient is not finite: step, terms, and the samples on this process."""
    bad_terms = [name for name, value in metrics.items() if not _finite(value)]
    here = [
        sample
        for share, batch in zip(shares, micro, strict=True)
        if any(not _finite(float(value)) for value in share.values())
        for sample in batch.sample_ids
    ]
    what = f"{', '.join(bad_terms)} not finite" if bad_terms else f"the gradient's norm is {norm}"
    if here:
        where = f"among the samples {', '.join(map(repr, here[:8]))}" + (f" and {len(here) - 8} more" if len(here) > 8 else "")
    elif bad_terms:
        where = "the samples are on another process, whose message names them"
    else:
        ids = [sample for batch in micro for sample in batch.sample_ids]
        where = f"this process had {', '.join(map(repr, ids[:8]))}" + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")
    return f"step {step}: {what}; {where}. Nothing was changed in this step: look at the samples, or lower the learning rate and resume"


def _finite(value: float) -> bool:
    return value - value == 0.0
