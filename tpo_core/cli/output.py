"""What the command line prints. Text that came from files, packages or models is escaped first, so that it cannot drive the terminal."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Sequence

import click

_KEPT = "\n\t"
_UNSAFE = {"Cc", "Cs", "Zl", "Zp"}
_DIRECTIONS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")

PIPE_COLUMNS = 200
"""Width of a table where the output is no terminal (a pipe, a file)."""


def printable(text: str) -> str:
    r"""Return the text with control characters, writing directions and lone surrogates as ``\x1b``, ``\u202e``; new lines and tabs stay."""
    return "".join(_escape(char) if _is_unsafe(char) else char for char in text)


def echo(text: str, *, err: bool = False) -> None:
    """Print one escaped text and a new line."""
    click.echo(printable(text), err=err)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, title: str | None = None) -> None:
    """Print a table; every cell is escaped, no markup is read."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for column in columns:
        table.add_column(Text(printable(column)), overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    Console(width=None if sys.stdout.isatty() else PIPE_COLUMNS, highlight=False).print(table)


def error_text(error: BaseException) -> str:
    """Return an exception's message with its notes (whose plugin it came from) in brackets."""
    notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
    return f"{error}{notes}"


def _is_unsafe(char: str) -> bool:
    return char not in _KEPT and (unicodedata.category(char) in _UNSAFE or char in _DIRECTIONS)


def _escape(char: str) -> str:
    return char.encode("unicode_escape", "surrogatepass").decode("ascii")
