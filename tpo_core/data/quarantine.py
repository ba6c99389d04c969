"""Bad rows are put aside with a report, and the run goes on, up to a cap."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Literal

from tpo_core.errors import DataError, TrainError


class Quarantine:
    """Collects bad rows in a file of JSON lines: ``{"where": "file:line", "id": ..., "reason": ...}``.

    A report that is already there (a resumed run) is read, and its rows count.

    Args:
        policy: ``skip`` puts rows aside; ``raise`` stops at the first one.
        cap: most rows that may be put aside: a number, or (a float of at most 1) a share of `size`,
            rounded up.
        path: the report.
        size: number of rows in all sources; needed for a share.

    Raises:
        ValueError: the cap is negative or a share without a size.
        DataError: the report that is there cannot be read.
    """

    def __init__(self, *, policy: Literal["skip", "raise"] = "skip", cap: float = 0.01, path: Path, size: int | None = None) -> None:
        self.policy = policy
        self.path = Path(path)
        self.limit = _limit(cap, size)
        self.size = size
        self._reasons: dict[str, str] = {}
        self._load()

    def __len__(self) -> int:
        return len(self._reasons)

    def __contains__(self, where: str) -> bool:
        return where in self._reasons

    def add(self, where: str, record_id: str | None, reason: str) -> None:
        """Put a row aside; a row that is there already changes nothing.

        Args:
            where: ``file:line``. record_id: where it is known. reason: the error's sentence.

        Raises:
            DataError: the policy is ``raise``.
            TrainError: more rows than the cap.
        """
        if where in self._reasons:
            return
        self._reasons[where] = reason
        self._append({"where": where, "id": record_id, "reason": reason})
        if self.policy == "raise":
            raise DataError(reason if reason.startswith(where) else f"{where}: {reason}")
        if len(self) > self.limit:
            raise TrainError(
                f"{len(self)} bad rows are more than the cap of {self.limit}, the last one is {where}; "
                f"mend the rows listed in {self.path}, or raise the cap"
            )

    def summary(self) -> str:
        """Return one line for the end of a run."""
        if not self._reasons:
            return "no bad rows"
        share = f" ({len(self) / self.size:.2%} of {self.size:,})" if self.size else ""
        return f"{len(self):,} bad rows were put aside{share}; see {self.path}"

    def _append(self, row: dict[str, str | None]) -> None:
        text = (json.dumps(row, ensure_ascii=True) + "\n").encode("ascii")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # One write to a file opened for appending: lines of several processes do not mix.
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(descriptor, text)
        finally:
            os.close(descriptor)

    def _load(self) -> None:
        if not self.path.exists():
            return
        content = self.path.read_bytes()
        if not content.endswith(b"\n"):
            # A line that a crash tore: the row gives its error again when it is met.
            content = content[: content.rfind(b"\n") + 1]
            os.truncate(self.path, len(content))
        for number, line in enumerate(content.splitlines(), 1):
            try:
                row = json.loads(line)
                self._reasons[str(row["where"])] = str(row["reason"])
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise DataError(f"{self.path}:{number}: not a line of a quarantine report; move the file away") from error


def _limit(cap: float, size: int | None) -> int:
    if cap < 0:
        raise ValueError(f"the cap is {cap}; expected a number of rows, or a share of at most 1.0")
    if isinstance(cap, int):
        return cap
    if cap > 1:
        raise ValueError(f"the cap is the share {cap}; expected at most 1.0, or a whole number of rows")
    if size is None:
        raise ValueError(f"the cap is the share {cap}, but the number of rows is not known; pass size")
    return math.ceil(cap * size)
