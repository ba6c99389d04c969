"""Which files may be opened: regular ones, inside the data root unless the caller allows more."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from tpo_core.errors import MediaError


def shown(path: str | Path) -> str:
    """Return a path as it may stand in a message: control characters are escaped, very long ones lose their middle."""
    text = str(path)
    if len(text) > 300:
        text = f"{text[:140]}...{text[-140:]}"
    return text if text.isprintable() else ascii(text)


def locate(path: str | Path, *, root: Path | None = None, allow_outside_root: bool = False) -> Path:
    """Return the real path (symbolic links followed) of something that exists and may be read.

    Args:
        path: absolute, or relative to the root (to the working directory without one).
        root: folder that the real path must lie in; None checks nothing.
        allow_outside_root: the root only resolves relative paths.

    Raises:
        MediaError: nothing is there, or it lies outside the root.
    """
    text = os.fspath(path)
    if not text or "\0" in text:
        raise MediaError(f"media path {text!a} is not a path; give the path of a file")
    wanted = Path(path) if root is None else root / path
    try:
        real = wanted.resolve(strict=True)
    except (FileNotFoundError, NotADirectoryError):
        base = "" if root is None or Path(path).is_absolute() else f" (relative to {shown(root)})"
        raise MediaError(f"{shown(path)}: no such file{base}; check the path") from None
    except (OSError, RuntimeError) as error:
        raise MediaError(f"{shown(path)}: cannot be resolved ({getattr(error, 'strerror', None) or error}); check the path") from error
    if root is not None and not allow_outside_root and not real.is_relative_to(root.resolve()):
        raise MediaError(
            f"{shown(path)}: leads to {shown(real)}, outside the data root {shown(root)}; move it inside, or allow media outside the root"
        )
    return real


def regular_file(real: Path, *, path: str | Path) -> os.stat_result:
    """Return the status of a regular file; pipes, devices and folders are refused without opening them.

    Raises:
        MediaError: it is no regular file, may not be read, or is empty.
    """
    try:
        status = real.stat()
    except OSError as error:
        raise MediaError(f"{shown(path)}: cannot be read ({error.strerror}); check the path and its permissions") from error
    if not stat.S_ISREG(status.st_mode):
        what = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        raise MediaError(f"{shown(path)}: is {what}; a regular file was expected")
    if status.st_size == 0:
        raise MediaError(f"{shown(path)}: the file is empty; copy it again")
    if not os.access(real, os.R_OK):
        raise MediaError(f"{shown(path)}: permission denied; make the file readable")
    return status
