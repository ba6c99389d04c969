"""Other annotation formats: a reader turns a file into records once, and training reads those by index.

A reader is a function ``read(path) -> Iterator[(line, fields)]``: the line of the source and the fields of a record (see
`tpo_core.data.records`). A row that it cannot turn into a record it yields as ``{"id": ..., "fault": "one sentence"}``: that sentence
is the error of the row, and the others are read. The project's own format needs no reader.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tpo_core.data.index import RecordFile
from tpo_core.errors import DataError, TPOError

Reader = Callable[[Path], Iterator[tuple[int, dict[str, Any]]]]

logger = logging.getLogger(__name__)


def convert(read: Reader, path: str | Path, *, name: str, version: str, cache: Path) -> RecordFile:
    """Return the records of a file in another format, converted into a cache folder unless that was done before.

    A row that is no valid record is written all the same: it gives its error, with the source's file and line, when it is read.

    Args:
        read: the reader.
        path: the source file or folder; media paths of its records are relative to its folder.
        name, version: the reader's name and its package's version; another version converts anew.
        cache: folder for converted files, made where it is missing.

    Raises:
        DataError: the source is missing, the reader fails on it, or it yields nothing.
    """
    source = Path(path)
    if not source.exists():
        raise DataError(f"{source}: no such file; the reader {name!r} needs it")
    stem = cache / f"{source.stem}-{_identity(source, name, version)}"
    records, lines = stem.with_name(stem.name + ".jsonl"), stem.with_name(stem.name + ".lines.npy")
    if not (records.is_file() and lines.is_file()):
        logger.info("converting %s by the reader %s", source, name)
        _write(read, source, name, records, lines)
    return RecordFile(records, origin=source, lines=np.load(lines, allow_pickle=False))


def _write(read: Reader, source: Path, name: str, records: Path, lines: Path) -> None:
    records.parent.mkdir(parents=True, exist_ok=True)
    numbers = array("q")
    partial = records.with_name(f"{records.name}.tmp-{os.getpid()}")
    partial_lines = partial.with_name(partial.name + ".npy")
    try:
        with partial.open("w", encoding="utf-8") as file:
            for line, fields in _rows(read, source, name):
                file.write(_dump(fields, source, line, name) + "\n")
                numbers.append(line)
        if not numbers:
            raise DataError(f"{source}: the reader {name!r} found no record in it; check that it is of that format")
        np.save(partial_lines, np.frombuffer(numbers, dtype=np.int64))
        os.replace(partial_lines, lines)
        os.replace(partial, records)
    finally:
        partial.unlink(missing_ok=True)
        partial_lines.unlink(missing_ok=True)


def _rows(read: Reader, source: Path, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    line = 0
    try:
        for line, fields in read(source):
            yield line, fields
    except TPOError:
        raise
    except Exception as error:  # a reader may be a stranger's: its error becomes one sentence, with the cause chained
        behind = f"after line {line}" if line else "at the start"
        raise DataError(
            f"{source}: the reader {name!r} failed {behind} ({type(error).__name__}: {error}); check the file's format"
        ) from error


def _dump(fields: dict[str, Any], source: Path, line: int, name: str) -> str:
    try:
        return json.dumps(fields, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"{source}:{line}: the reader {name!r} gave a record that is not JSON ({error}); mend the reader") from error


def _identity(source: Path, name: str, version: str) -> str:
    """Return a short hash of the reader and of the source's place, size and time (of a folder: those of what lies in it)."""
    entries = sorted(source.iterdir()) if source.is_dir() else [source]
    stamps = [(entry.name, entry.stat().st_size, entry.stat().st_mtime_ns) for entry in entries]
    text = json.dumps([name, version, str(source.resolve()), stamps])
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
