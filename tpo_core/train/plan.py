"""What a stage trains and how fast: groups, learning rates, length."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from tpo_core.config import StageConfig
from tpo_core.errors import ConfigError, TrainError, did_you_mean


def resolve_rates(stage: StageConfig, groups: Iterable[str]) -> dict[str, float]:
    """Return the learning rate of each of the model's groups that trains in this stage, in the model's order.

    ``heads`` stands for every ``heads.<name>`` that takes part and is not named itself; so for ``tokens``.

    Raises:
        ConfigError: the stage names a group that the model has not.
    """
    return _resolve(stage, "train", stage.train, list(groups))


def resolve_muon_rates(stage: StageConfig, groups: Iterable[str]) -> dict[str, float]:
    """Return the rate of Muon for each of the model's groups whose matrices it moves in this stage, in the model's order.

    Raises:
        ConfigError: the stage names a group that the model has not, or that does not train.
    """
    groups = list(groups)
    rates = _resolve(stage, "muon", stage.muon, groups)
    frozen = [group for group in rates if group not in resolve_rates(stage, groups)]
    if frozen:
        raise ConfigError(f"stage {stage.name!r}: muon names the group {frozen[0]!r}, which does not train; give it a rate under train too")
    return rates


def _resolve(stage: StageConfig, option: str, given: Mapping[str, float | None], groups: list[str]) -> dict[str, float]:
    for key, rate in given.items():
        if rate is not None and not any(_covers(key, group) for group in groups):
            near = did_you_mean(key, groups) or f" It has: {', '.join(groups)}"
            raise ConfigError(f"stage {stage.name!r}: {option} names the group {key!r}, which this model has not.{near}")
    rates: dict[str, float] = {}
    for group in groups:
        covering = [key for key in given if _covers(key, group)]
        if not covering or not _takes_part(group, stage):
            continue
        rate = given[max(covering, key=len)]
        if rate is not None:
            rates[group] = rate
    return rates


def _covers(key: str, group: str) -> bool:
    return group == key or group.startswith(f"{key}.")


def _takes_part(group: str, stage: StageConfig) -> bool:
    root, _, head = group.partition(".")
    return root not in ("heads", "tokens") or not head or stage.heads is None or head in stage.heads


def stage_steps(stage: StageConfig, samples: int) -> int:
    """Return the optimiser steps of a stage.

    Args:
        samples: of one pass over the stage's sources.

    Raises:
        TrainError: the stage counts epochs and there are no samples.
    """
    if stage.steps is not None:
        return stage.steps
    assert stage.epochs is not None
    if samples < 1:
        raise TrainError(f"stage {stage.name!r} has no samples to learn from; check data.train and the stage's sources")
    return max(1, math.ceil(stage.epochs * samples / stage.batch_size))


def micro_batches(stage: StageConfig, world: int) -> tuple[int, int]:
    """Return (micro-batches per process and step, samples in each).

    Raises:
        TrainError: the step's samples do not divide evenly over processes and micro-batches.
    """
    share, rest = divmod(stage.batch_size, world)
    if rest:
        raise TrainError(f"stage {stage.name!r}: batch_size {stage.batch_size} does not divide over {world} processes; make it a multiple")
    size = share if stage.micro_batch is None else min(stage.micro_batch, share)
    if share % size:
        raise TrainError(
            f"stage {stage.name!r}: each of {world} processes gets {share} of {stage.batch_size} samples per step, "
            f"which is not a multiple of micro_batch {size}"
        )
    return share // size, size


def rate_factor(stage: StageConfig, step: int, steps: int) -> float:
    """Return the share of the full learning rate at a step (from 0) of a stage of so many steps."""
    warmup = stage.warmup if stage.warmup >= 1 else stage.warmup * steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if stage.schedule == "constant":
        return 1.0
    progress = (step - warmup) / max(1.0, steps - warmup)
    return stage.min_lr_ratio + (1 - stage.min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def describe_rates(rates: Mapping[str, float]) -> str:
    """Return ``lora 2e-05, heads.region 0.0001`` for a log line."""
    return ", ".join(f"{group} {rate:g}" for group, rate in rates.items())
