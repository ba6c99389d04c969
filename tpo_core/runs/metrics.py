"""``metrics.jsonl``: one JSON object per line, appended while training."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tpo_core.runs.files import sync_folder


class MetricsLog:
    """Rows of a run. Each holds ``step``, the optimiser steps done in all stages.

    Args:
        path: the file; made with the first row.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row; numbers that are not finite become null, for JSON has none."""
        plain = {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(plain, ensure_ascii=False) + "\n")

    def rows(self) -> list[dict[str, Any]]:
        """Return all whole rows; a line that was cut off by a crash is left out."""
        if not self.path.exists():
            return []
        rows = []
        for line in self.path.read_text("utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                rows.append(row)
        return rows

    def cut(self, step: int) -> None:
        """Forget the rows after this step: the run goes on from a checkpoint and will write them again."""
        if not self.path.exists():
            return
        kept = [row for row in self.rows() if isinstance(row.get("step"), int) and row["step"] <= step]
        aside = self.path.with_name(f"{self.path.name}.tmp-{os.getpid()}")
        with aside.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in kept)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(self.path)
        sync_folder(self.path.parent)
