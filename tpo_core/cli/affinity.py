"""``tpo affinity``."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--model", help="The backbone, where it is not where the run remembers it.")
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), help="Where tables and heat maps go. Default: RUN/affinity.")
@click.option("--batches", default=8, show_default=True, type=click.IntRange(min=1), help="Pairs of a training and a held-out batch.")
@click.option("--batch-size", default=12, show_default=True, type=click.IntRange(min=1), help="Samples of a batch.")
@click.option(
    "--step",
    default=0.003,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="Length of a step, as a share of the shared weights' norm.",
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Of the drawn rows.")
@click.option("--json", "as_json", is_flag=True, help="Print what was measured as JSON.")
def command(
    run: Path, model: str | None, output: Path | None, batches: int, batch_size: int, step: float, seed: int, as_json: bool
) -> None:
    """Measure which tasks of RUN help which: cosines of their gradients on shared weights, and one-step transfer to held-out records."""
    from tpo_core.cli.opened import open_run
    from tpo_core.cli.output import echo, print_table
    from tpo_core.jobs.affinity import matrix_rows, measure_affinity

    loaded, plugins = open_run(run, model)
    folder = output or run / "affinity"
    found = measure_affinity(loaded, plugins, output=folder, batches=batches, batch_size=batch_size, step=step, seed=seed)
    if as_json:
        click.echo(json.dumps(found))
        return
    print_table(["cosine", *found["owners"]], matrix_rows(found, "cosines", ".2f"), title="gradients on the same batch")
    print_table(["step of", *found["owners"]], matrix_rows(found, "transfer", ".4f"), title="share by which a held-out loss falls")
    echo(f"shared weights: {found['shared']['group']}, {found['shared']['numbers']:,} numbers; {batches} batches of {batch_size}")
    echo(f"tables       {found['files']['md']}, {found['files']['json']}")
    echo(f"heat maps    {found['files']['cosines']}, {found['files']['transfer']}")
