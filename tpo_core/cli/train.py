"""``tpo train``."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from tpo_core.errors import ConfigError


@click.command()
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--heads", metavar="A,B,...", help="Heads to train; see `tpo heads`. Default: those that the recipe names.")
@click.option("--config", type=click.Path(dir_okay=False, path_type=Path), help="A recipe (YAML).")
@click.option("--data", multiple=True, metavar="FILE", help="Records to train on, instead of a recipe; may be repeated.")
@click.option("--test", "tests", multiple=True, metavar="FILE", help="Records to test on; may be repeated.")
@click.option("--model", metavar="NAME", help="The multimodal LLM: a folder, or its name on the hub.")
@click.option(
    "--base",
    metavar="NAME",
    help="What the built-in recipe starts from: scratch (random weights) or a folder, instead of the model its package ships.",
)
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), help="Folder of the run. Default: runs/first.")
@click.option("--resume", is_flag=True, help="Go on with the run that the folder holds; a finished one is only reported.")
@click.option("--print-config", is_flag=True, help="Print the whole recipe, every option with its meaning, and stop.")
@click.option(
    "--dry-run", is_flag=True, help="Check model, data and every stage, tell what they cost, and train nothing. Needs no weights."
)
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def command(
    overrides: Sequence[str],
    heads: str | None,
    config: Path | None,
    data: Sequence[str],
    tests: Sequence[str],
    model: str | None,
    base: str | None,
    output: Path | None,
    resume: bool,
    print_config: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Train task heads on a multimodal LLM.

    With nothing but --heads it writes the built-in playground and a tiny model, and trains all stages on them in minutes. With --data
    and --model, or --config, it is the real thing. Options of the recipe are overridden by their path: stages.0.steps=50
    heads.region.weight=0.5; options of the built-in recipe by recipe.NAME: recipe.samples=500.
    """
    from tpo_core.config.show import format_recipe
    from tpo_core.jobs.recipes import default_recipe, own_data_recipe, read_recipe, split_options
    from tpo_core.plugins import load_plugins

    names = _names(heads)
    plugins = load_plugins()
    for name in names or ():
        plugins.head(name)
    options, rest = split_options(overrides)
    options |= {} if base is None else {"base": base}
    if options and (config is not None or data):
        named = "--base" if base is not None else f"recipe.{next(iter(options))}"
        raise ConfigError(f"{named} belongs to the built-in recipe; with --config or --data leave it out")
    folder = output or Path("runs/first")
    if config is not None:
        extra = [f"output={json.dumps(str(output))}"] if output is not None else []
        extra += [f"model.path={json.dumps(model)}"] if model is not None else []
        recipe = read_recipe(config, plugins, heads=names, overrides=[*rest, *extra])
    elif data:
        if model is None or names is None:
            raise ConfigError(
                "--data needs --model (a folder or hub name) and --heads; `tpo data base DIR` writes a tiny model to try with"
            )
        mapping = own_data_recipe(names, data=data, model=model, output=folder, test=tests)
        recipe = read_recipe(mapping, plugins, heads=None, overrides=rest)
    else:
        if names is None:
            raise ConfigError("name the heads to train: --heads region,temporal,mask; `tpo heads` lists those installed")
        if resume and not (overrides or options) and (folder / "summary.json").is_file():
            _show_finished(folder, as_json)
            return
        if model is not None:
            raise ConfigError("--model needs --data or --config; the built-in recipe takes --base FOLDER")
        mapping = default_recipe(names, folder, options, resume=resume, preview=print_config)
        recipe = read_recipe(mapping, plugins, heads=None, overrides=rest)
    if print_config:
        click.echo(format_recipe(recipe))
        return
    if dry_run:
        _dry_run(recipe, plugins, as_json=as_json)
        return
    from tpo_core.cli.launch import launch, processes_here

    count = processes_here(recipe.trainer.processes)
    if count > 1:
        # What was written above (the playground) is found by the processes as it is.
        launch(sys.argv[1:], count)
    _train(recipe, plugins, resume=resume, as_json=as_json)


def _dry_run(recipe: object, plugins: object, *, as_json: bool) -> None:
    from tpo_core.cli.dry_run import print_dry_run
    from tpo_core.config.recipe import Recipe
    from tpo_core.jobs.dry_run import DryRun
    from tpo_core.jobs.quiet import quiet_libraries
    from tpo_core.plugins import Plugins

    assert isinstance(recipe, Recipe)
    assert isinstance(plugins, Plugins)
    quiet_libraries()
    found = DryRun(recipe, plugins).run()
    if as_json:
        click.echo(json.dumps(found))
    else:
        print_dry_run(found)
    if not found["ok"]:
        click.get_current_context().exit(1)


def _train(recipe: object, plugins: object, *, resume: bool, as_json: bool) -> None:
    from tpo_core.cli.progress import TerminalListener, print_summary
    from tpo_core.config.recipe import Recipe
    from tpo_core.jobs.listen import JobListener
    from tpo_core.jobs.quiet import quiet_libraries
    from tpo_core.jobs.train import TrainJob
    from tpo_core.plugins import Plugins

    assert isinstance(recipe, Recipe)
    assert isinstance(plugins, Plugins)
    quiet_libraries()
    command = shlex.join(["tpo", *sys.argv[1:]])
    if as_json:
        click.echo(json.dumps(TrainJob(recipe, plugins, resume=resume, listener=JobListener(), command=command).run()))
        return
    with TerminalListener() as listener:
        summary = TrainJob(recipe, plugins, resume=resume, listener=listener, command=command).run()
    print_summary(summary)


def _show_finished(folder: Path, as_json: bool) -> None:
    summary = json.loads((folder / "summary.json").read_text("utf-8"))
    if as_json:
        click.echo(json.dumps(summary))
        return
    from tpo_core.cli.progress import print_summary

    click.echo(f"{folder} is finished; nothing to train")
    print_summary(summary)


def _names(heads: str | None) -> list[str] | None:
    if heads is None:
        return None
    names = [name.strip() for name in heads.split(",") if name.strip()]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"--heads names {twice[0]!r} twice; name each head once")
    if not names:
        raise ConfigError("--heads is empty; name heads such as region,temporal,mask")
    return names
