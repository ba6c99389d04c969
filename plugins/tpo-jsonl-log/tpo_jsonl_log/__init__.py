"""An observer: appends every optimiser step to a file of JSON lines (TPO_JSONL_LOG; default runs/steps.jsonl)."""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path

from tpo_core import hookimpl

VARIABLE = "TPO_JSONL_LOG"
DEFAULT = Path("runs/steps.jsonl")
SESSION = time.strftime("%Y-%m-%dT%H:%M:%S") + f"-{os.getpid()}"


@hookimpl
def tpo_step_end(step: int, metrics: Mapping[str, float]) -> None:
    path = Path(os.environ.get(VARIABLE) or DEFAULT)
    path.parent.mkdir(parents=True, exist_ok=True)
    line = {"session": SESSION, "time": round(time.time(), 3), "step": step, **metrics}
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
