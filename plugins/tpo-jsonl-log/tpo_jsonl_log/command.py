"""`tpo log`: the newest steps of a log, and a curve of one metric."""

import json
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import click

from tpo_core.errors import TPOError
from tpo_jsonl_log import DEFAULT, VARIABLE

BARS = "▁▂▃▄▅▆▇█"


@click.command()
@click.argument("path", type=click.Path(path_type=Path), required=False)
@click.option("--metric", default="loss", show_default=True, help="Which metric to show.")
@click.option("--last", default=10, show_default=True, type=click.IntRange(min=1), help="How many of the newest steps to list.")
@click.option("--all", "everything", is_flag=True, help="Show all sessions of the log, not the newest alone.")
def log(path: Path | None, metric: str, last: int, everything: bool) -> None:
    """Show a training log that tpo-jsonl-log wrote: its newest steps, and a curve of one metric."""
    rows = read(path or Path(os.environ.get(VARIABLE) or DEFAULT))
    rows = rows if everything else [row for row in rows if row["session"] == rows[-1]["session"]]
    shown = [row for row in rows if metric in row]
    if not shown:
        known = sorted({name for row in rows for name in row} - {"session", "time", "step"})
        raise TPOError(f"no step has a metric {metric!r}; the log has {', '.join(known) or 'none'}")
    for row in shown[-last:]:
        click.echo(f"step {row['step']:>6}  {metric} {row[metric]:.4f}")
    values = [float(row[metric]) for row in shown]
    click.echo(f"{curve(values)}  {min(values):.4f} to {max(values):.4f} over {len(values)} steps")


def read(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a log. Raises `TPOError`: there is no such file, it is empty, or a line is not one of ours."""
    if not path.is_file():
        raise TPOError(f"{path}: no such log; train with {VARIABLE}={path}, or name another file")
    rows = []
    for number, text in enumerate(path.read_text("utf-8").splitlines(), 1):
        try:
            row = json.loads(text)
            rows.append({**row, "session": row["session"], "step": int(row["step"])})
        except (ValueError, TypeError, KeyError) as error:
            raise TPOError(f"{path}:{number}: not a line of a tpo-jsonl-log ({error}); name another file") from error
    if not rows:
        raise TPOError(f"{path}: the log is empty; no step has ended yet")
    return rows


def curve(values: list[float], width: int = 60) -> str:
    """Return the values as one line of bars; each bar is the mean of a stretch."""
    count = min(width, len(values))
    edges = [i * len(values) // count for i in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    return "".join(BARS[round((mean - low) / ((high - low) or 1.0) * (len(BARS) - 1))] for mean in means)
