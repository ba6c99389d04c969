"""A checkpoint's files: `RunState` and `TrainerState` to the disk and back. Names, never ids; safetensors and JSON only."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from pydantic import Field
from torch import Tensor

from tpo_core.errors import CheckpointError
from tpo_core.runs.files import file_names, read_document, read_mapping, read_tensors, sync_folder, write_digests, write_json, write_tensors
from tpo_core.runs.state import Document, RunInfo, RunState, TrainerState
from tpo_core.types import Tensors

INFO = "run.json"
ADAPTER = "adapter"
TOKENS = "tokens.safetensors"
HEADS = "heads"
BACKBONE = "backbone.safetensors"
TRAINER = "trainer"


_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Return (optimiser steps, folder) of every checkpoint, newest first, complete or not."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        match = _CHECKPOINT.fullmatch(path.name)
        if match and path.is_dir():
            found.append((int(match.group(1)), path))
    return sorted(found, reverse=True)


def holds_run(folder: Path) -> bool:
    """Return whether a run was begun in this folder."""
    return (folder / INFO).exists() or bool(checkpoints(folder))


class TrainerFile(Document):
    """The file ``trainer/trainer.json``; stage and position stand in ``run.json``."""

    processes: int = Field(description="how many random states are held")
    balance: dict[str, float] = Field(default_factory=dict, description="state of the loss balance")


def write_content(folder: Path, info: RunInfo, state: RunState, trainer: TrainerState) -> None:
    """Write a whole checkpoint into an empty folder, digests last."""
    write_json(folder / INFO, info.model_dump(mode="json"))
    if state.adapter_config is not None:
        (folder / ADAPTER).mkdir()
        write_json(folder / ADAPTER / "adapter_config.json", dict(state.adapter_config))
        write_tensors(folder / ADAPTER / "adapter_model.safetensors", state.adapter)
        sync_folder(folder / ADAPTER)
    write_tensors(folder / TOKENS, join_names(state.tokens))
    (folder / HEADS).mkdir()
    for name, tensors in state.heads.items():
        write_tensors(folder / HEADS / f"{name}.safetensors", tensors)
    sync_folder(folder / HEADS)
    if state.backbone:
        write_tensors(folder / BACKBONE, state.backbone)
    (folder / TRAINER).mkdir()
    write_tensors(folder / TRAINER / "optimizer.safetensors", join_names(trainer.optimizer))
    write_tensors(folder / TRAINER / "rng.safetensors", join_names({str(rank): state for rank, state in enumerate(trainer.rng)}))
    write_json(folder / TRAINER / "trainer.json", TrainerFile(processes=len(trainer.rng), balance=trainer.balance).model_dump())
    sync_folder(folder / TRAINER)
    write_digests(folder, file_names(folder))
    sync_folder(folder)


def read_state(folder: Path, info: RunInfo, *, without: frozenset[str] = frozenset()) -> RunState:
    """Read what was learnt.

    Args:
        without: heads whose states are left out.

    Raises:
        CheckpointError: a file is missing or broken, or holds a head that ``run.json`` does not name.
    """
    tokens = split_names(read_tensors(folder / TOKENS))
    unknown = sorted(tokens.keys() - info.heads.keys())
    if unknown:
        raise CheckpointError(
            f"{folder / TOKENS}: holds tokens of {', '.join(unknown)}, which {INFO} does not name; take another checkpoint"
        )
    wanted = [name for name in info.heads if name not in without]
    adapter_folder = folder / ADAPTER
    has_adapter = adapter_folder.is_dir()
    return RunState(
        adapter=read_tensors(adapter_folder / "adapter_model.safetensors") if has_adapter else {},
        adapter_config=read_mapping(adapter_folder / "adapter_config.json") if has_adapter else None,
        tokens={name: tokens[name] for name in wanted if name in tokens},
        heads={name: read_tensors(folder / HEADS / f"{name}.safetensors") for name in wanted},
        backbone=read_tensors(folder / BACKBONE) if (folder / BACKBONE).is_file() else {},
    )


def read_trainer(folder: Path, info: RunInfo) -> TrainerState:
    """Read what a trainer needs to go on.

    Raises:
        CheckpointError: a file is missing or broken.
    """
    file = read_document(folder / TRAINER / "trainer.json", TrainerFile)
    rng = split_names(read_tensors(folder / TRAINER / "rng.safetensors"))
    optimizer = split_names(read_tensors(folder / TRAINER / "optimizer.safetensors"), last=True)
    if set(rng) != {str(rank) for rank in range(file.processes)}:
        raise CheckpointError(
            f"{folder / TRAINER}: holds the random states of {sorted(rng)}, expected {file.processes}; take another checkpoint"
        )
    return TrainerState(mark=info.stage, optimizer=optimizer, rng=[rng[str(rank)] for rank in range(file.processes)], balance=file.balance)


def join_names(groups: Mapping[str, Mapping[str, Tensor]]) -> Tensors:
    """Return {owner: {name: tensor}} flat, as ``owner/name``."""
    return {f"{owner}/{name}": tensor for owner, tensors in groups.items() for name, tensor in tensors.items()}


def split_names(tensors: Mapping[str, Tensor], *, last: bool = False) -> dict[str, Tensors]:
    """Undo `join_names`; the owner ends at the first slash, or (last) at the last one."""
    groups: dict[str, Tensors] = {}
    for key in sorted(tensors):
        owner, _, name = key.rpartition("/") if last else key.partition("/")
        groups.setdefault(owner, {})[name] = tensors[key]
    return groups
