"""Files of records, one JSON object per line, read by row number through a table of byte offsets."""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tpo_core.data.records import Record
from tpo_core.errors import DataError

_BOM = b"\xef\xbb\xbf"


class RecordFile:
    """A file of records with random access; picklable, and safe to read from several threads and processes.

    Opening reads the file once to find the lines; nothing is parsed before it is asked for. Blank lines are skipped.

    Args:
        path: the file.
        origin: the file that errors name, where `path` was converted from another format; media paths are relative to its folder.
        lines: line numbers (from 1) in the origin, one per row.

    Raises:
        DataError: missing, no regular file, or it holds no record.
    """

    def __init__(self, path: str | Path, *, origin: Path | None = None, lines: np.ndarray | None = None) -> None:
        self.path = Path(path)
        self.origin = self.path if origin is None else origin
        if not self.path.is_file():
            what = "is not a regular file" if self.path.exists() else "no such file"
            raise DataError(f"{self.path}: {what}; expected a file of records, one JSON object per line")
        try:
            self._stamp = self._status()
            self._offsets, self._ends, own_lines = _find_lines(self.path)
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read ({error.strerror}); check its permissions") from error
        if len(self._offsets) == 0:
            raise DataError(f"{self.origin}: the file holds no record; expected one JSON object per line")
        if lines is not None and len(lines) != len(self._offsets):
            raise DataError(
                f"{self.path}: {len(self._offsets)} rows for {len(lines)} line numbers; delete the converted file and start again"
            )
        self._lines = own_lines if lines is None else np.asarray(lines, dtype=np.int64)
        self._descriptor: int | None = None
        self._process = 0

    @property
    def root(self) -> Path:
        """The folder that media paths are relative to."""
        return self.origin if self.origin.is_dir() else self.origin.parent

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """``{"sha256": hex, "bytes": size, "records": number}`` of the content."""
        with self.path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"sha256": digest, "bytes": self._stamp[0], "records": len(self)}

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, row: int) -> Record:
        """Return a row's record.

        Raises:
            IndexError: there is no such row.
            DataError: ``file:line: field: found, expected``.
        """
        return Record.from_json(self.raw(row), where=self.where(row))

    def __iter__(self) -> Iterator[Record]:
        return (self[row] for row in range(len(self)))

    def line(self, row: int) -> int:
        """Return the line number (from 1) of a row in the origin."""
        return int(self._lines[self._row(row)])

    def where(self, row: int) -> str:
        """Return ``file:line`` of a row, for messages."""
        return f"{self.origin}:{self.line(row)}"

    def raw(self, row: int) -> bytes:
        """Return a row's line as it stands in the file.

        Raises:
            DataError: the file was changed since it was opened.
        """
        row = self._row(row)
        start, end = int(self._offsets[row]), int(self._ends[row])
        text = os.pread(self._open(), end - start, start)
        if len(text) != end - start:
            raise DataError(f"{self.path}: the file was changed while in use; start again")
        return text

    def faults(self) -> Iterator[tuple[int, str | None, DataError]]:
        """Yield (row, record id where known, error) of every row that is not valid, or whose id an earlier row has."""
        first_line: dict[str, int] = {}
        for row in range(len(self)):
            try:
                record = self[row]
            except DataError as error:
                yield row, None, error
                continue
            if record.id in first_line:
                text = f"{self.where(row)}: id: {record.id!r} is the id of line {first_line[record.id]}, too; give each record its own"
                yield row, record.id, DataError(text)
            else:
                first_line[record.id] = self.line(row)

    def close(self) -> None:
        """Close the file; the next read opens it again."""
        if self._descriptor is not None and self._process == os.getpid():
            os.close(self._descriptor)
        self._descriptor = None

    def _row(self, row: int) -> int:
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} of {len(self)} in {self.origin}")
        return row % len(self)

    def _status(self) -> tuple[int, int]:
        status = self.path.stat()
        return status.st_size, status.st_mtime_ns

    def _open(self) -> int:
        if self._descriptor is None or self._process != os.getpid():
            try:
                if self._status() != self._stamp:
                    raise DataError(f"{self.path}: the file was changed while in use; start again")
                self._descriptor, self._process = os.open(self.path, os.O_RDONLY), os.getpid()
            except OSError as error:
                raise DataError(f"{self.path}: cannot be read any more ({error.strerror}); start again") from error
        return self._descriptor

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_descriptor": None}

    def __del__(self) -> None:
        if getattr(self, "_descriptor", None) is not None:
            self.close()


def _find_lines(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return begin and end (without the line break) of every line that is not blank, and its number from 1; int64."""
    rows = array("q")
    position = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            text = line.removeprefix(_BOM) if number == 1 else line
            if text.strip():
                rows.extend((position + len(line) - len(text), position + len(line.rstrip(b"\r\n")), number))
            position += len(line)
    table = np.frombuffer(rows, dtype=np.int64).reshape(-1, 3).T.copy() if rows else np.zeros((3, 0), dtype=np.int64)
    return table[0], table[1], table[2]
