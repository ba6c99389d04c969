"""What the commands that ask a trained model do first. Heavy to import: commands do so when they run."""

from __future__ import annotations

from pathlib import Path

import torch

from tpo_core.cli.output import echo
from tpo_core.jobs.load import load_run
from tpo_core.jobs.quiet import quiet_libraries
from tpo_core.jobs.run import Run
from tpo_core.plugins import Plugins, load_plugins


def open_run(run: Path, model: str | None, *, device: torch.device | None = None) -> tuple[Run, Plugins]:
    """Load a run and what is installed, and tell on stderr which of its heads are left out.

    Args:
        run: its folder. model: the backbone, where it is not where the run remembers it.
        device: None: as `load_run` chooses.

    Raises:
        CheckpointError: what `load_run` raises.
    """
    quiet_libraries()
    plugins = load_plugins()
    loaded = load_run(run, model=model, plugins=plugins, device=device)
    for note in loaded.missing.values():
        echo(note, err=True)
    return loaded, plugins
