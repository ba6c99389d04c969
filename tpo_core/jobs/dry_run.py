"""``tpo train --dry-run``: look at everything a run needs, train nothing, write nothing.

The model is built on the meta device from its config and processor alone; what cannot be found is said, and the rest is looked at all the
same. See `tpo_core.jobs.dry_cost` for the formulas.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tpo_core.config.recipe import Recipe, Source, StageConfig
from tpo_core.data.records import Record
from tpo_core.errors import BackboneError, CheckpointError, DataError, TPOError
from tpo_core.jobs.assembly import assemble, layouts_of, load_heads
from tpo_core.jobs.dry_cost import SampleSize, as_json, count_parameters, count_patches, estimate_memory, estimate_operations, shape_of
from tpo_core.jobs.rates import checked_rates
from tpo_core.jobs.sources import OpenSource, open_sources, stage_mixture
from tpo_core.media import open_media
from tpo_core.model.build import Assembly
from tpo_core.plugins import LoadedHead, Plugins
from tpo_core.runs import find_checkpoint
from tpo_core.train import fixed_parameters, freeze, stage_steps

ROWS = 8
"""First rows of a source that are read, prepared and measured."""
SHOWN = 3
"""Faults of a source that are told."""


@dataclass
class _Checked:
    """A source as it was found.

    Args:
        source: as the recipe names it. opened: None where it cannot be opened.
        sizes: of the usable rows. faults: of the others, and of the source itself.
    """

    source: Source
    split: str
    opened: OpenSource | None = None
    rows: int = 0
    sizes: list[SampleSize] = field(default_factory=list)
    usable: int = 0
    faults: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.source.name,
            "split": self.split,
            "path": self.source.path,
            "records": None if self.opened is None else self.opened.size,
            "checked": self.rows,
            "usable": self.usable,
            "size": as_json(_mean([(size, 1.0) for size in self.sizes])) if self.sizes else None,
            "faults": self.faults[:SHOWN],
        }


class DryRun:
    """Looks at a recipe.

    Args:
        recipe: validated. plugins: what is installed.
    """

    def __init__(self, recipe: Recipe, plugins: Plugins) -> None:
        self.recipe = recipe
        self.plugins = plugins
        self.problems: list[str] = []
        self.notes: list[str] = []
        self._fixed: frozenset[str] | None = None

    def run(self) -> dict[str, Any]:
        """Return what was found, JSON-ready: ``ok``, ``model``, ``sources``, ``stages``, ``problems``, ``notes``.

        Raises:
            TPOError: a head's package is broken, or a reader is not known.
        """
        recipe = self.recipe
        heads = load_heads(self.plugins, recipe.heads)
        assembly = self._assemble(heads)
        with tempfile.TemporaryDirectory() as cache:
            given = [("train", s) for s in recipe.data.train] + [("test", s) for s in recipe.data.test]
            checked = [self._check(source, split, heads, assembly, Path(cache)) for split, source in given]
            stages = [self._stage(stage, [c for c in checked if c.split == "train"], assembly) for stage in recipe.stages]
        if not recipe.stages:
            self.problems.append("the recipe has no stages, so there is nothing to train; add stages")
        if assembly is not None:
            self.notes.append(
                "memory is of one process without sharding; heads' activations and operations are left out; "
                "parameters that no path reaches are frozen when a run begins and count as trained here"
            )
        return {
            "ok": not self.problems,
            "model": self._model(assembly),
            "sources": [c.to_json() for c in checked],
            "stages": stages,
            "problems": self.problems,
            "notes": self.notes,
        }

    def _assemble(self, heads: Sequence[LoadedHead]) -> Assembly | None:
        try:
            return assemble(self.recipe, heads, layouts=layouts_of(self.plugins), meta=True)
        except BackboneError as error:
            self.problems.append(f"model.path: {error}")
            self.notes.append(
                "without the model, parameters, memory and operations are not counted, and rows are checked for form and media alone; "
                "a folder with only the model's config and processor files is enough: name it with --model"
            )
            return None

    def _model(self, assembly: Assembly | None) -> dict[str, Any]:
        path = self.recipe.model.path
        if assembly is None:
            return {"path": path, "built": False}
        model = assembly.model
        backbone = model.backbone
        return {
            "path": path,
            "built": True,
            "type": str(backbone.model.config.model_type),
            "dtype": str(backbone.embedding.weight.dtype).removeprefix("torch."),
            "parameters": {group: sum(p.numel() for p in parameters.values()) for group, parameters in model.groups().items()},
        }

    def _check(self, source: Source, split: str, heads: Sequence[LoadedHead], assembly: Assembly | None, cache: Path) -> _Checked:
        found = _Checked(source, split)
        label = f"data.{split} {source.name!r}"
        try:
            (found.opened,) = open_sources([source], self.plugins, cache=cache)
        except DataError as error:
            found.faults.append(str(error))
            self.problems.append(f"{label}: {error}")
            return found
        for row in range(min(ROWS, found.opened.size)):
            found.rows += 1
            try:
                record = found.opened.record(row)
                if assembly is None:
                    self._look_at(record, found.opened.root, heads)
                else:
                    found.sizes.append(_measure(assembly, record, found.opened.root))
                found.usable += 1
            except DataError as error:
                where = found.opened.records.where(row)
                found.faults.append(str(error) if str(error).startswith(where) else f"{where}: {error}")
        if not found.usable:
            self.problems.append(f"{label}: none of the first {found.rows} rows can be used; {found.faults[0]}")
        return found

    def _look_at(self, record: Record, root: Path, heads: Sequence[LoadedHead]) -> None:
        """Check what needs no model: media open, heads are known, targets have their form.

        Raises:
            DataError: one sentence.
        """
        for part in record.media_parts():
            medium = open_media(
                path=part.path or "",
                kind="image" if part.type == "image" else "video",
                root=root,
                start=part.start,
                end=part.end,
                frames=part.frames,
                fps=part.fps,
                allow_outside_root=self.recipe.data.allow_outside_root,
            )
            medium.frames([0])
        schemas = {head.name: head.codec.schema for head in heads}
        for target in record.targets:
            if target.role != "answer":
                continue
            if target.head not in schemas:
                raise DataError(f"target {target.id!r} is for head {target.head!r}; this run has {', '.join(sorted(schemas))}")
            schema = schemas[target.head]
            if schema is not None:
                try:
                    schema.model_validate(target.fields())
                except ValueError as error:
                    raise DataError(f"target {target.id!r} ({target.head}): {' '.join(str(error).split())}") from error

    def _stage(self, stage: StageConfig, sources: Sequence[_Checked], assembly: Assembly | None) -> dict[str, Any]:
        chosen = [c for c in sources if stage.sources is None or stage.sources.get(c.source.name, 0.0) > 0]
        opened = [c.opened for c in chosen if c.opened is not None]
        complete = len(opened) == len(chosen)
        row: dict[str, Any] = {"name": stage.name, "batch_size": stage.batch_size, "micro_batch": stage.micro_batch or stage.batch_size}
        steps = stage_steps(stage, sum(s.size for s in opened)) if complete or stage.steps is not None else None
        row["steps"] = steps
        try:
            if complete:
                everything = [c.opened for c in sources if c.opened is not None]
                missing = {c.source.name for c in sources if c.opened is None}
                weights = stage.sources and {name: weight for name, weight in stage.sources.items() if name not in missing}
                mixture, _ = stage_mixture(self.recipe, stage.model_copy(update={"sources": weights}), everything)
                row["mixture"] = [vars(share) for share in mixture.table((steps or 0) * stage.batch_size)]
            else:
                row["mixture"] = _known_shares(stage, chosen)
        except TPOError as error:
            self.problems.append(f"stage {stage.name!r}: {error}")
            row["mixture"] = []
        if stage.start != "previous":
            self._check_start(stage)
        if assembly is None:
            return row
        try:
            return row | self._cost(stage, assembly, _size(chosen, row["mixture"]), steps)
        except TPOError as error:
            self.problems.append(str(error))
            return row

    def _check_start(self, stage: StageConfig) -> None:
        try:
            if find_checkpoint(stage.start) is None:
                self.problems.append(f"stage {stage.name!r} begins from {stage.start}, which has no checkpoint yet; train it first")
        except CheckpointError as error:
            self.problems.append(f"stage {stage.name!r}: from: {error}")

    def _cost(self, stage: StageConfig, assembly: Assembly, size: SampleSize | None, steps: int | None) -> dict[str, Any]:
        model = assembly.model
        if self._fixed is None:
            # What heads' authors froze is known only before the first stage freezes anything.
            self._fixed = fixed_parameters(model)
        rates = checked_rates(stage, model)
        trained = freeze(model, rates, fixed=self._fixed)
        lora = assembly.options.lora
        known = size or SampleSize(0.0, 0.0, 0.0, 0.0)
        micro = stage.micro_batch or stage.batch_size
        shape = shape_of(model.backbone)
        memory: dict[str, int | None] = dict(
            estimate_memory(model, shape, known, micro, dropout=lora is not None and lora.dropout > 0),
        )
        row: dict[str, Any] = {"rates": rates, "parameters": count_parameters(model, trained), "memory": memory, "operations": None}
        if size is None:
            memory["activations"] = None
            self.notes.append(f"stage {stage.name}: no row could be read, so activations and operations are not known")
            return row
        operations = estimate_operations(model, shape, size, stage.batch_size, set(rates), adapter=lora is not None)
        total = sum(operations.values())
        row["operations"] = {**operations, "step": total, "stage": None if steps is None else total * steps}
        row["sample"] = as_json(size)
        return row


def _measure(assembly: Assembly, record: Record, root: Path) -> SampleSize:
    prepared = assembly.preparer.training(record, root=root, seed=(0,))
    tokens = float(len(prepared.ids))
    return SampleSize(tokens, float(len(prepared.learn)), count_patches(assembly.model.backbone, prepared.visual), tokens)


def _mean(sizes: Sequence[tuple[SampleSize, float]]) -> SampleSize:
    """Return the weighted mean; of `longest` the greatest."""
    total = sum(weight for _, weight in sizes)

    return SampleSize(
        tokens=sum(size.tokens * weight for size, weight in sizes) / total,
        learnt=sum(size.learnt * weight for size, weight in sizes) / total,
        patches=sum(size.patches * weight for size, weight in sizes) / total,
        longest=max(size.longest for size, _ in sizes),
    )


def _size(chosen: Sequence[_Checked], mixture: Sequence[Mapping[str, Any]]) -> SampleSize | None:
    """Return a stage's mean sample by its mixture's shares, over the sources of which rows could be read."""
    shares = {row["source"]: row["share"] or 0.0 for row in mixture}
    known = [(_mean([(size, 1.0) for size in c.sizes]), shares.get(c.source.name, 0.0)) for c in chosen if c.sizes]
    return _mean(known) if sum(weight for _, weight in known) > 0 else None


def _known_shares(stage: StageConfig, chosen: Sequence[_Checked]) -> list[dict[str, Any]]:
    """Return the table of a stage of which some sources are missing: shares where weights alone say them."""
    weights = [stage.sources[c.source.name] if stage.sources is not None else c.source.weight for c in chosen]
    total = None if None in weights else sum(weight or 0.0 for weight in weights)
    return [
        {
            "source": c.source.name,
            "size": None if c.opened is None else c.opened.size,
            "samples": None,
            "share": weight / total if total and weight is not None else None,
            "epochs": None,
        }
        for c, weight in zip(chosen, weights, strict=True)
    ]
