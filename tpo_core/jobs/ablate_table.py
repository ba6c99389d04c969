"""From finished runs to a table: mean and spread over seeds, as Markdown, JSON and a picture."""

from __future__ import annotations

import io
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from tpo_core.jobs.report_charts import COLOURS, GRID, INK, MUTED
from tpo_core.runs import package_versions

CHANCE = "chance, blind"
"""The row of what an answer scores that looks at nothing."""
CALLED = "right head called"
"""The column of assignment: exactly the right heads, none for a question in words."""
COST = {"steps": "steps", "cpu_seconds": "CPU s"}


@dataclass(frozen=True)
class Cell:
    """What one run of a row reached.

    Args:
        row, seed: which. summary: of the run.
    """

    row: str
    seed: int
    summary: Mapping[str, Any]


def collect(runs: Sequence[tuple[str, int, Path]]) -> list[Cell]:
    """Return the finished runs of (row, seed, folder)."""
    cells = []
    for row, seed, folder in runs:
        path = folder / "summary.json"
        if path.is_file():
            cells.append(Cell(row, seed, json.loads(path.read_text("utf-8"))))
    return cells


def write_table(
    output: Path,
    cells: Sequence[Cell],
    *,
    rows: Sequence[str],
    heads: Sequence[str],
    failed: Mapping[str, str],
    command: str,
    seeds: Sequence[int],
) -> dict[str, Any]:
    """Write ``table.json``, ``table.md`` and ``table.png`` and return what the first holds."""
    columns = _columns(cells, heads)
    values = {
        row: {column: [v for cell in cells if cell.row == row and (v := _value(cell.summary, column)) is not None] for column in columns}
        for row in rows
    }
    table = {
        "command": command,
        "seeds": list(seeds),
        "versions": package_versions(),
        "columns": columns,
        "rows": [
            {
                "row": row,
                "seeds": [cell.seed for cell in cells if cell.row == row],
                "values": {column: _spread(found) for column, found in values[row].items()},
                "cost": {key: _spread([float(cell.summary.get(key, 0.0)) for cell in cells if cell.row == row]) for key in COST},
            }
            for row in rows
        ],
        "chance": {column: _chance(cells, column) for column in columns},
        "failed": dict(failed),
        "files": {name: str(output / f"table.{name}") for name in ("json", "md", "png")},
    }
    output.mkdir(parents=True, exist_ok=True)
    (output / "table.json").write_text(json.dumps(table, indent=1), "utf-8")
    (output / "table.md").write_text(as_markdown(table), "utf-8")
    (output / "table.png").write_bytes(as_picture(table))
    return table


def as_markdown(table: Mapping[str, Any]) -> str:
    """Return the table with what it takes to read it honestly."""
    columns: Sequence[str] = table["columns"]
    lines = [
        f"| row | seeds | {' | '.join(_cell(c) for c in columns)} | {' | '.join(COST.values())} |",
        f"|---|{'---:|' * (len(columns) + 1 + len(COST))}",
    ]
    for row in table["rows"]:
        figures = [_shown(row["values"][column]) for column in columns]
        cost = ["-" if row["cost"][key] is None else f"{row['cost'][key]['mean']:,.0f}" for key in COST]
        lines.append(f"| {_cell(row['row'])} | {len(row['seeds'])} | {' | '.join([*figures, *cost])} |")
    blind = ["-" if table["chance"][column] is None else f"{table['chance'][column]:.3f}" for column in columns]
    lines.append(f"| {CHANCE} | | {' | '.join([*blind, *([''] * len(COST))])} |")
    notes = [
        f"Command: `{table['command'].replace('`', chr(39))}`" if table["command"] else "",
        f"Seeds {', '.join(map(str, table['seeds']))}. Mean over seeds; ± is the sample standard deviation, absent with one seed. Seeds "
        "differ in new weights and in the order of the data, not in the base model or the records, so the true spread is wider.",
        "Every row has the same recipe, records, batch sizes and optimiser steps, except that a stage without anything to learn from is "
        "left out (see the steps). `-`: not trained and so not asked.",
        "; ".join(f"{name} {version}" for name, version in table["versions"].items()),
        *(f"Failed: {_cell(name)}: {_cell(reason)}" for name, reason in table["failed"].items()),
    ]
    return "\n".join([*lines, "", *(f"{note}\n" for note in notes if note)])


