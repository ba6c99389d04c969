"""Read a run's folder. Nothing in it is unpickled or executed; what cannot be used is said in a sentence."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tpo_core.errors import CheckpointError
from tpo_core.runs.content import INFO, TRAINER, checkpoints, read_state, read_trainer
from tpo_core.runs.files import DIGESTS, find_damage, read_document
from tpo_core.runs.state import BackboneIdentity, HeadOrigin, RunInfo, RunState, TrainerState


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint that was found.

    Args:
        path: its folder; a finished run's own folder is one.
        info: its ``run.json``.
        notes: which newer ones were skipped, and why.
    """

    path: Path
    info: RunInfo
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class LoadedRun:
    """What a checkpoint holds.

    Args:
        path, info: of the checkpoint.
        state: what was learnt, of the heads that can be used.
        trainer: None unless asked for.
        absent: heads of the run whose package is not here.
        notes: sentences for the user.
    """

    path: Path
    info: RunInfo
    state: RunState
    trainer: TrainerState | None = None
    absent: dict[str, HeadOrigin] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def config(self) -> dict[str, Any]:
        """Return the recipe's mapping without the heads whose package is not here."""
        return without_heads(self.info.config, self.absent)


def find_checkpoint(path: str | Path, *, trainer: bool = False) -> Checkpoint | None:
    """Return the newest complete checkpoint of a run, or the checkpoint that the path itself is; None where a run has none yet.

    Args:
        trainer: whether the trainer's state is needed; if not, its files may be absent.

    Raises:
        CheckpointError: the path is no folder of a run, or it has checkpoints and none is complete.
    """
    path = Path(path)
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such folder; give the folder of a run or of a checkpoint")
    ignore = None if trainer else TRAINER
    candidates = [folder for _, folder in _by_age(path)]
    notes: list[str] = []
    for folder in candidates:
        damage = find_damage(folder, ignore=ignore)
        if damage is None:
            return Checkpoint(folder, read_document(folder / INFO, RunInfo), tuple(notes))
        notes.append(f"skipped {folder}: {damage}")
    if candidates:
        raise CheckpointError(f"{path}: no complete checkpoint; {'; '.join(notes)}. Train again with another --output")
    if not (path / INFO).exists():
        raise CheckpointError(f"{path}: holds no run (no {INFO}); give the folder of a run or of a checkpoint")
    return None


def _by_age(path: Path) -> list[tuple[int, Path]]:
    """Return (optimiser steps, folder) of all candidates, newest first; a finished run's own folder before a checkpoint of the same age."""
    found = checkpoints(path)
    if (path / DIGESTS).exists():
        try:
            found.insert(0, (read_document(path / INFO, RunInfo).stage.global_step, path))
        except CheckpointError:
            # Its damage is said where the candidates are looked at.
            found.append((-1, path))
    return sorted(found, key=lambda candidate: -candidate[0])


def load_run_state(
    path: str | Path, *, installed: Collection[str], backbone: BackboneIdentity | None = None, trainer: bool = False
) -> LoadedRun:
    """Read the newest complete checkpoint of a run.

    Args:
        path: a run's folder or a checkpoint in it.
        installed: heads that can be used here; the run's other heads are left out, with a note that names the package.
        backbone: of the model that the state is for.
        trainer: read the trainer's state as well.

    Raises:
        CheckpointError: nothing complete is there, a file is broken, or it is of another backbone.
    """
    found = find_checkpoint(path, trainer=trainer)
    if found is None:
        raise CheckpointError(f"{path}: the run has no checkpoint yet; train it first")
    if backbone is not None:
        check_backbone(found, backbone)
    absent = {name: origin for name, origin in found.info.heads.items() if name not in installed}
    return LoadedRun(
        path=found.path,
        info=found.info,
        state=read_state(found.path, found.info, without=frozenset(absent)),
        trainer=read_trainer(found.path, found.info) if trainer else None,
        absent=absent,
        notes=(*found.notes, *(missing_head(name, origin) for name, origin in absent.items())),
    )


def check_backbone(checkpoint: Checkpoint, backbone: BackboneIdentity) -> None:
    """Check that a checkpoint's states fit a model.

    Raises:
        CheckpointError: it was trained on another backbone; one sentence names both.
    """
    if not checkpoint.info.backbone.same_as(backbone):
        raise CheckpointError(
            f"{checkpoint.path} was trained on {checkpoint.info.backbone}, this is {backbone}; use the model it was trained on"
        )


def missing_head(name: str, origin: HeadOrigin) -> str:
    """Return the sentence for a head whose package is not here."""
    return (
        f"head {name!r} of this run is left out: it came with {origin.package} {origin.version}, which is not installed; "
        f"pip install {origin.package}=={origin.version}"
    )


def without_heads(config: dict[str, Any], absent: Collection[str]) -> dict[str, Any]:
    """Return a recipe's mapping without these heads, wherever it names them, and without stages that trained nothing else."""
    result, absent = deepcopy(config), frozenset(absent)
    heads = result.get("heads") or {}
    for name in absent:
        heads.pop(name, None)
    for head in heads.values():
        if head and head.get("init_from") in absent:
            head["init_from"] = None
    for stage in result.get("stages") or ():
        if stage.get("heads") is not None:
            stage["heads"] = [name for name in stage["heads"] if name not in absent]
        for name in absent & stage.get("weights", {}).keys():
            del stage["weights"][name]
    if absent and "stages" in result:
        result["stages"] = without_rates(result["stages"], absent)
    return result


def without_rates(stages: Sequence[dict[str, Any]], heads: Collection[str]) -> list[dict[str, Any]]:
    """Return stages' mappings in which these heads do not train, without stages that train nothing else."""
    left = []
    for stage in stages:
        kept = dict(stage)
        for key in ("train", "muon"):
            if key in stage:
                kept[key] = {group: rate for group, rate in stage[key].items() if group.partition(".")[2] not in heads}
        if any(rate is not None for rate in kept["train"].values()):
            left.append(kept)
    return left
