"""The rows of an ablation: what each changes in a recipe, and the runs that follow."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator

from tpo_core.config import Part, Recipe, read_yaml
from tpo_core.errors import ConfigError, did_you_mean
from tpo_core.jobs.ablate_records import Keep
from tpo_core.jobs.recipes import read_recipe
from tpo_core.plugins import Plugins
from tpo_core.runs import without_heads, without_rates


class RowConfig(Part):
    """One row of the table."""

    name: str = Field(min_length=1, max_length=80, description="how the table calls it")
    heads: tuple[str, ...] | None = Field(None, description="heads that are trained; null: all of the recipe; []: none, conversation only")
    conversation: bool = Field(True, description="whether turns that are answered in words are trained")
    textual: tuple[str, ...] = Field((), description="heads (beside `heads`) whose answers the language model writes as text instead")
    stages: tuple[str, ...] | None = Field(None, description="stages of the recipe to run; null: all that have something to learn from")
    set: tuple[str, ...] = Field((), description="overrides of the recipe, such as heads.<name>.detach=true")

    @model_validator(mode="after")
    def _learns_something(self) -> RowConfig:
        if "," in self.name:
            raise ValueError(f"the name {self.name!r} has a comma, which separates names in --rows; write it without")
        if both := sorted(set(self.heads or ()) & set(self.textual)):
            raise ValueError(f"{both[0]!r} stands in heads and in textual; a head's answers are either dense or written")
        if self.heads == () and not self.textual and not self.conversation:
            raise ValueError("no head, nothing written and no conversation: there is nothing to learn")
        return self


class TableConfig(Part):
    """The file that lists the rows."""

    rows: tuple[RowConfig, ...] = Field(min_length=1, description="the rows, in order")


@dataclass(frozen=True)
class PlannedRun:
    """One row with one seed.

    Args:
        row, seed: which. folder: of the run. keep: which turns it learns from. recipe: its mapping, sources not yet replaced.
    """

    row: RowConfig
    seed: int
    folder: Path
    keep: Keep
    recipe: dict[str, Any]


def read_table(path: Path) -> list[RowConfig]:
    """Return the rows that a YAML file lists.

    Raises:
        ConfigError: ``file:line: path:`` and what was expected.
    """
    document = read_yaml(path)
    try:
        table = TableConfig.model_validate_json(json.dumps(document.data))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        message = str(first.get("ctx", {}).get("error", first["msg"]))
        raise ConfigError(f"{document.place(tuple(first['loc']))}: {message}; a row has {', '.join(RowConfig.model_fields)}") from error
    return list(table.rows)


def standard_rows(heads: Sequence[str], textual: Sequence[str]) -> list[RowConfig]:
    """Return the rows that any recipe has: each head alone, pairs, all, with conversation, conversation only, detached, as text.

    Args:
        heads: of the recipe. textual: those of them whose answers can be written as text.
    """
    rows = [RowConfig(name=f"{name} alone", heads=(name,), conversation=False) for name in heads]
    if len(heads) > 2:
        rows += [RowConfig(name=" + ".join(pair), heads=pair, conversation=False) for pair in combinations(heads, 2)]
    if len(heads) > 1:
        rows.append(RowConfig(name="all heads", conversation=False))
    rows += [RowConfig(name="all + conversation"), RowConfig(name="conversation only", heads=())]
    rows.append(RowConfig(name="all + conversation (detached)", set=tuple(f"heads.{name}.detach=true" for name in heads)))
    if textual:
        dense = tuple(name for name in heads if name not in textual)
        rows.append(RowConfig(name="written as text + conversation", heads=dense, textual=tuple(textual)))
    return rows


def choose_rows(rows: Sequence[RowConfig], names: Sequence[str]) -> list[RowConfig]:
    """Return the rows of these names; all where none is named.

    Raises:
        ConfigError: an unknown name, or two rows whose folders would be the same.
    """
    known = {slug(row.name): row for row in rows}
    if len(known) != len(rows):
        slugs = [slug(row.name) for row in rows]
        twice = next(row.name for row in rows if slugs.count(slug(row.name)) > 1)
        raise ConfigError(f"the row {twice!r} stands twice in the table (letters and digits count); give each row its own name")
    for name in names:
        if slug(name) not in known:
            near = did_you_mean(name, [row.name for row in rows]) or f" There are: {', '.join(row.name for row in rows)}"
            raise ConfigError(f"--rows: the table has no row {name!r}.{near}")
    return [row for row in rows if not names or slug(row.name) in {slug(name) for name in names}]


def slug(name: str) -> str:
    """Return a name for folders."""
    return re.sub(r"[^a-z0-9]+", "-", name.casefold()).strip("-") or "row"


def plan_run(recipe: Recipe, row: RowConfig, seed: int, plugins: Plugins, *, output: Path, steps: Mapping[str, int]) -> PlannedRun:
    """Return the run of a row: heads that it has not are taken out of the recipe, its overrides are merged, its lengths are fixed.

    Args:
        recipe: that all rows share. output: of the ablation. steps: of each stage, from the whole records, so that all rows train as long.

    Raises:
        ConfigError: the row names a head or a stage that the recipe has not, or its overrides are wrong.
    """
    heads = tuple(recipe.heads) if row.heads is None else row.heads
    _check_known(row, (*heads, *row.textual), recipe.heads, "head")
    _check_known(row, row.stages or (), steps, "stage")
    if row.heads is None:
        heads = tuple(name for name in heads if name not in row.textual)
    # Without any head there is still a model with heads, none of which is ever called: the same model, and the same questions.
    built = (*heads, *row.textual) or tuple(recipe.heads)
    mapping = without_heads(recipe.model_dump(mode="json", by_alias=True), [name for name in recipe.heads if name not in built])
    mapping["stages"] = [stage for stage in mapping["stages"] if row.stages is None or stage["name"] in row.stages]
    for stage in mapping["stages"]:
        stage |= {"steps": steps[stage["name"]], "epochs": None}
    mapping["stages"] = without_rates(mapping["stages"], {*built} - {*heads})
    folder = output / slug(row.name) / f"seed-{seed}"
    mapping |= {"seed": seed, "output": str(folder)}
    mapping["trainer"]["eval_after_stage"] = False
    try:
        merged = read_recipe(mapping, plugins, heads=None, overrides=row.set)
    except ConfigError as error:
        raise ConfigError(f"row {row.name!r}: {error}") from error
    plain = merged.model_dump(mode="json", by_alias=True)
    return PlannedRun(row, seed, folder, Keep(frozenset(heads), frozenset(row.textual), row.conversation), plain)


def _check_known(row: RowConfig, names: Sequence[str], known: Mapping[str, Any], kind: str) -> None:
    for name in names:
        if name not in known:
            near = did_you_mean(name, known) or f" It has: {', '.join(known)}"
            raise ConfigError(f"row {row.name!r}: the recipe has no {kind} {name!r}.{near}")


def with_sources(
    recipe: Mapping[str, Any], train: Mapping[str, Path], test: Mapping[str, Path], roots: Mapping[str, Path]
) -> dict[str, Any]:
    """Return a row's recipe over its own records: sources of which nothing stays go, and stages that are left without any.

    Args:
        train, test: source -> file. roots: ``train/name`` -> folder that media paths are relative to.

    Raises:
        ConfigError: no stage is left.
    """
    made = copy.deepcopy(dict(recipe))
    for split, files in (("train", train), ("test", test)):
        made["data"][split] = [
            {
                **source,
                "path": str(files[source["name"]]),
                "reader": "tpo",
                "root": str(roots[f"{split}/{source['name']}"]),
                "max_samples": None,
            }
            for source in made["data"][split]
            if source["name"] in files
        ]
    stages = []
    for stage in made["stages"]:
        if stage["sources"] is not None:
            stage["sources"] = {name: weight for name, weight in stage["sources"].items() if name in train}
        has_data = any(weight > 0 for weight in stage["sources"].values()) if stage["sources"] is not None else bool(train)
        if has_data and any(rate is not None for rate in stage["train"].values()):
            stages.append(stage)
    if not stages:
        raise ConfigError("no stage of the recipe has records that this row learns from; look at its heads and stages")
    made["stages"] = stages
    return made