def as_picture(table: Mapping[str, Any]) -> bytes:
    """Return the table drawn: a panel for each column, a bar to each row's mean, a dot for each seed, chance as a dotted line."""
    columns, rows = table["columns"], table["rows"]
    figure = Figure(figsize=(2.6 + 1.9 * max(len(columns), 1), 1.3 + 0.32 * len(rows)), dpi=110, layout="constrained")
    panels = figure.subplots(1, max(len(columns), 1), sharey=True, squeeze=False)[0]
    places = list(range(len(rows)))[::-1]
    for index, (axes, column) in enumerate(zip(panels, columns, strict=False)):
        colour = COLOURS[index % len(COLOURS)]
        for place, row in zip(places, rows, strict=True):
            found = row["values"][column]
            if found is None:
                axes.text(0.01, place, "not trained", va="center", fontsize=7, color=MUTED)
                continue
            axes.barh(place, found["mean"], height=0.62, color=colour, alpha=0.35)
            axes.plot(found["values"], [place] * len(found["values"]), "o", color=colour, markersize=4)
        chance = table["chance"][column]
        if chance is not None:
            axes.axvline(chance, color=MUTED, linestyle=":", linewidth=1.2)
        axes.set_xlim(0, 1)
        axes.set_title(column.replace(" ", "\n", 1), fontsize=9, color=INK)
        axes.tick_params(labelsize=8, colors=INK)
        axes.grid(axis="x", color=GRID)
        axes.set_axisbelow(True)
        for side, spine in axes.spines.items():
            spine.set_visible(side == "left")
            spine.set_color(GRID)
    panels[0].set_yticks(places, [row["row"] for row in rows])
    figure.supxlabel("mean over seeds (bar), each seed (dot), chance or blind (dotted)", fontsize=8, color=MUTED)
    memory = io.BytesIO()
    figure.savefig(memory, format="png", metadata={"Software": None})
    return memory.getvalue()


def _columns(cells: Sequence[Cell], heads: Sequence[str]) -> list[str]:
    primary = {head: metric for cell in cells for head, metric in cell.summary.get("primary", {}).items()}
    talk = dict.fromkeys(name for cell in cells for name in cell.summary.get("conversation", {}))
    called = [CALLED] if any(cell.summary.get("assignment") for cell in cells) else []
    return [*(f"{head} {primary[head]}" for head in heads if head in primary), *called, *sorted(talk)]


def _value(summary: Mapping[str, Any], column: str) -> float | None:
    return _look_up(summary, column, "heads", "conversation", "right")


def _chance(cells: Sequence[Cell], column: str) -> float | None:
    """Return the chance (of a head) or blind (of conversation) figure; rows agree on it where they are asked the same."""
    found = [value for cell in cells if (value := _look_up(cell.summary, column, "chance", "blind", "blind")) is not None]
    return statistics.fmean(found) if found else None


def _look_up(summary: Mapping[str, Any], column: str, of_heads: str, of_talk: str, of_choice: str) -> float | None:
    head, _, metric = column.partition(" ")
    if column == CALLED:
        value = summary.get("assignment", {}).get(of_choice)
    elif metric:
        value = summary.get(of_heads, {}).get(head, {}).get(metric)
    else:
        value = summary.get(of_talk, {}).get(column)
    return None if value is None or math.isnan(value) else float(value)


def _spread(values: Sequence[float]) -> dict[str, Any] | None:
    if not values:
        return None
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "deviation": deviation, "values": list(values)}


def _shown(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "-"
    return f"{found['mean']:.3f}" if found["deviation"] is None else f"{found['mean']:.3f} ± {found['deviation']:.3f}"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
