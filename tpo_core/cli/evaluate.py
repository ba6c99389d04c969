"""``tpo eval``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import click


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--data", multiple=True, metavar="FILE", help="Records to test on; may be repeated. Default: the run's own test sources.")
@click.option("--model", help="The backbone, where it is not where the run remembers it.")
@click.option(
    "--output", type=click.Path(file_okay=False, path_type=Path), help="Where figures, predictions and pictures go. Default: RUN/eval."
)
@click.option("--samples", type=click.IntRange(min=1), help="Records per source, at most.")
@click.option("--batch-size", default=16, show_default=True, type=click.IntRange(min=1), help="Questions per generation.")
@click.option("--max-new-tokens", default=48, show_default=True, help="Budget of new tokens.")
@click.option("--start-bias", type=float, help="Added to the logits of start tokens: below 0, fewer calls of heads. Default: the recipe's.")
@click.option(
    "--processes",
    default=1,
    show_default=True,
    type=click.IntRange(min=1),
    help="Share the questions among so many processes here, at most one per GPU or CPU thread.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def command(
    run: Path,
    data: Sequence[str],
    model: str | None,
    output: Path | None,
    samples: int | None,
    batch_size: int,
    max_new_tokens: int,
    start_bias: float | None,
    processes: int,
    as_json: bool,
) -> None:
    """Score the model of RUN: each head's metrics beside chance, the conversation beside words alone; one line per record on disk."""
    from tpo_core.cli.launch import join, launch, processes_here
    from tpo_core.cli.opened import open_run
    from tpo_core.cli.output import echo
    from tpo_core.cli.progress import TerminalListener, print_summary
    from tpo_core.config.recipe import Source
    from tpo_core.errors import ConfigError
    from tpo_core.jobs.listen import JobListener
    from tpo_core.jobs.measure import measure_model
    from tpo_core.jobs.sources import open_sources
    from tpo_core.model import GenerationOptions

    count = processes_here(processes)
    if count > 1:
        launch(sys.argv[1:], count)
    shared = join()
    first = shared is None or shared.rank == 0
    loaded, plugins = open_run(run, model, device=None if shared is None else shared.accelerator.device)
    folder = output or run / "eval"
    given = [Source(name=Path(path).stem, path=path) for path in data] or list(loaded.recipe.data.test)
    if not given:
        raise ConfigError(f"{run} remembers no test sources; name records with --data")
    tests = open_sources(given, plugins, cache=folder / "data")
    trained_on = open_sources([s for s in loaded.recipe.data.train if Path(s.path).exists()], plugins, cache=folder / "data")
    with TerminalListener() as listener:
        figures = measure_model(
            loaded.assembly,
            tests,
            trained_on=trained_on,
            output=folder,
            most=samples,
            listener=listener if first and not as_json else JobListener(),
            options=GenerationOptions(max_new_tokens=max_new_tokens, start_bias=start_bias),
            batch_size=batch_size,
            processes=shared,
        )
    if shared is not None:
        shared.accelerator.end_training()
    if not first:
        return
    (folder / "figures.json").write_text(json.dumps(figures, indent=1), "utf-8")
    if as_json:
        echo(json.dumps(figures))
        return
    print_summary(figures)
    echo(f"figures      {folder / 'figures.json'}")
