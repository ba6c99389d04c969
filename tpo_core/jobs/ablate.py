"""``tpo ablate``: the same recipe with one thing changed per row, several seeds each, side by side; what is done is not run again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tpo_core.config import Recipe
from tpo_core.errors import ConfigError
from tpo_core.jobs.ablate_plan import PlannedRun, RowConfig, choose_rows, plan_run, standard_rows, with_sources
from tpo_core.jobs.ablate_records import Codecs, Keep, has_text, write_records
from tpo_core.jobs.ablate_table import Cell, collect, write_table
from tpo_core.jobs.assembly import assemble, layouts_of, load_heads
from tpo_core.jobs.dry_run import DryRun
from tpo_core.jobs.recipes import read_recipe
from tpo_core.jobs.sources import OpenSource, open_sources
from tpo_core.plugins import Plugins
from tpo_core.train import stage_steps

SUMMARY = "summary.json"
SPEC = "spec.json"
POLL_SECONDS = 0.2

Say = Callable[[str], None]


@dataclass
class Ablation:
    """An ablation of a recipe.

    Args:
        recipe: what all rows share. plugins: what is installed.
        output: folder of all runs and of the table.
        rows: the rows; None: the standard ones. chosen: names of those to run; none: all.
        seeds: every row runs with each. scale: factor of all stages' steps.
        jobs: runs at a time.
        command: what started this, for the table.
        say: told how far it is.
    """

    recipe: Recipe
    plugins: Plugins
    output: Path
    rows: Sequence[RowConfig] | None = None
    chosen: Sequence[str] = ()
    seeds: Sequence[int] = (0,)
    scale: float = 1.0
    jobs: int = 1
    command: str = ""
    say: Say = field(default=lambda _: None)

    def __post_init__(self) -> None:
        self._written: dict[tuple[str, str, Keep], int] = {}

    def plan(self) -> list[PlannedRun]:
        """Return every run, rows in the table's order; nothing is written.

        Raises:
            TPOError: the model, the records or a row of the table is wrong.
        """
        recipe = self.recipe
        heads = load_heads(self.plugins, recipe.heads)
        self._codecs: Codecs = assemble(recipe, heads, layouts=layouts_of(self.plugins), meta=True).codecs
        written = [name for name in recipe.heads if has_text(self._codecs[name])]
        rows = choose_rows(self.rows or standard_rows(tuple(recipe.heads), written), self.chosen)
        for row in rows:
            if bad := [name for name in row.textual if name in recipe.heads and name not in written]:
                raise ConfigError(
                    f"row {row.name!r}: the answers of head {bad[0]!r} cannot be written as text (its codec has no to_text and from_text); "
                    f"those of {', '.join(written) or 'no head of this recipe'} can"
                )
        self._train = open_sources(recipe.data.train, self.plugins, cache=self.output / "data")
        self._test = open_sources(recipe.data.test, self.plugins, cache=self.output / "data")
        steps = {}
        for stage in recipe.stages:
            size = sum(s.size for s in self._train if stage.sources is None or stage.sources.get(s.name, 0.0) > 0)
            steps[stage.name] = max(1, round(stage_steps(stage, size) * self.scale))
        if not steps:
            raise ConfigError("the recipe has no stages, so there is nothing to compare; add stages")
        if not self._test:
            raise ConfigError("the recipe has no test sources, so there is nothing to compare; add data.test")
        return [plan_run(recipe, row, seed, self.plugins, output=self.output, steps=steps) for row in rows for seed in self.seeds]

    def run(self) -> dict[str, Any]:
        """Run what is not done yet, write the table, and return it, JSON-ready.

        A run that fails leaves its row without that seed; the others go on, and ``failed`` lists it.

        Raises:
            TPOError: as `plan` and `prepare`, before the first run begins.
        """
        runs = self.plan()
        done = [run for run in runs if (run.folder / SUMMARY).is_file()]
        if done:
            self.say(f"done already: {len(done)} of {_runs(len(runs))}")
        left = [run for run in runs if run not in done]
        specs = self.prepare(left)
        failed = self._work(left, specs)
        cells = collect([(run.row.name, run.seed, run.folder) for run in runs])
        return write_table(
            self.output,
            cells,
            rows=list(dict.fromkeys(run.row.name for run in runs)),
            heads=list(self.recipe.heads),
            failed=failed,
            command=self.command,
            seeds=self.seeds,
        )

    def prepare(self, runs: Sequence[PlannedRun]) -> dict[Path, Path]:
        """Write what these runs read, and look at each row as ``tpo train --dry-run`` does, before hours are spent on another.

        Returns:
            folder of a run -> its specification.

        Raises:
            ConfigError: rows would not run; all of them are named.
        """
        specs = {run.folder: self._prepare(run) for run in runs}
        rows = {run.row.name: run for run in runs}
        faults: dict[str, list[str]] = {}
        for row, run in rows.items():
            spec = json.loads(specs[run.folder].read_text("utf-8"))
            found = DryRun(read_recipe(spec["recipe"], self.plugins, heads=None, overrides=()), self.plugins).run()
            for problem in found["problems"]:
                faults.setdefault(problem, []).append(row)
        if faults:
            raise ConfigError("\n".join(f"{_named(bad, len(rows))}: {problem}" for problem, bad in faults.items()))
        return specs

    def _prepare(self, run: PlannedRun) -> Path:
        """Write a run's records and its specification."""
        files: dict[str, dict[str, Path]] = {"train": {}, "test": {}}
        roots: dict[str, Path] = {}
        for split, sources in (("train", self._train), ("test", self._test)):
            for source in sources:
                roots[f"{split}/{source.name}"] = source.root.resolve()
                if self._write(source, split, run.keep):
                    files[split][source.name] = self._records(source, split, run.keep)
        recipe = with_sources(run.recipe, files["train"], files["test"], roots)
        path = run.folder.with_name(f"{run.folder.name}.{SPEC}")
        path.parent.mkdir(parents=True, exist_ok=True)
        spec = {"recipe": recipe, "textual": sorted(run.keep.textual), "command": f"{self.command} (row {run.row.name}, seed {run.seed})"}
        path.write_text(json.dumps(spec, indent=1), "utf-8")
        return path

    def _records(self, source: OpenSource, split: str, keep: Keep) -> Path:
        return (self.output / "records" / keep.label / f"{split}-{source.name}.jsonl").resolve()

    def _write(self, source: OpenSource, split: str, keep: Keep) -> int:
        key = (source.name, split, keep)
        if key not in self._written:
            self._written[key] = write_records(source, self._records(source, split, keep), keep, self._codecs, test=split == "test")
        return self._written[key]

    def _work(self, runs: Sequence[PlannedRun], specs: dict[Path, Path]) -> dict[str, str]:
        """Run processes side by side; return ``row, seed`` -> why it failed."""
        waiting, failed = list(runs), dict[str, str]()
        working: list[tuple[PlannedRun, subprocess.Popen[bytes], float]] = []
        try:
            while waiting or working:
                while waiting and len(working) < self.jobs:
                    run = waiting.pop(0)
                    self.say(f"begins: {run.row.name}, seed {run.seed}")
                    working.append((run, _start(specs[run.folder]), time.monotonic()))
                time.sleep(POLL_SECONDS)
                for one in [one for one in working if one[1].poll() is not None]:
                    working.remove(one)
                    run, process, began = one
                    took = f"{time.monotonic() - began:.0f} s, {_runs(len(waiting) + len(working))} left"
                    if process.returncode == 0:
                        self.say(f"done:   {run.row.name}, seed {run.seed} ({took})")
                        continue
                    reason = _last_line(log_of(specs[run.folder])) or f"exit code {process.returncode}"
                    failed[f"{run.row.name}, seed {run.seed}"] = reason
                    self.say(f"failed: {run.row.name}, seed {run.seed} ({took}): {reason}")
        finally:
            for _, process, _ in working:
                process.terminate()
                process.wait()
        return failed


def _runs(number: int) -> str:
    return f"{number} run" if number == 1 else f"{number} runs"


def _named(rows: Sequence[str], total: int) -> str:
    """Return the rows that share a fault, for its sentence."""
    if len(rows) == 1:
        return f"row {rows[0]!r}"
    return "every row" if len(rows) == total else f"rows {', '.join(map(repr, rows))}"


def log_of(spec: Path) -> Path:
    """Return where a run's process writes."""
    return spec.with_name(spec.name.replace(f".{SPEC}", ".log"))


def _start(spec: Path) -> subprocess.Popen[bytes]:
    # One thread per run; a row that trains on a GPU does not mind.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log_of(spec).open("ab") as log:
        return subprocess.Popen([sys.executable, "-m", "tpo_core.jobs.ablate_worker", str(spec)], stdout=log, stderr=log, env=environment)


def _last_line(path: Path) -> str:
    lines = [line.strip() for line in path.read_text("utf-8", errors="replace").splitlines() if line.strip()] if path.is_file() else []
    return lines[-1][:300] if lines else ""


__all__ = ["Ablation", "Cell", "log_of"]
