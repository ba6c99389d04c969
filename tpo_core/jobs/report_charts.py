"""The report's charts: matplotlib figures as PNG bytes. No window is opened, and pyplot's global state is not touched."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tpo_core.canvas.board import PALETTE
from tpo_core.train.balance import owner_of

Row = Mapping[str, Any]
Series = tuple[list[float], list[float]]
"""Steps, values."""

COLOURS = tuple(
    "#{:02x}{:02x}{:02x}".format(*colour) for colour in (PALETTE[6], PALETTE[4], PALETTE[2], PALETTE[0], PALETTE[5], PALETTE[1])
)
INK, MUTED, GRID = "#222222", "#666666", "#e4e4e4"
SMOOTH = 0.04
"""Share of the run that the smoothed curve averages over."""
WIDTH = 9.4
"""Inches of a chart; a fifth of it is for the legend."""
LEGEND_LETTERS = 26
MOST_TERMS = 6
"""Terms of a head with curves of their own; more are summed into one."""


def loss_charts(rows: Sequence[Row], stages: Sequence[str]) -> dict[str, bytes]:
    """Return one picture for each owner of a loss (``lm``, ``assign``, each head), over all stages."""
    terms = [name for name in _names(rows) if _is_term(name)]
    owners = list(dict.fromkeys(owner_of(name) for name in terms))
    return {owner: _loss_chart(owner, [t for t in terms if owner_of(t) == owner], rows, stages) for owner in owners}


def rate_chart(rows: Sequence[Row], stages: Sequence[str]) -> bytes | None:
    """Return the learning rates of all groups; None where none was logged. Groups that always had the same rate share a line."""
    lines: dict[tuple[float, ...], list[str]] = {}
    for name in _names(rows):
        if name.startswith("lr/"):
            values = tuple(float(row.get(name, math.nan)) for row in rows)
            lines.setdefault(tuple(-1.0 if math.isnan(v) else v for v in values), []).append(name.removeprefix("lr/"))
    if not lines:
        return None
    figure, axes = _axes(2.7)
    steps = [float(row["step"]) for row in rows]
    for index, (values, groups) in enumerate(lines.items()):
        shown = [math.nan if value < 0 else value for value in values]
        axes.plot(steps, shown, color=COLOURS[index % len(COLOURS)], linewidth=1.6, label=", ".join(groups))
    axes.set_ylabel("learning rate")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    _mark_stages(axes, rows, stages)
    _legend(axes)
    return _png(figure)


def pull_charts(rows: Sequence[Row], stages: Sequence[str]) -> list[bytes]:
    """Return gradient norms and pairwise cosines on the shared weights, where they were measured."""
    pictures = []
    for prefix, label in (("pull/", "gradient norm"), ("cosine/", "cosine")):
        names = [name for name in _names(rows) if name.startswith(prefix)]
        if not names:
            continue
        figure, axes = _axes(3.2)
        for index, name in enumerate(names):
            steps, values = _series(rows, name)
            style = "-" if index < len(COLOURS) else "--"
            title = name.removeprefix(prefix).replace("/", " : ")
            look: dict[str, Any] = {"color": COLOURS[index % len(COLOURS)], "linewidth": 1.3, "marker": ".", "markersize": 4}
            for number, part in enumerate(_by_stage(steps, values, rows)):
                axes.plot(*part, style, label=title if number == 0 else None, **look)
        axes.set_ylabel(label)
        if prefix == "pull/":
            axes.set_yscale("log")
        else:
            axes.axhline(0, color=MUTED, linewidth=0.8)
        _mark_stages(axes, rows, stages)
        _legend(axes)
        pictures.append(_png(figure))
    return pictures


def heat_map(names: Sequence[str], values: Sequence[Sequence[float | None]], *, title: str, limit: float, rows: str, columns: str) -> bytes:
    """Return a square map of numbers from -limit (orange) over 0 (white) to limit (blue); None is left grey.

    Args:
        rows, columns: what the two sides are.
    """
    import numpy as np
    from matplotlib.colors import LinearSegmentedColormap

    side = 1.9 + 0.95 * len(names)
    figure = Figure(figsize=(side + 0.6, side), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    grid = np.array([[math.nan if v is None else v for v in line] for line in values], dtype=float)
    colours = LinearSegmentedColormap.from_list("signed", ["#d55e00", "#ffffff", "#0072b2"]).with_extremes(bad="#eeeeee")
    axes.imshow(grid, cmap=colours, vmin=-limit, vmax=limit)
    axes.set_xticks(range(len(names)), names, rotation=20, ha="right", color=INK)
    axes.set_yticks(range(len(names)), names, color=INK)
    axes.set_xlabel(columns, color=MUTED)
    axes.set_ylabel(rows, color=MUTED)
    axes.set_title(title, fontsize=11, color=INK)
    for spine in axes.spines.values():
        spine.set_visible(False)
    for i, line in enumerate(grid):
        for j, value in enumerate(line):
            text = "-" if math.isnan(value) else f"{value:+.2f}" if limit >= 0.2 else f"{value:+.3f}"
            strong = not math.isnan(value) and abs(value) > 0.6 * limit
            axes.text(j, i, text, ha="center", va="center", fontsize=10, color="white" if strong else INK)
    return _png(figure)


def _loss_chart(owner: str, terms: Sequence[str], rows: Sequence[Row], stages: Sequence[str]) -> bytes:
    figure, axes = _axes(3.0)
    shown = {_term(name): _series(rows, name, absent=0.0) for name in terms}
    if len(shown) > MOST_TERMS:
        shown = {"sum of its terms": _summed(rows, terms)}
    drawn = {label: series for label, series in shown.items() if series[0]}
    for index, (label, (steps, values)) in enumerate(drawn.items()):
        colour = COLOURS[index % len(COLOURS)]
        for number, part in enumerate(_by_stage(steps, values, rows)):
            axes.plot(*part, color=colour, linewidth=0.5, alpha=0.3)
            axes.plot(part[0], _smooth(part[1], len(rows)), color=colour, linewidth=1.8, label=label if number == 0 else None)
    positive = [v for _, values in drawn.values() for v in values if v > 0]
    if positive and max(positive) / min(positive) > 50:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.set_ylabel("loss per count")
    axes.set_title(owner, loc="left", fontsize=11, color=INK, pad=26)
    _mark_stages(axes, rows, stages)
    if len(drawn) > 1 or len(terms) > MOST_TERMS:
        _legend(axes)
    return _png(figure)


def _names(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


_OTHERS = ("lr/", "muon/", "pull/", "cosine/", "factor/")


def _is_term(name: str) -> bool:
    return name in ("lm", "assign") or ("/" in name and not name.startswith(_OTHERS))


def _term(name: str) -> str:
    return name.partition("/")[2] or name


def _series(rows: Sequence[Row], name: str, *, absent: float | None = None) -> Series:
    """Return the steps at which a value is known; `absent` stands for a step in which nothing counted."""
    found = [(float(row["step"]), float(row[name])) for row in rows if row.get(name) is not None and row[name] != absent]
    return [step for step, _ in found], [value for _, value in found]


def _by_stage(steps: Sequence[float], values: Sequence[float], rows: Sequence[Row]) -> list[Series]:
    """Return the curve in pieces, one for each stage: nothing is drawn across a stage in which nothing counted."""
    stage_at = {float(row["step"]): row.get("stage") for row in rows}
    parts: dict[Any, Series] = {}
    for step, value in zip(steps, values, strict=True):
        part = parts.setdefault(stage_at[step], ([], []))
        part[0].append(step)
        part[1].append(value)
    return list(parts.values())


def _summed(rows: Sequence[Row], names: Sequence[str]) -> Series:
    sums = [{"step": row["step"], "sum": sum(float(row.get(name) or 0.0) for name in names)} for row in rows]
    return _series(sums, "sum", absent=0.0)


def _smooth(values: Sequence[float], rows: int) -> list[float]:
    """Return a running mean over about `SMOOTH` of the run, as many values before as after."""
    half = max(1, round(rows * SMOOTH / 2))
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    last = len(values)
    out = []
    for i in range(last):
        reach = min(half, i, last - 1 - i)
        out.append((sums[i + reach + 1] - sums[i - reach]) / (2 * reach + 1))
    return out


def _axes(height: float) -> tuple[Figure, Axes]:
    """Return axes at the same place of every figure, so that charts above one another share their time axis."""
    figure = Figure(figsize=(WIDTH, height), dpi=110)
    axes = figure.add_axes((0.075, 0.42 / height, 0.7, 1 - 1.04 / height))
    axes.set_xlabel("optimiser step", color=MUTED, fontsize=9)
    axes.yaxis.label.set_color(MUTED)
    axes.yaxis.label.set_fontsize(9)
    axes.tick_params(colors=MUTED, labelsize=8)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(GRID)
    return figure, axes


def _mark_stages(axes: Axes, rows: Sequence[Row], stages: Sequence[str]) -> None:
    """Draw a line where a stage begins, with its name; the x axis covers the whole run, so that charts can be compared."""
    last = float(rows[-1]["step"])
    axes.set_xlim(0, last)
    before, high = -last, False
    for name in stages:
        first = next((float(row["step"]) - 1 for row in rows if row.get("stage") == name), None)
        if first is None:
            continue
        # Two names side by side would run into one another: the second stands higher.
        high = not high and first - before < last * 0.14
        before = first
        axes.axvline(first, color=MUTED, linewidth=0.7, linestyle=":")
        place, shift = (first, 1.0), (3, 13 if high else 3)
        axes.annotate(name, place, xycoords=("data", "axes fraction"), xytext=shift, textcoords="offset points", fontsize=8, color=MUTED)


def _legend(axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    folded = [textwrap.fill(label, LEGEND_LETTERS) for label in labels]
    axes.legend(handles, folded, fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), labelcolor=INK)


def _png(figure: Figure) -> bytes:
    memory = io.BytesIO()
    figure.savefig(memory, format="png", metadata={"Software": None})
    return memory.getvalue()
