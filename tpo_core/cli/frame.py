"""The group behind `tpo`: a command's module is imported when it runs, a plugin's too; `--help` reads this table and metadata only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import click

from tpo_core.contract import COMMAND_GROUP
from tpo_core.errors import PluginBroken, TPOError, did_you_mean
from tpo_core.plugins.discover import Found, find_commands


@dataclass(frozen=True)
class Lazy:
    """A command of ours: `module` holds a click command named ``command``; `summary` is what `tpo --help` shows."""

    module: str
    summary: str

    def load(self) -> click.Command:
        command: click.Command = import_module(self.module).command
        return command


class LazyGroup(click.Group):
    """A click group over a table of lazy commands, and the commands that installed packages add.

    Args:
        table: name -> command of ours; these win over a plugin's of the same name.
    """

    def __init__(self, *args: Any, table: Mapping[str, Lazy], **options: Any) -> None:  # options: click's own, handed on to click
        super().__init__(*args, **options)
        self.table = table

    def added(self) -> dict[str, Found]:
        """Return the commands that packages add, from metadata only."""
        return {name: found for name, found in find_commands(COMMAND_GROUP).items() if name not in self.table}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self.table, *self.added()]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in self.table:
            return self.table[cmd_name].load()
        found = self.added().get(cmd_name)
        return load_added(found) if found is not None else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, lazy.summary) for name, lazy in self.table.items()])
        added = [(name, f"from {found.package} {found.version}") for name, found in self.added().items()]
        if added:
            with formatter.section("Commands of installed packages"):
                formatter.write_dl(added)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in self.table and name not in self.added() and not name.startswith("-"):
            raise click.UsageError(f"there is no command {name!r}.{did_you_mean(name, self.list_commands(ctx))}", ctx)
        return super().resolve_command(ctx, args)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take ``--debug`` wherever it stands (before ``--``), so that it can be added to the end of a command that failed."""
        end = args.index("--") if "--" in args else len(args)
        wanted = "--debug" in args[:end]
        ctx.meta["tpo.debug"] = wanted
        return super().parse_args(ctx, [arg for i, arg in enumerate(args) if i >= end or arg != "--debug"])

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. What this package raises on purpose becomes one message on stderr and exit code 1."""
        try:
            return super().invoke(ctx)
        except TPOError as error:
            if ctx.meta["tpo.debug"]:
                raise
            from tpo_core.cli.output import echo, error_text

            echo(f"Error: {error_text(error)}", err=True)
            ctx.exit(1)


def load_added(found: Found) -> click.Command:
    """Import a command that a package adds.

    Raises:
        PluginBroken: it does not import (the cause is chained), or is no click command.
    """
    from importlib.metadata import EntryPoint

    from tpo_core.plugins.load import one_line

    who = f"command {found.name!r} ({found.package} {found.version})"
    try:
        command = EntryPoint(found.name, found.target, found.group).load()
    except Exception as error:
        raise PluginBroken(f"{who}: importing {found.target} raised {one_line(error)}") from error
    if not isinstance(command, click.Command):
        raise PluginBroken(f"{who}: {found.target} is {type(command).__name__}, expected a click command")
    return command
