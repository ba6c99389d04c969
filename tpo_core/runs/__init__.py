"""A run's folder: save, load, verify. Safetensors and JSON only; nothing in it is ever executed."""

from __future__ import annotations

from tpo_core.runs.content import checkpoints, holds_run
from tpo_core.runs.folder import RunFolder
from tpo_core.runs.load import (
    Checkpoint,
    LoadedRun,
    check_backbone,
    find_checkpoint,
    load_run_state,
    missing_head,
    without_heads,
    without_rates,
)
from tpo_core.runs.metrics import MetricsLog
from tpo_core.runs.state import (
    BackboneIdentity,
    HeadOrigin,
    RunInfo,
    RunState,
    StageMark,
    TrainerState,
    whole,
    whole_state,
)
from tpo_core.runs.versions import package_versions, utc_now

__all__ = [
    "BackboneIdentity",
    "Checkpoint",
    "HeadOrigin",
    "LoadedRun",
    "MetricsLog",
    "RunFolder",
    "RunInfo",
    "RunState",
    "StageMark",
    "TrainerState",
    "check_backbone",
    "checkpoints",
    "find_checkpoint",
    "holds_run",
    "load_run_state",
    "missing_head",
    "package_versions",
    "utc_now",
    "whole",
    "whole_state",
    "without_heads",
    "without_rates",
]
