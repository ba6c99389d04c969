"""Files that are either whole or not there: written aside, flushed to the disk, renamed; with a list of digests to tell."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from tpo_core.errors import CheckpointError
from tpo_core.runs.state import Document
from tpo_core.types import Tensors

D = TypeVar("D", bound=Document)

DIGESTS = "digests.json"
_CHUNK = 1 << 20


class FileDigest(Document):
    """One file of a folder."""

    bytes: int
    sha256: str


class Digests(Document):
    """The file ``digests.json``: written last, so a folder that has it was complete."""

    files: dict[str, FileDigest]


def write_json(path: Path, value: Any) -> None:
    """Write JSON beside the file and rename it over the old one."""
    aside = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, sort_keys=False)
    with aside.open("w", encoding="utf-8") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
    sync_folder(path.parent)


def write_tensors(path: Path, tensors: Mapping[str, Any]) -> None:
    """Write CPU tensors as safetensors and flush them to the disk."""
    save_file(dict(tensors), path, metadata={"format": "pt"})
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Flush a folder's entries to the disk, so that a rename in it lasts."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_tensors(path: Path) -> Tensors:
    """Read a safetensors file; nothing in it is executed.

    Raises:
        CheckpointError: it is missing or broken.
    """
    try:
        tensors: Tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); take another checkpoint") from error
    return tensors


def read_document(path: Path, kind: type[D]) -> D:
    """Read and validate a JSON file.

    Raises:
        CheckpointError: it is missing, not JSON, or says something else than this version of the format.
    """
    try:
        return kind.model_validate_json(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); give the folder of a run or of a checkpoint") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise CheckpointError(f"{path}: {where or 'the file'}: {first['msg']}; it was written by another version, or is broken") from error


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: it is missing or not a JSON object.
    """
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); take another checkpoint") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: found {type(value).__name__}, expected a JSON object; take another checkpoint")
    return value


def file_names(folder: Path) -> list[str]:
    """Return the files under a folder, relative, with forward slashes, in order of name."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def write_digests(folder: Path, names: Iterable[str]) -> None:
    """Write ``digests.json`` over these files; it comes last."""
    files = {name: _digest(folder / name) for name in names}
    write_json(folder / DIGESTS, Digests(files=files).model_dump())


def find_damage(folder: Path, *, ignore: str | None = None) -> str | None:
    """Return what is wrong with a folder in a few words, or None where every listed file is as it was written.

    Args:
        ignore: a sub-folder that is not needed and may be absent.
    """
    try:
        listed = read_document(folder / DIGESTS, Digests)
    except CheckpointError:
        return f"it has no readable {DIGESTS}, so it was not finished"
    for name, expected in listed.files.items():
        path = folder / name
        if ignore is not None and name.startswith(f"{ignore}/"):
            continue
        if ".." in Path(name).parts or Path(name).is_absolute():
            return f"{DIGESTS} names {name!r}, which lies outside the folder"
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected.bytes:
            return f"{name} has {path.stat().st_size} bytes, {expected.bytes} were written"
        if _digest(path).sha256 != expected.sha256:
            return f"{name} was changed after it was written"
    return None


def _digest(path: Path) -> FileDigest:
    digest = hashlib.sha256()
    size = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return FileDigest(bytes=size, sha256=digest.hexdigest())


def remove_folder(path: Path) -> None:
    """Take a folder's name away first, so that a half-deleted folder is not mistaken for a whole one."""
    aside = path.with_name(f"{path.name}.tmp-{os.getpid()}-gone")
    os.replace(path, aside)
    shutil.rmtree(aside, ignore_errors=True)


def link_file(source: Path, target: Path) -> None:
    """Put a file at a second place, over what is there; without a copy where the file system can."""
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f"{target.name}.tmp-{os.getpid()}")
    aside.unlink(missing_ok=True)
    try:
        os.link(source, aside)
    except OSError:
        shutil.copyfile(source, aside)
        with aside.open("rb+") as file:
            os.fsync(file.fileno())
    os.replace(aside, target)
