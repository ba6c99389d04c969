"""``tpo affinity``: which tasks help which, measured on a trained run.

Owners are ``lm`` (words: conversation), ``assign`` (which head is called) and the heads. On the weights that all of them share (the
adapter; without one, the decoder or the connector) two things are measured, batch by batch:

- the **cosine** of the angle between each two owners' gradients on the same training batch;
- the **transfer** from i to j: one step against i's gradient on a training batch, of a fixed share of the shared weights' norm, and the
  share by which j's loss on a held-out batch falls: ``1 - L_j(after) / L_j(before)`` (Fifty et al. 2021). Above 0, i helps j.

The weights are put back after each step. Dropout draws are the same before and after.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tpo_core.data.mixture import Draw, Mixture
from tpo_core.data.mixture import Source as MixtureSource
from tpo_core.errors import DataError, TrainError
from tpo_core.jobs.run import Run
from tpo_core.jobs.sources import OpenSource, ReadAndPrepare, open_sources, stage_mixture
from tpo_core.model.build import Assembly
from tpo_core.plugins import Plugins
from tpo_core.train import SHARED_GROUPS, freeze, owner_gradients, owner_of, pulls_of, resolve_rates, shared_parameters
from tpo_core.train.rng import capture_rng, restore_rng
from tpo_core.types import Batch

ATTEMPTS = 16
"""Rows tried at one position before giving up."""

Grid = dict[tuple[str, str], list[float]]
"""(row, column) -> one value for each batch in which both counted."""


@dataclass(frozen=True)
class _Here:
    """What `owner_gradients` needs of an accelerator."""

    device: torch.device
    num_processes: int = 1


def measure_affinity(
    run: Run, plugins: Plugins, *, output: Path, batches: int = 8, batch_size: int = 12, step: float = 0.003, seed: int = 0
) -> dict[str, Any]:
    """Measure a run, write ``affinity.json``, ``affinity.md`` and two heat maps into a folder, and return what the first holds.

    Args:
        batches: pairs of a training batch (of the last stage's mixture) and a held-out batch (of the test sources, in equal shares).
        batch_size: samples of each.
        step: length of a step, as a share of the norm of the shared weights.
        seed: of the drawn rows.

    Raises:
        TrainError: the run trained no shared weights, or has no test sources.
        DataError: its records are not there any more.
    """
    recipe, assembly = run.recipe, run.assembly
    if not recipe.data.test:
        raise TrainError(f"{run.path} has no test sources, so transfer cannot be measured; add data.test to its recipe")
    train = open_sources(recipe.data.train, plugins, cache=output / "data")
    tests = open_sources(recipe.data.test, plugins, cache=output / "data")
    group = _share_weights(run)
    mixture, sources = stage_mixture(recipe, recipe.stages[-1], train)
    mixture = Mixture(mixture.sources, seed, temperature=recipe.data.temperature)
    held = Mixture([MixtureSource(s.name, s.size, 1.0) for s in tests], seed)
    pairs = zip(
        _batches(assembly, mixture, sources, batches, batch_size), _batches(assembly, held, tests, batches, batch_size), strict=True
    )
    norms, cosines, transfer = compare(assembly, pairs, step)
    found = {
        "run": str(run.path),
        "owners": [owner for owner in _owners(assembly) if owner in norms],
        "shared": {"group": group, "numbers": sum(p.numel() for p in shared_parameters(assembly.model))},
        "batches": batches,
        "batch_size": batch_size,
        "step": step,
        "seed": seed,
        "norms": {owner: _spread(values) for owner, values in norms.items()},
        "cosines": _table(cosines),
        "transfer": _table(transfer),
        "files": {key: str(output / name) for key, name in _FILES.items()},
    }
    _write(output, found)
    return found


def compare(assembly: Assembly, pairs: Iterable[tuple[Batch, Batch]], step: float) -> tuple[dict[str, list[float]], Grid, Grid]:
    """Return norms, cosines and transfer over pairs of (training batch, held-out batch). The shared weights are those that train."""
    model = assembly.model
    model.train()
    shared = shared_parameters(model)
    here = _Here(next(model.parameters()).device)
    length = step * float(torch.cat([p.detach().flatten() for p in shared]).float().norm())
    norms: dict[str, list[float]] = {}
    cosines: Grid = {}
    transfer: Grid = {}
    for batch, held in pairs:
        counts = {term: max(batch.counts.get(term, 0.0), 1.0) for term in model.terms()}
        gradients = owner_gradients(model, [batch], counts, shared, here)
        pulls = pulls_of(gradients)
        for owner, norm in pulls.norms.items():
            norms.setdefault(owner, []).append(norm)
            cosines.setdefault((owner, owner), []).append(1.0)
        for (left, right), value in pulls.cosines.items():
            cosines.setdefault((left, right), []).append(value)
            cosines.setdefault((right, left), []).append(value)
        rng = capture_rng()
        before = owner_losses(assembly, held.to(here.device))
        for owner, gradient in gradients.items():
            restore_rng(rng)
            with moved(shared, gradient * (-length / float(gradient.norm()))):
                after = owner_losses(assembly, held.to(here.device))
            for other, loss in before.items():
                transfer.setdefault((owner, other), []).append(1 - after[other] / loss)
        restore_rng(rng)
    return norms, cosines, transfer


@torch.no_grad()
def owner_losses(assembly: Assembly, batch: Batch) -> dict[str, float]:
    """Return each owner's weighted loss on a batch; owners of whom nothing counts, or whose loss is 0, are left out."""
    model = assembly.model
    denominators = {term: max(batch.counts.get(term, 0.0), 1.0) for term in model.terms()}
    metrics = model(batch, denominators).metrics
    losses: dict[str, float] = {}
    for term in model.terms():
        if term not in metrics or batch.counts.get(term, 0.0) <= 0:
            continue
        owner = owner_of(term)
        losses[owner] = losses.get(owner, 0.0) + _weight(assembly, term) * float(metrics[term])
    return {owner: loss for owner, loss in losses.items() if loss > 0}


@contextmanager
def moved(parameters: Sequence[nn.Parameter], by: Tensor) -> Iterator[None]:
    """Add a flat vector to parameters for as long as the context lasts."""
    kept = [parameter.detach().clone() for parameter in parameters]
    parts = torch.split(by, [parameter.numel() for parameter in parameters])
    with torch.no_grad():
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.add_(part.view_as(parameter).to(parameter.device, parameter.dtype))
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, kept, strict=True):
                parameter.copy_(value)


