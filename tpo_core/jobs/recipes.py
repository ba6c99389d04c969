"""Where a recipe comes from when nobody wrote one: a package's own, or the paper's stages over somebody's records."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tpo_core.config.load import head_names, load_recipe, open_recipe
from tpo_core.config.recipe import Recipe
from tpo_core.errors import CheckpointError, ConfigError, PluginBroken, did_you_mean
from tpo_core.plugins import Plugins, find_commands, resolve
from tpo_core.runs.content import INFO, holds_run

RECIPE_GROUP = "tpo_core.v1.recipes"
"""Entry points ``name = package.module:function``; the function takes (heads, output, **its own options) and returns a recipe's mapping."""
DEFAULT = "default"
OPTION = "recipe."


def split_options(overrides: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Return the options meant for the recipe's function (``recipe.samples=300``), and the overrides of the recipe itself."""
    options = {}
    rest = []
    for text in overrides:
        key, equals, value = text.partition("=")
        if key.startswith(OPTION) and equals:
            options[key.removeprefix(OPTION)] = value
        else:
            rest.append(text)
    return options, rest


def packaged_recipe(name: str, heads: Sequence[str], output: Path, options: Mapping[str, str]) -> dict[str, Any]:
    """Return the recipe that an installed package makes (group ``tpo_core.v1.recipes``); it may write data and a model first.

    Args:
        options: of the recipe's function, as text; they are read as the types of its parameters' defaults.

    Raises:
        ConfigError: no package has such a recipe, or it has no such option.
    """
    known = find_commands(RECIPE_GROUP)
    if name not in known:
        raise ConfigError(f"no installed package has a recipe {name!r}.{did_you_mean(name, known)} Give --config, or --data and --model")
    make: Callable[..., dict[str, Any]] = resolve(known[name].target, owner=f"recipe {name!r} ({known[name].package})")
    return make(heads, output, **_typed(make, name, options))


def default_recipe(
    heads: Sequence[str], output: Path, options: Mapping[str, str], *, resume: bool, preview: bool = False
) -> dict[str, Any]:
    """Return the recipe of a run that nobody wrote one for, with its data written; nothing of a run that is there already is touched.

    Args:
        resume: take the recipe of the run that the folder holds.
        preview: only look: nothing is written into the folder.

    Raises:
        CheckpointError: the folder holds a run and `resume` is off.
        ConfigError: options for a run that exists already, or as `packaged_recipe`.
    """
    if preview:
        with TemporaryDirectory() as aside:
            made = packaged_recipe(DEFAULT, heads, Path(aside) / "run", options)
            text = json.dumps(made, default=str).replace(json.dumps(str(Path(aside) / "run"))[1:-1], json.dumps(str(output))[1:-1])
            looked: dict[str, Any] = json.loads(text)
            return looked
    if not holds_run(output):
        return packaged_recipe(DEFAULT, heads, output, options)
    if not resume:
        raise CheckpointError(f"{output} holds a run already; add --resume to go on with it, or choose another --output")
    if options:
        raise ConfigError(f"{OPTION}{next(iter(options))}: {output} holds a run already, whose data are made; choose another --output")
    config: dict[str, Any] = json.loads((output / INFO).read_text("utf-8"))["config"]
    missing = sorted(set(heads) ^ set(config["heads"]))
    if missing:
        raise ConfigError(f"--heads: {output} holds a run of {', '.join(config['heads'])}; name the same heads, or choose another --output")
    return config


def own_data_recipe(heads: Sequence[str], *, data: Sequence[str], model: str, output: Path, test: Sequence[str] = ()) -> dict[str, Any]:
    """Return the paper's three stages over somebody's own records: assignment, the heads, all together; learning rates of its table 17."""

    def sources(paths: Sequence[str]) -> list[dict[str, str]]:
        names = [Path(path).stem for path in paths]
        doubled = {name for name in names if names.count(name) > 1}
        return [{"name": f"{n}-{i}" if n in doubled else n, "path": str(p)} for i, (n, p) in enumerate(zip(names, paths, strict=True))]

    def stage(name: str, epochs: float, train: dict[str, float]) -> dict[str, Any]:
        return {"name": name, "epochs": epochs, "batch_size": 16, "micro_batch": 4, "train": train, "warmup": 0.2}

    return {
        "output": str(output),
        "model": {"path": model},
        "heads": {name: {} for name in heads},
        "data": {"train": sources(data), "test": sources(test)},
        "stages": [
            stage("assign", 1, {"lora": 2e-5, "tokens": 1e-4}),
            stage("heads", 3, {"lora": 2e-5, "tokens": 1e-4, "heads": 1e-4}),
            stage("joint", 1, {"lora": 2e-5, "tokens": 2e-5, "heads": 2e-5, "connector": 2e-5}),
        ],
    }


def read_recipe(recipe: Mapping[str, Any] | Path, plugins: Plugins, *, heads: Sequence[str] | None, overrides: Sequence[str]) -> Recipe:
    """Validate a recipe with the configs of the heads that it names.

    Args:
        heads: keep only these of its heads; one that it does not name is added with its defaults. None: as written.

    Raises:
        ConfigError, HeadNotFound: one sentence per fault, with file, line and path.
    """
    document = open_recipe(recipe, overrides=overrides)
    if heads is not None:
        named = document.data.get("heads")
        document.data["heads"] = {name: (named or {}).get(name) if isinstance(named, dict) else None for name in heads}
    wanted = head_names(document)
    return load_recipe(document, overrides=(), head_configs={name: plugins.config_class(name) for name in wanted})


def _typed(make: Callable[..., Any], name: str, options: Mapping[str, str]) -> dict[str, Any]:
    parameters = {key: p for key, p in inspect.signature(make).parameters.items() if p.kind is p.KEYWORD_ONLY}
    values: dict[str, Any] = {}
    for key, text in options.items():
        if key not in parameters:
            near = did_you_mean(key, parameters) or f" It has: {', '.join(parameters)}"
            raise ConfigError(f"{OPTION}{key}: the recipe {name!r} has no such option.{near}")
        default = parameters[key].default
        kind = type(default)
        try:
            values[key] = kind(text) if kind in (int, float) else text
        except ValueError:
            raise ConfigError(f"{OPTION}{key}: found {text!r}, expected a number such as {default}") from None
    return values


__all__ = ["DEFAULT", "PluginBroken", "default_recipe", "own_data_recipe", "packaged_recipe", "read_recipe", "split_options"]
