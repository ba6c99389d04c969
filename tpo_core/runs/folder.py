"""A run's folder while it is being made: one writer, atomic checkpoints, the last good one survives every crash."""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from tpo_core.errors import CheckpointError
from tpo_core.runs.content import ADAPTER, HEADS, INFO, TRAINER, checkpoints, holds_run, write_content
from tpo_core.runs.files import DIGESTS, file_names, link_file, read_document, remove_folder, sync_folder, write_json
from tpo_core.runs.load import LoadedRun, find_checkpoint, load_run_state
from tpo_core.runs.metrics import MetricsLog
from tpo_core.runs.state import RunInfo, RunState, TrainerState

logger = logging.getLogger(__name__)

SUMMARY = "summary.json"
METRICS = "metrics.jsonl"
_STALE = re.compile(r".+\.tmp-\d+(-gone)?")

FREE_TO_CHANGE = ("output", "trainer", "data.workers", "data.test", "data.policy", "data.max_bad")
"""Parts of a recipe that may differ when a run is resumed: they do not change what is learnt."""


class RunFolder:
    """The main process's hand on a run's folder.

    Args:
        path: the folder. info: of the run.
        keep: newest checkpoints to keep.
    """

    def __init__(self, path: Path, info: RunInfo, *, keep: int = 2) -> None:
        self.path = path
        self.info = info
        self.keep = keep
        self.metrics = MetricsLog(path / METRICS)

    @classmethod
    def open(cls, path: str | Path, info: RunInfo, *, resume: bool, keep: int = 2) -> RunFolder:
        """Begin a run in a folder, or go on with the one it holds. Leftovers of a crash are removed.

        Raises:
            CheckpointError: the folder holds a run and `resume` is off, or it is another run's (recipe, backbone or data differ).
        """
        path = Path(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be made a folder ({error.strerror}); choose another --output") from error
        if holds_run(path):
            if not resume:
                raise CheckpointError(
                    f"{path} holds a run already ({_describe(path)}); add --resume to go on with it, or choose another --output"
                )
            info = _same_run(path, info)
        for stale in path.iterdir():
            if _STALE.fullmatch(stale.name):
                logger.info("removing %s, left by a run that was cut off", stale)
                shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
        if not (path / INFO).exists():
            write_json(path / INFO, info.model_dump(mode="json"))
        return cls(path, info, keep=keep)

    def latest(self, *, installed: Collection[str]) -> LoadedRun | None:
        """Return the newest complete checkpoint, trainer included, to go on from; None where there is none yet.

        Rows of metrics after it are forgotten: they will be written again.

        Args:
            installed: heads that can be used here.

        Raises:
            CheckpointError: there are checkpoints and none is complete.
        """
        found = find_checkpoint(self.path, trainer=True)
        self.metrics.cut(0 if found is None else found.info.stage.global_step)
        return None if found is None else load_run_state(self.path, installed=installed, trainer=True)

    def save(self, state: RunState, trainer: TrainerState) -> Path:
        """Write ``checkpoint-<optimiser steps>`` and delete the oldest ones.

        Raises:
            CheckpointError: it could not be written (disk full); the checkpoints before it are untouched.
        """
        target = self.path / f"checkpoint-{trainer.mark.global_step}"
        aside = target.with_name(f"{target.name}.tmp-{os.getpid()}")
        info = self.info.model_copy(update={"stage": trainer.mark})
        try:
            aside.mkdir()
            write_content(aside, info, state, trainer)
            if target.exists():
                # It was skipped as damaged when the run was resumed before it.
                remove_folder(target)
            os.replace(aside, target)
            sync_folder(self.path)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(aside, ignore_errors=True)
            last = next((str(path) for _, path in checkpoints(self.path)), "none yet")
            raise CheckpointError(
                f"{target}: cannot be written ({error}); free some space and --resume. The last good one is {last}"
            ) from error
        for _, old in checkpoints(self.path)[self.keep :]:
            remove_folder(old)
        return target

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Lay the newest checkpoint out at the folder's own top and write ``summary.json``."""
        found = checkpoints(self.path)
        if found:
            self._publish(found[0][1])
        write_json(self.path / SUMMARY, dict(summary))

    def _publish(self, checkpoint: Path) -> None:
        # Until its digests are there again, the top does not count as a checkpoint, and the one below still does.
        (self.path / DIGESTS).unlink(missing_ok=True)
        for owned in (ADAPTER, HEADS, TRAINER):
            shutil.rmtree(self.path / owned, ignore_errors=True)
        names = [name for name in file_names(checkpoint) if name != DIGESTS]
        for name in names:
            link_file(checkpoint / name, self.path / name)
        for folder in {(self.path / name).parent for name in names}:
            sync_folder(folder)
        link_file(checkpoint / DIGESTS, self.path / DIGESTS)
        sync_folder(self.path)
        remove_folder(checkpoint)


def _describe(path: Path) -> str:
    try:
        stage = read_document(path / INFO, RunInfo).stage
    except CheckpointError:
        return "its run.json cannot be read"
    found = checkpoints(path)
    if stage.global_step:
        return f"ended at step {stage.global_step}"
    return f"with {found[0][1].name}" if found else "without a checkpoint yet"


def _same_run(path: Path, info: RunInfo) -> RunInfo:
    """Return the folder's own info, if it is of the same run.

    Raises:
        CheckpointError: it is not.
    """
    old = read_document(path / INFO, RunInfo)
    if not old.backbone.same_as(info.backbone):
        raise CheckpointError(f"{path} is a run on {old.backbone}, this is {info.backbone}; use that model, or choose another --output")
    changed = list(differences(old.config, info.config))
    if changed:
        more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
        raise CheckpointError(
            f"{path} is a run of another recipe: {changed[0]}{more}; --resume needs the same one, or choose another --output"
        )
    for source, fingerprint in info.data.items():
        if old.data.get(source, fingerprint) != fingerprint:
            raise CheckpointError(
                f"{path}: the records of source {source!r} changed since the run began; restore them, or choose another --output"
            )
    for name, version in info.versions.items():
        if old.versions.get(name) != version:
            logger.warning("resuming with %s %s; the run began with %s", name, version, old.versions.get(name, "none"))
    return old


def differences(old: Any, new: Any, at: str = "") -> Iterator[str]:
    """Yield ``stages.0.steps was 100, is 50`` for each place where two recipes differ in what is learnt."""
    if at in FREE_TO_CHANGE:
        return
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            yield from differences(old.get(key), new.get(key), f"{at}.{key}" if at else str(key))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (left, right) in enumerate(zip(old, new, strict=True)):
            yield from differences(left, right, f"{at}.{index}")
    elif old != new:
        yield f"{at} was {_short(old)}, is {_short(new)}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
