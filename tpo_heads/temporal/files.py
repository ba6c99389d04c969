"""Precomputed features on disk (``source: files``): reading, joining, checking. Nothing in a file is ever executed.

Legend: T clips, V width of the clip features, W words, U width of the word features.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from string import Formatter
from typing import Any
from zipfile import BadZipFile

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from tpo_heads.temporal.config import FeatureFiles

SLACK_CLIPS = 2.0
"""By how many clips the features may differ from the video's length: extractors drop tails or round up."""


def fill(pattern: str, path: str, fields: Mapping[str, Any]) -> Path:
    """Return the pattern with {stem} and {dir} of the clip's file and the given fields filled in.

    Raises:
        ValueError: the pattern names something else.
    """
    known = {**fields, "stem": Path(path).stem, "dir": str(Path(path).parent)}
    try:
        return Path(pattern.format_map(known))
    except (KeyError, IndexError, AttributeError, ValueError) as error:
        raise ValueError(f"the feature pattern {pattern!r} cannot be filled ({error}); it may use {', '.join(sorted(known))}") from error


def read_rows(path: Path, key: str, *, normalize: bool) -> np.ndarray:
    """Return the feature rows of a file, float32 (rows, width).

    Raises:
        ValueError: missing, not readable, of another type or shape, or not finite; the message names the file.
    """
    rows = np.asarray(_read(path, key))
    if rows.dtype.kind not in "fiu" or rows.ndim != 2 or 0 in rows.shape:
        raise ValueError(f"{path}: features must be numbers of shape (rows, width), got {rows.dtype} {rows.shape}")
    rows = rows.astype(np.float32)
    if not np.isfinite(rows).all():
        bad = int(np.flatnonzero(~np.isfinite(rows).all(1))[0])
        raise ValueError(f"{path}: row {bad} holds values that are not finite; extract the features again")
    if normalize:
        rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-5)
    return rows


def _read(path: Path, key: str) -> np.ndarray:
    if not path.is_file():
        raise ValueError(f"{path}: there is no such feature file; correct the pattern, or extract the features")
    try:
        if path.suffix == ".safetensors":
            arrays: Mapping[str, np.ndarray] = load_file(path)
        else:
            loaded = np.load(path, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return loaded
            with loaded:
                arrays = {name: loaded[name] for name in loaded.files if name == key or len(loaded.files) == 1}
                arrays = arrays or dict.fromkeys(loaded.files, np.empty(0))
    except (ValueError, OSError, EOFError, BadZipFile, SafetensorError) as error:
        raise ValueError(f"{path}: not readable as .npz, .npy or .safetensors ({error}); pickled arrays are not read") from error
    if key in arrays:
        return arrays[key]
    if len(arrays) == 1:
        return next(iter(arrays.values()))
    raise ValueError(f"{path}: holds {sorted(arrays)}, but no {key!r}; set clip_key or word_key")


def read_clips(files: FeatureFiles, path: str, duration: float) -> tuple[np.ndarray, np.ndarray]:
    """Return a video's clip features (T, V) and their [start, end) in seconds (T, 2); the last clip ends with the video.

    Args:
        path: the video's file. duration: of the video in seconds.

    Raises:
        ValueError: a file is wrong, or has another width or length than the config and the video say; the message names it.
    """
    paths = [fill(pattern, path, {}) for pattern in files.clips]
    parts = [read_rows(found, files.clip_key, normalize=files.normalize) for found in paths]
    lengths = [len(part) for part in parts]
    if max(lengths) - min(lengths) > SLACK_CLIPS:
        raise ValueError(f"{paths[0]} has {lengths[0]} clips, its companions have {lengths[1:]}; files that are joined must agree")
    clips = np.concatenate([part[: min(lengths)] for part in parts], axis=1)
    if clips.shape[1] != files.clip_width:
        raise ValueError(
            f"{paths[0]}: features are {clips.shape[1]} wide, but the config's clip_width is {files.clip_width}; correct one of them"
        )
    starts = np.arange(len(clips)) * files.clip_seconds
    if abs(len(clips) * files.clip_seconds - duration) > SLACK_CLIPS * files.clip_seconds:
        raise ValueError(
            f"{paths[0]}: {len(clips)} clips of {files.clip_seconds:g} s cover {len(clips) * files.clip_seconds:g} s, but the video lasts "
            f"{duration:g} s; correct clip_seconds, or extract the features again"
        )
    inside = starts < duration
    times = np.stack((starts, np.minimum(starts + files.clip_seconds, duration)), axis=1)
    return clips[inside], times[inside].astype(np.float32)


def read_words(files: FeatureFiles, path: str, fields: Mapping[str, Any]) -> np.ndarray:
    """Return the word features (W, U) of one question.

    Raises:
        ValueError: the file is wrong or has another width than the config says; the message names it.
    """
    assert files.words is not None
    found = fill(files.words, path, fields)
    words = read_rows(found, files.word_key, normalize=files.normalize)[: files.max_words]
    if words.shape[1] != files.word_width:
        raise ValueError(f"{found}: words are {words.shape[1]} wide, the config's word_width is {files.word_width}; correct one of them")
    return words


def words_are_per_question(files: FeatureFiles) -> bool:
    """Return whether the word pattern needs a field of the target, so that every question has a file of its own."""
    names = {name.split(".")[0].split("[")[0] for _, name, _, _ in Formatter().parse(files.words or "") if name}
    return bool(names - {"stem", "dir"})
