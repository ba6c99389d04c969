"""From a recipe to a built model, and between a model and what a run's folder holds."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from tpo_core.backbone import Backbone, Layout, LoraOptions, load_backbone
from tpo_core.config.recipe import Recipe
from tpo_core.contract import HeadConfig
from tpo_core.errors import CheckpointError, PluginBroken
from tpo_core.model.build import Assembly, ModelOptions, build_model
from tpo_core.plugins import LoadedHead, Plugins
from tpo_core.runs.state import BackboneIdentity, RunState, whole_state
from tpo_core.types import Tensors

TRAINED_GROUPS = ("vision", "connector", "llm")
"""Groups of the backbone itself: kept in a checkpoint only where a stage trained them."""


def load_heads(plugins: Plugins, names: Iterable[str]) -> list[LoadedHead]:
    """Import the classes of these heads, in order of name."""
    return [plugins.load_head(name) for name in sorted(names)]


def layouts_of(plugins: Plugins) -> dict[str, type[Layout]]:
    """Return the layouts that packages announce, by model type.

    Raises:
        PluginBroken: a card does not name a `Layout`.
    """
    layouts: dict[str, type[Layout]] = {}
    for card in plugins.backbones().values():
        layout = plugins.resolve(card.layout)
        if not isinstance(layout, type) or not issubclass(layout, Layout):
            raise PluginBroken(f"backbone card {card.name!r}: {card.layout} is no tpo_core.backbone.Layout; correct the card")
        layouts |= dict.fromkeys(card.model_types, layout)
    return layouts


def assemble(
    recipe: Recipe,
    heads: Sequence[LoadedHead],
    *,
    layouts: Mapping[str, type[Layout]] | None = None,
    adapter: Mapping[str, Any] | None = None,
    meta: bool = False,
) -> Assembly:
    """Load the recipe's backbone and join it with the heads.

    Args:
        heads: a subset of the recipe's heads may be given (a head's package is not installed any more).
        layouts: from `layouts_of`.
        adapter: the adapter config of a checkpoint, whose rank and scale then count; None: the recipe's own.
        meta: build without weights.
    """
    backbone = load_backbone(recipe.model.path, dtype=recipe.model.dtype, attention=recipe.model.attention, layouts=layouts, meta=meta)
    configs: dict[str, HeadConfig] = {name: config for name, config in recipe.heads.items() if name in {h.name for h in heads}}
    options = ModelOptions(
        frames=recipe.model.frames,
        max_length=recipe.model.max_length,
        lora=lora_options(recipe, adapter),
        assign_weight=recipe.loss.assign,
        assign_every_answer=recipe.loss.assign_every_answer,
        start_bias=recipe.model.start_bias,
        token_init=recipe.model.token_init,
        seed=recipe.seed,
        allow_outside_root=recipe.data.allow_outside_root,
    )
    return build_model(backbone, heads, configs=configs, options=options)


def lora_options(recipe: Recipe, adapter: Mapping[str, Any] | None) -> LoraOptions | None:
    """Return the adapter's options: a checkpoint's (an empty config: none), or the recipe's where a stage trains the adapter."""
    if adapter is not None and not adapter:
        return None
    if adapter is not None:
        return LoraOptions(r=int(adapter["r"]), alpha=float(adapter["lora_alpha"]), dropout=float(adapter["lora_dropout"]))
    if recipe.lora is None or not any("lora" in stage.rates for stage in recipe.stages):
        return None
    return LoraOptions(r=recipe.lora.r, alpha=recipe.lora.alpha, dropout=recipe.lora.dropout)


def identity_of(backbone: Backbone) -> BackboneIdentity:
    """Return what tells this backbone from another."""
    found = backbone.identity()
    return BackboneIdentity(
        path=found["path"],
        model_type=found["model_type"],
        hidden=found["hidden"],
        vocabulary=found["vocabulary"],
        digest=found["config"],
    )


def capture_state(assembly: Assembly, trained: Collection[str]) -> RunState:
    """Return what was learnt, on the CPU; every process must call this where parameters are sharded.

    Args:
        trained: which of `TRAINED_GROUPS` trained at some time of the run.
    """
    model = assembly.model
    groups = model.backbone.groups()
    backbone = {name: p for group in sorted(trained) for name, p in groups[group].items()}
    tokens: dict[str, Tensors] = {name: {} for name in model.vocabulary.names}
    for key, value in whole_state(model.tokens.state_by_name()).items():
        head, _, row = key.partition("/")
        tokens[head][row] = value
    heads = {}
    for name in model.vocabulary.names:
        heads[name] = whole_state(_head_state(assembly, name))
    return RunState(
        adapter=whole_state(model.backbone.adapter_state()),
        adapter_config=model.backbone.adapter_config,
        tokens=tokens,
        heads=heads,
        backbone=whole_state({name: p.detach() for name, p in backbone.items()}),
    )


@torch.no_grad()
def restore_state(assembly: Assembly, state: RunState, *, add_heads: bool = False) -> None:
    """Put what was learnt into a built model. States of heads that the model has not are left aside.

    Args:
        add_heads: heads that the state has not keep their first weights; else they are an error.

    Raises:
        CheckpointError: names are missing, unexpected, or of another shape; all are listed by owner.
    """
    model = assembly.model
    problems: list[str] = []
    _copy("adapter", state.adapter, model.backbone.adapter_parameters(), problems)
    parameters = dict(model.backbone.model.named_parameters())
    missing_base = sorted(set(state.backbone) - set(parameters))
    if missing_base:
        problems.append(f"backbone: unexpected {', '.join(missing_base[:4])}")
    _copy("backbone", state.backbone, {n: p for n, p in parameters.items() if n in state.backbone}, problems)
    for name in model.vocabulary.names:
        if name in state.heads:
            _copy(f"head {name!r}", state.heads[name], _head_state(assembly, name), problems)
        elif not add_heads:
            problems.append(f"head {name!r}: nothing was saved for it")
    if problems:
        raise CheckpointError(f"the checkpoint does not fit this model: {'; '.join(problems)}; use the recipe and the packages of the run")
    kept = model.tokens.state_by_name() if add_heads else {}
    model.tokens.load_by_name({**kept, **{f"{head}/{row}": value for head, rows in state.tokens.items() for row, value in rows.items()}})


def _head_state(assembly: Assembly, name: str) -> Tensors:
    state = assembly.model.slot(name).head.state_dict()
    return {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}


def _copy(owner: str, saved: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor | nn.Parameter], problems: list[str]) -> None:
    missing, unexpected = sorted(set(own) - set(saved)), sorted(set(saved) - set(own))
    if missing:
        problems.append(f"{owner}: missing {_some(missing)}")
    if unexpected:
        problems.append(f"{owner}: unexpected {_some(unexpected)}")
    for name in sorted(set(own) & set(saved)):
        if own[name].shape != saved[name].shape:
            problems.append(f"{owner}: {name} is {tuple(saved[name].shape)}, expected {tuple(own[name].shape)}")
        elif not missing and not unexpected:
            own[name].copy_(saved[name])


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more
