"""``tpo ablate``."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from tpo_core.errors import ConfigError


@click.command()
@click.argument("recipe", type=click.Path(dir_okay=False, path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--table", type=click.Path(dir_okay=False, path_type=Path), help="A YAML file with the rows. Default: the standard rows.")
@click.option("--rows", metavar="A,B,...", help="Run only these rows.")
@click.option("--seeds", default="0,1,2", show_default=True, metavar="A,B,...", help="Every row runs with each.")
@click.option("--output", default="runs/ablation", show_default=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--jobs", type=click.IntRange(min=1), help="Runs at a time, one thread each. Default: one per core.")
@click.option("--scale", default=1.0, show_default=True, type=click.FloatRange(min=0, min_open=True), help="Factor of all stages' steps.")
@click.option("--list", "only_list", is_flag=True, help="List the runs and what is done, and stop.")
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON.")
def command(
    recipe: Path,
    overrides: Sequence[str],
    table: Path | None,
    rows: str | None,
    seeds: str,
    output: Path,
    jobs: int | None,
    scale: float,
    only_list: bool,
    as_json: bool,
) -> None:
    """Train RECIPE with one thing changed per row, several seeds each, and compare.

    The standard rows are: each head alone, pairs, all, all with conversation, conversation only, heads detached from the language model,
    answers written as text. A row that is done is not run again; the same command goes on with what is left.
    """
    from tpo_core.cli.output import echo, printable
    from tpo_core.jobs.ablate import SUMMARY, Ablation
    from tpo_core.jobs.ablate_plan import read_table
    from tpo_core.jobs.quiet import quiet_libraries
    from tpo_core.jobs.recipes import read_recipe
    from tpo_core.plugins import load_plugins

    quiet_libraries()
    plugins = load_plugins()
    ablation = Ablation(
        read_recipe(recipe, plugins, heads=None, overrides=overrides),
        plugins,
        output,
        rows=None if table is None else read_table(table),
        chosen=_names(rows),
        seeds=_seeds(seeds),
        scale=scale,
        jobs=jobs or _cores(),
        command=shlex.join(["tpo", *sys.argv[1:]]),
        say=lambda text: echo(text, err=True),
    )
    if only_list:
        for run in ablation.plan():
            state = "done" if (run.folder / SUMMARY).is_file() else "to do"
            echo(f"{state:<6} {run.row.name}, seed {run.seed}  {run.folder}")
        return
    found = ablation.run()
    if as_json:
        click.echo(json.dumps(found))
    else:
        click.echo(printable(Path(found["files"]["md"]).read_text("utf-8")))
        echo(f"table        {found['files']['md']}, {found['files']['png']}, {found['files']['json']}")
    if found["failed"]:
        click.get_current_context().exit(1)


def _cores() -> int:
    """Return the cores that this process may use; not every system tells."""
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed is not None else os.cpu_count() or 1


def _names(text: str | None) -> list[str]:
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def _seeds(text: str) -> list[int]:
    try:
        seeds = [int(part) for part in _names(text)]
    except ValueError:
        raise ConfigError(f"--seeds: found {text!r}, expected whole numbers such as 0,1,2") from None
    if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise ConfigError(f"--seeds: found {text!r}, expected different numbers from 0 on, such as 0,1,2")
    return seeds
