"""What ``tpo train --dry-run`` prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tpo_core.cli.output import echo, print_table

_GIB = 2**30


def print_dry_run(found: Mapping[str, Any]) -> None:
    """Print what `tpo_core.jobs.dry_run.DryRun.run` returned."""
    model = found["model"]
    if model["built"]:
        parts = ", ".join(f"{group} {short(count)}" for group, count in model["parameters"].items() if count)
        echo(f"model {model['path']} ({model['type']}, {model['dtype']}): {parts}")
    rows = [
        [f"{s['split']} {s['name']}", s["path"], _count(s["records"]), f"{s['usable']}/{s['checked']}", _tokens(s["size"])]
        for s in found["sources"]
    ]
    if rows:
        print_table(["source", "file", "records", "usable of the first", "tokens"], rows, title="data")
    for stage in found["stages"]:
        _print_stage(stage)
    for source in found["sources"]:
        if source["usable"]:
            for fault in source["faults"]:
                echo(f"set aside: {fault}")
    for note in found["notes"]:
        echo(f"note: {note}")
    for problem in found["problems"]:
        echo(f"problem: {problem}")
    echo("ready to train" if found["ok"] else f"{len(found['problems'])} problems; a run would stop at the first")


def _print_stage(stage: Mapping[str, Any]) -> None:
    steps = "steps unknown until all sources are there" if stage["steps"] is None else f"{stage['steps']:,} steps"
    title = f"stage {stage['name']}: {steps} of {stage['batch_size']}, {stage['micro_batch']} at a time"
    rows = [
        [s["source"], _count(s["size"]), _count(s["samples"]), _share(s["share"]), "-" if s["epochs"] is None else f"{s['epochs']:.2f}"]
        for s in stage["mixture"]
    ]
    print_table(["source", "records", "drawn", "share", "epochs"], rows, title=title)
    if "parameters" not in stage:
        return
    counts = [
        [group, short(n["trained"]), short(n["frozen"]), f"{stage['rates'][group]:g}" if group in stage["rates"] else "-"]
        for group, n in stage["parameters"].items()
    ]
    total = {key: sum(n[key] for n in stage["parameters"].values()) for key in ("trained", "frozen")}
    counts.append(["all", short(total["trained"]), short(total["frozen"]), ""])
    print_table(["group", "trained", "frozen", "learning rate"], counts)
    memory = ", ".join(f"{name} {size(value)}" for name, value in stage["memory"].items())
    known = [value for value in stage["memory"].values() if value is not None]
    echo(f"memory  {memory}: {size(sum(known))}")
    work = stage["operations"]
    if work is not None:
        parts = ", ".join(f"{name} {short(work[name])}" for name in ("vision", "connector", "language") if work[name])
        whole = "" if work["stage"] is None else f"; the stage {short(work['stage'])}"
        echo(f"FLOPs   {short(work['step'])} per step ({parts}){whole}")


def short(value: float) -> str:
    """Return a number in four figures at most: 7.62G, 340M, 12.5k."""
    for limit, letter in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g}{letter}"
    return f"{value:.3g}"


def size(value: int | None) -> str:
    """Return bytes in GiB, or in MiB below a tenth of one."""
    if value is None:
        return "not known"
    return f"{value / _GIB:.2f} GiB" if value >= _GIB / 10 else f"{value / 2**20:.1f} MiB"


def _count(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"


def _share(value: float | None) -> str:
    return "?" if value is None else f"{value:.1%}"


def _tokens(size: Mapping[str, float] | None) -> str:
    return "-" if size is None else f"{size['tokens']:.0f} (longest {size['longest']:.0f})"
