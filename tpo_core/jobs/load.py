"""A run's folder -> a `Run` that answers."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from tpo_core.backbone import load_backbone
from tpo_core.config.load import load_recipe
from tpo_core.config.recipe import Recipe
from tpo_core.errors import CheckpointError, TPOError
from tpo_core.jobs.assembly import assemble, identity_of, layouts_of, load_heads, restore_state
from tpo_core.jobs.run import Run
from tpo_core.plugins import Plugins, load_plugins
from tpo_core.runs import LoadedRun, load_run_state

logger = logging.getLogger(__name__)


def load_run(
    path: str | Path, *, model: str | None = None, plugins: Plugins | None = None, device: str | torch.device | None = None
) -> Run:
    """Load a trained run.

    A head whose package is not installed is left out (`Run.missing` says how to get it); the other heads answer as before.

    Args:
        path: a run's folder, or a checkpoint in it.
        model: the backbone, where it is not at the path that the run remembers.
        plugins: what is installed; None: looked up.
        device: such as ``cuda``; None: CUDA where there is one, else the CPU.

    Raises:
        CheckpointError: nothing complete is there, it is of another backbone, or none of its heads is installed.
    """
    plugins = plugins or load_plugins()
    loaded = load_run_state(path, installed=_usable(path, plugins))
    for note in loaded.notes:
        logger.warning("%s", note)
    recipe = _recipe(loaded, plugins, model)
    heads = load_heads(plugins, recipe.heads)
    if not heads:
        raise CheckpointError(f"{path}: none of its heads is installed: {'; '.join(loaded.notes)}")
    layouts = layouts_of(plugins)
    found = identity_of(load_backbone(recipe.model.path, layouts=layouts, meta=True))
    if not loaded.info.backbone.same_as(found):
        raise CheckpointError(f"{loaded.path} was trained on {loaded.info.backbone}, this is {found}; name the right one with --model")
    assembly = assemble(recipe, heads, layouts=layouts, adapter=loaded.state.adapter_config or {})
    restore_state(assembly, loaded.state)
    assembly.model.eval().to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    missing = dict(zip(loaded.absent, loaded.notes[-len(loaded.absent) :], strict=False))
    return Run(path=loaded.path, recipe=recipe, assembly=assembly, missing=missing)


def _usable(path: str | Path, plugins: Plugins) -> list[str]:
    """Return the heads whose package is here and works; a run must not fail for one that is broken."""
    usable = []
    for name in plugins.heads():
        try:
            plugins.load_head(name)
        except TPOError as error:
            logger.warning("%s: head %s cannot be used: %s", path, name, error)
            continue
        usable.append(name)
    return usable


def _recipe(loaded: LoadedRun, plugins: Plugins, model: str | None) -> Recipe:
    mapping = loaded.config()
    if model is not None:
        mapping["model"]["path"] = model
    configs = {name: plugins.config_class(name) for name in mapping["heads"]}
    return load_recipe(mapping, overrides=(), head_configs=configs)
