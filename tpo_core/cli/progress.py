"""What a job shows on a terminal: bars with loss, throughput and time left, and tables; plain lines where the output is no terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tpo_core.cli.output import PIPE_COLUMNS, echo, print_table, printable
from tpo_core.data.mixture import Share
from tpo_core.jobs.listen import JobListener
from tpo_core.train import StagePlan, StepReport

LINE_SECONDS = 10.0
"""Where the output is no terminal, a line every so many seconds."""


class TerminalListener(JobListener):
    """Draws a job. Use as a context, so that the bars are closed whatever happens."""

    def __init__(self) -> None:
        self._terminal = sys.stdout.isatty()
        self._console = Console(width=None if self._terminal else PIPE_COLUMNS, highlight=False, markup=False)
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._total = self._done = 0
        self._label = ""
        self._told = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._close()

    def say(self, text: str) -> None:
        self._console.print(printable(text), soft_wrap=True)

    def mixture(self, stage: str, shares: Sequence[Share]) -> None:
        rows = [[s.source, f"{s.size:,}", f"{s.samples:,}", f"{s.share:.1%}", f"{s.epochs:.2f}"] for s in shares]
        print_table(["source", "records", "drawn", "share", "epochs"], rows, title=f"stage {stage}")

    def frozen(self, stage: str, names: Sequence[str]) -> None:
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            self.say(f"frozen, for no path of this stage reaches them: {', '.join(names[:3])}{more}")

    def stage_begins(self, plan: StagePlan) -> None:
        trained = ", ".join(f"{group} {count:,} at {plan.rates[group]:g}" for group, count in plan.trained.items())
        self.say(f"trains {trained}")
        self._begin(f"stage {plan.name}", plan.steps, plan.first)

    def step_ends(self, report: StepReport) -> None:
        m = report.metrics
        text = f"loss {m['loss']:.3f}  {m['samples_per_s']:.1f} samples/s  {m['tokens_per_s']:.0f} tokens/s"
        self._advance(1, text)

    def checkpoint_saved(self, path: Path) -> None:
        if not self._terminal:
            self.say(f"saved {path}")

    def stage_ends(self, plan: StagePlan) -> None:
        self._close()

    def evaluation_begins(self, records: int) -> None:
        self._begin("held-out", records, 0)

    def evaluated(self, records: int) -> None:
        self._advance(records, "")

    def evaluation_ends(self, figures: Mapping[str, object]) -> None:
        self._close()

    def _begin(self, label: str, total: int, first: int) -> None:
        self._close()
        self._label, self._total, self._done, self._told = label, total, first, time.monotonic()
        if not self._terminal:
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=self._console)
        self._progress.start()
        self._task = self._progress.add_task(label, total=total, completed=first, text="")

    def _advance(self, count: int, text: str) -> None:
        self._done += count
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=self._done, text=text)
            return
        now = time.monotonic()
        if now - self._told >= LINE_SECONDS or self._done >= self._total:
            self._told = now
            self.say(f"{self._label}: {self._done}/{self._total}  {text}".rstrip())

    def _close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = self._task = None


def print_summary(summary: Mapping[str, Any]) -> None:
    """Print each head's figures beside chance, the conversation beside words alone, the choice of heads, and where the files are."""
    rows = []
    for name, figures in sorted(summary.get("heads", {}).items()):
        chance = summary.get("chance", {}).get(name, {})
        for metric, value in figures.items():
            rows.append([name, metric, f"{value:.3f}", _figure(chance.get(metric))])
    if rows:
        print_table(["head", "metric", "held-out", "chance"], rows, title="heads")
    talk = [[name, f"{value:.3f}", _figure(summary.get("blind", {}).get(name))] for name, value in summary.get("conversation", {}).items()]
    if talk:
        print_table(["conversation", "held-out", "blind"], talk, title="conversation (blind: from the question's words alone)")
    _print_assignment(summary.get("assignment") or {})
    _print_stages(summary)
    if summary.get("bad_records") or summary.get("bad_rows"):
        echo(f"{summary.get('bad_rows', 0)} bad rows while training, {summary.get('bad_records', 0)} bad test records")
    if "seconds" in summary:
        echo(f"{summary['seconds']:.0f} s, peak memory {summary['peak_rss_bytes'] / 2**30:.2f} GiB")
    for path in summary.get("files", {}).get("pictures", [])[:1]:
        echo(f"picture      {path}")
    if "output" in summary and (Path(summary["output"]) / "report.html").is_file():
        echo(f"report       {Path(summary['output']) / 'report.html'}")
    if "output" in summary:
        echo(f"run          {summary['output']}  (figures in summary.json, one line per test record in predictions.jsonl)")


def _print_assignment(assignment: Mapping[str, Any]) -> None:
    """Print how often exactly the right heads were called, none for a question in words."""
    if not assignment:
        return
    rows = [[name, f"{value:.3f}", ""] for name, value in assignment["sources"].items()]
    rows.append(["all questions", f"{assignment['right']:.3f}", f"{assignment['blind']:.3f}"])
    print_table(["right head called", "held-out", "always in words"], rows, title="assignment")


def _print_stages(summary: Mapping[str, Any]) -> None:
    """Print what each stage left: each head's main metric, and the conversation. What a later stage cost stands in the columns."""
    stages = summary.get("stages", {})
    if not stages:
        return
    rows = [
        [f"{head} {metric}", *(_figure(figures["heads"].get(head, {}).get(metric)) for figures in stages.values())]
        for head, metric in summary.get("primary", {}).items()
    ]
    rows += [[name, *(_figure(figures["conversation"].get(name)) for figures in stages.values())] for name in summary["conversation"]]
    rows.append(["right head called", *(_figure(figures.get("assignment", {}).get("right")) for figures in stages.values())])
    print_table(["held-out, after stage", *stages], rows, title="stages")


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
