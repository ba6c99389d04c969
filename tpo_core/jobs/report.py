"""``report.html``: what a run did and reached, on one page that needs nothing else and runs nothing.

Pictures are embedded, there is no script, and every text (questions, answers, names, the command) is escaped by the template.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2

from tpo_core.config.recipe import Recipe
from tpo_core.config.show import format_recipe
from tpo_core.errors import TPOError
from tpo_core.jobs.report_answers import Row, show_answers, show_talk
from tpo_core.jobs.report_charts import loss_charts, pull_charts, rate_chart
from tpo_core.jobs.sources import OpenSource, stage_mixture
from tpo_core.model.build import Assembly
from tpo_core.runs import RunInfo
from tpo_core.runs.metrics import MetricsLog
from tpo_core.train import stage_steps

REPORT = "report.html"


@dataclass(frozen=True)
class RunStory:
    """What a report is made of.

    Args:
        recipe, info, summary: of the run. command: what started it.
        rows: of ``metrics.jsonl``. predictions: lines of ``predictions.jsonl``.
        train, tests: the opened sources.
        assembly: the last stage's model; only its codecs and heads' metrics and drawings are used.
    """

    recipe: Recipe
    info: RunInfo
    summary: Mapping[str, Any]
    command: str
    rows: Sequence[Row]
    predictions: Sequence[Row]
    train: Sequence[OpenSource]
    tests: Sequence[OpenSource]
    assembly: Assembly
    quarantined: Sequence[Row] = field(default_factory=tuple)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a JSON-lines file; none where it is not there."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]


def write_report(output: Path, story: RunStory) -> Path:
    """Write ``report.html`` into a run's folder and return its path."""
    path = output / REPORT
    path.write_text(render_report(story), "utf-8")
    return path


def render_report(story: RunStory) -> str:
    """Return the page."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tpo_core.jobs", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        title=Path(story.recipe.output).name,
        facts=_facts(story),
        figures=_figures(story.summary),
        talk=_talk(story.summary),
        assignment=_assignment(story.summary),
        stages=_stages(story.summary),
        losses=_charts(story),
        rates=_embedded(rate_chart(story.rows, _stage_names(story))) if story.rows else None,
        pulls=[_embedded(png) for png in pull_charts(story.rows, _stage_names(story))] if story.rows else [],
        mixtures=_mixtures(story),
        pages=_pages(story),
        answers=show_talk(story.predictions),
        quarantined=story.quarantined[:20],
        bad_rows=story.summary.get("bad_rows", 0),
        bad_records=story.summary.get("bad_records", 0),
        versions=sorted(story.info.versions.items()),
        recipe=format_recipe(story.recipe),
    )


def story_of(
    recipe: Recipe,
    info: RunInfo,
    summary: Mapping[str, Any],
    *,
    command: str,
    train: Sequence[OpenSource],
    tests: Sequence[OpenSource],
    assembly: Assembly,
) -> RunStory:
    """Return what the files of a run's folder tell, and what only the job knows."""
    output = Path(recipe.output)
    return RunStory(
        recipe=recipe,
        info=info,
        summary=summary,
        command=command,
        rows=MetricsLog(output / "metrics.jsonl").rows(),
        predictions=[row for row in read_lines(output / "predictions.jsonl") if "prediction" in row],
        train=train,
        tests=tests,
        assembly=assembly,
        quarantined=read_lines(output / "quarantine.jsonl"),
    )


def _embedded(png: bytes | None) -> str | None:
    return None if png is None else f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"


def _stage_names(story: RunStory) -> list[str]:
    return [stage.name for stage in story.recipe.stages]


def _facts(story: RunStory) -> list[tuple[str, str]]:
    summary, info = story.summary, story.info
    heads = ", ".join(f"{name} ({origin.package} {origin.version})" for name, origin in sorted(info.heads.items()))
    facts = [
        ("command", story.command or "(a script)"),
        ("began", info.created),
        ("model", str(info.backbone)),
        ("heads", heads),
        ("seed", str(story.recipe.seed)),
        ("steps", f"{summary.get('steps', 0):,} in {len(story.recipe.stages)} stages"),
    ]
    if "seconds" in summary:
        facts.append(("took", f"{summary['seconds']:,.0f} s, peak memory {summary['peak_rss_bytes'] / 2**30:.2f} GiB"))
    counts = summary.get("counts", {})
    if counts:
        facts.append(("held-out", ", ".join(f"{name} {count:,}" for name, count in counts.items())))
    return facts


def _figures(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row per head and metric, chance beside it; the head's main metric is marked."""
    rows = []
    for head, values in sorted(summary.get("heads", {}).items()):
        for metric, value in values.items():
            main = summary.get("primary", {}).get(head) == metric
            rows.append(
                {"head": head, "metric": metric, "value": value, "beside": summary["chance"].get(head, {}).get(metric), "main": main}
            )
    return rows


def _talk(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    blind = summary.get("blind", {})
    return [{"name": name, "value": value, "beside": blind.get(name)} for name, value in summary.get("conversation", {}).items()]


def _assignment(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row per source and one of all questions: how often exactly the right heads were called."""
    found = summary.get("assignment")
    if not found:
        return []
    rows = [{"name": name, "value": value, "beside": None} for name, value in found["sources"].items()]
    return [*rows, {"name": "all questions", "value": found["right"], "beside": found["blind"]}]


def _stages(summary: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what each stage left, if it was measured; a figure that a later stage pulled down by more than 0.03 is marked."""
    stages = summary.get("stages")
    if not stages:
        return None
    rows = []
    named = [(f"{head} {metric}", head, metric) for head, metric in summary.get("primary", {}).items()]
    for label, head, metric in named:
        rows.append((label, [figures["heads"].get(head, {}).get(metric) for figures in stages.values()]))
    for name in summary.get("conversation", {}):
        rows.append((name, [figures["conversation"].get(name) for figures in stages.values()]))
    rows.append(("right head called", [figures.get("assignment", {}).get("right") for figures in stages.values()]))
    lines = []
    for label, values in rows:
        best = max((v for v in values if v is not None), default=0.0)
        lines.append({"name": label, "cells": [(value, value is not None and value < best - 0.03) for value in values]})
    return {"names": list(stages), "rows": lines}


def _charts(story: RunStory) -> list[tuple[str, str | None]]:
    if not story.rows:
        return []
    return [(owner, _embedded(png)) for owner, png in loss_charts(story.rows, _stage_names(story)).items()]


def _mixtures(story: RunStory) -> list[dict[str, Any]]:
    tables = []
    for stage in story.recipe.stages:
        try:
            mixture, sources = stage_mixture(story.recipe, stage, story.train)
        except TPOError:
            # The run is done; sources that were moved since only cost this table.
            continue
        steps = stage_steps(stage, sum(s.size for s in sources))
        trained = ", ".join(f"{group} {rate:g}" for group, rate in stage.rates.items())
        tables.append({"stage": stage, "steps": steps, "trained": trained, "shares": mixture.table(steps * stage.batch_size)})
    return tables


def _pages(story: RunStory) -> list[dict[str, Any]]:
    pages = show_answers(story.assembly, story.predictions, story.tests)
    primary = {name: head.spec.primary for name, head in story.assembly.heads.items()}
    return [
        {"head": name, "metric": primary[name], "shown": [{"one": one, "picture": _embedded(one.png)} for one in shown]}
        for name, shown in pages.items()
        if shown
    ]