def _weight(assembly: Assembly, term: str) -> float:
    owner, _, name = term.partition("/")
    if not name:
        return assembly.model.assign_weight if owner == "assign" else 1.0
    slot = assembly.model.slot(owner)
    return slot.weight * float(slot.head.term_weights.get(name, 1.0))


def _owners(assembly: Assembly) -> list[str]:
    return list(dict.fromkeys(owner_of(term) for term in assembly.model.terms()))


def _share_weights(run: Run) -> str:
    """Let the shared weights train and nothing else; return their group."""
    groups = run.assembly.model.groups()
    trained = {group for stage in run.recipe.stages for group in resolve_rates(stage, groups)}
    for group in SHARED_GROUPS:
        if group in trained and groups.get(group):
            freeze(run.assembly.model, [group])
            return group
    raise TrainError(f"{run.path} trained none of {', '.join(SHARED_GROUPS)}, so its tasks share no weights that a step could move")


def _batches(assembly: Assembly, mixture: Mixture, sources: Sequence[OpenSource], count: int, size: int) -> Iterator[Batch]:
    prepare, collate = ReadAndPrepare(sources, assembly.preparer), assembly.collator()
    for first in range(0, count * size, size):
        yield collate([_sample(prepare, mixture, position) for position in range(first, first + size)])


def _sample(prepare: ReadAndPrepare, mixture: Mixture, position: int) -> Any:
    fault: DataError | None = None
    for attempt in range(ATTEMPTS):
        try:
            draw: Draw = mixture.draw(position, attempt)
            return prepare(draw)
        except DataError as error:
            fault = error
    raise DataError(f"{ATTEMPTS} rows in a row could not be used; the last: {fault}") from fault


def _spread(values: Sequence[float]) -> dict[str, Any]:
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "deviation": deviation, "batches": len(values)}


def _table(grid: Grid) -> dict[str, dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    for (row, column), values in grid.items():
        rows.setdefault(row, {})[column] = _spread(values)
    return rows


_FILES = {"json": "affinity.json", "md": "affinity.md", "cosines": "affinity-cosines.png", "transfer": "affinity-transfer.png"}


def _write(output: Path, found: Mapping[str, Any]) -> None:
    from tpo_core.jobs.report_charts import heat_map

    output.mkdir(parents=True, exist_ok=True)
    (output / _FILES["json"]).write_text(json.dumps(found, indent=1), "utf-8")
    (output / _FILES["md"]).write_text(as_markdown(found), "utf-8")
    owners: Sequence[str] = found["owners"]
    for name, title, rows, columns in (
        ("cosines", "cosine of gradients", "of", "and"),
        ("transfer", "fall of the loss after one step", "step of", "loss of (held out)"),
    ):
        values = [[_mean(found[name], row, column) for column in owners] for row in owners]
        largest = max((abs(v) for line in values for v in line if v is not None), default=0.0)
        limit = 1.0 if name == "cosines" else max(largest, 1e-6)
        (output / _FILES[name]).write_bytes(heat_map(owners, values, title=title, limit=limit, rows=rows, columns=columns))


def _mean(table: Mapping[str, Mapping[str, Any]], row: str, column: str) -> float | None:
    found = table.get(row, {}).get(column)
    return None if found is None else float(found["mean"])


def as_markdown(found: Mapping[str, Any]) -> str:
    """Return both matrices with what was measured."""
    parts = [
        f"Shared weights: {found['shared']['group']}, {found['shared']['numbers']:,} numbers. {found['batches']} pairs of batches of "
        f"{found['batch_size']}; mean ± standard deviation over batches. One state of one run: not a law of the tasks.",
        "Cosine of the gradients on the same training batch:",
        matrix_markdown(found, "cosines", ".2f"),
        f"Transfer: share by which the column's held-out loss falls after one step of the row, {found['step']:g} of the weights' norm long "
        "(above 0: it helps):",
        matrix_markdown(found, "transfer", ".4f"),
    ]
    return "\n\n".join(parts) + "\n"


def matrix_rows(found: Mapping[str, Any], name: str, form: str) -> list[list[str]]:
    """Return a matrix as cells, the row's owner first."""
    rows = []
    for row in found["owners"]:
        cells = [found[name].get(row, {}).get(column) for column in found["owners"]]
        rows.append([row, *("-" if cell is None else _cell(cell, form) for cell in cells)])
    return rows


def matrix_markdown(found: Mapping[str, Any], name: str, form: str) -> str:
    """Return a matrix as a Markdown table."""
    head = f"| | {' | '.join(found['owners'])} |\n|---|{'---:|' * len(found['owners'])}"
    return "\n".join([head, *(f"| {' | '.join(row)} |" for row in matrix_rows(found, name, form))])


def _cell(found: Mapping[str, Any], form: str) -> str:
    mean = f"{found['mean']:+{form}}"
    return mean if found["deviation"] is None else f"{mean} ± {found['deviation']:{form}}"
