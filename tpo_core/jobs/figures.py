"""Where a run's figures lie: those after each stage, and the summary that says that it is finished."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

STAGE_FIGURES = ("heads", "conversation", "assignment")
"""What of the figures is kept after every stage."""


def stage_file(output: str | Path, stage: str) -> Path:
    """Return where the figures after a stage lie."""
    return Path(output) / "stages" / f"{stage}.json"


def keep_stage_figures(path: Path, figures: Mapping[str, Any]) -> None:
    """Write `STAGE_FIGURES` of a report's figures."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({key: figures[key] for key in STAGE_FIGURES}), "utf-8")


def stage_figures(output: str | Path, stages: Sequence[str], last: Mapping[str, Any]) -> dict[str, Any]:
    """Return `STAGE_FIGURES` after each stage that was measured; after the last one they are the run's own, `last`."""
    *earlier, final = stages
    paths = {name: stage_file(output, name) for name in earlier}
    found = {name: json.loads(path.read_text("utf-8")) for name, path in paths.items() if path.exists()}
    return {**found, final: {key: last[key] for key in STAGE_FIGURES}}


def finished(output: Path) -> dict[str, Any] | None:
    """Return the summary of a finished run; None where it is not finished."""
    path = output / "summary.json"
    if not path.is_file():
        return None
    summary: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return summary
