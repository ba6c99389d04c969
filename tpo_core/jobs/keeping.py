"""Keeping what a frozen language model gives, for a stage that asks for it (`StageConfig.keep_states`)."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate.utils import DistributedType
from torch import Tensor, nn

from tpo_core.config.recipe import StageConfig
from tpo_core.errors import ConfigError
from tpo_core.model import TPOModel
from tpo_core.prepare.kept import KeptSample, StateFolder
from tpo_core.train import run_on_main

FOLDER = "states"


def check_keeping(stage: StageConfig, model: TPOModel, trained: Collection[str]) -> None:
    """See to it that what the language model gives for a sample stays the same while a stage lasts.

    (Where a head's spatial prompt stands in the question it does not; such samples are never kept, see `ReadAndPrepare`.)

    Args:
        stage: one that keeps states. trained: groups that train in it.

    Raises:
        ConfigError: something before the heads trains in it, or is random.
    """
    before = [group for group in trained if not group.startswith("heads.")]
    if before:
        raise ConfigError(
            f"stage {stage.name!r}: keep_states keeps what comes before the heads, but {before[0]} trains; "
            "train heads alone, or leave keep_states out"
        )
    random = [name for name, module in model.backbone.named_modules() if isinstance(module, nn.Dropout) and module.p > 0]
    if random:
        raise ConfigError(f"stage {stage.name!r}: keep_states, but {random[0]} drops out at random; set lora.dropout to 0 or leave it out")


@contextmanager
def kept_states(stage: StageConfig, model: TPOModel, output: Path, accelerator: Any) -> Iterator[StateFolder | None]:
    """Open the folder of a stage's states, empty, and delete it when the stage is over; None where the stage keeps none.

    Raises:
        ConfigError: the model is sharded, so that processes must compute in step.
    """
    if stage.keep_states is None:
        yield None
        return
    if accelerator.distributed_type == DistributedType.FSDP:
        raise ConfigError(f"stage {stage.name!r}: keep_states does not work with a sharded model; leave it out")
    path = output / FOLDER / stage.name
    run_on_main(accelerator, lambda: shutil.rmtree(path, ignore_errors=True))
    folder = StateFolder(path, stage.keep_states / accelerator.num_processes)

    def keep(name: str, note: str, hidden_LD: Tensor, frames_TPV: list[Tensor]) -> None:
        folder.put(name, KeptSample(note, hidden_LD, frames_TPV))

    model.keep = keep
    try:
        yield folder
    finally:
        model.keep = None
        if accelerator.is_main_process:
            shutil.rmtree(output / FOLDER, ignore_errors=True)
