"""AdamW over named groups; its state by parameter name, so that it survives a change of order and of process count."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tpo_core.config import StageConfig
from tpo_core.errors import CheckpointError, TrainError
from tpo_core.runs.state import whole
from tpo_core.types import Tensors, Trainable


def build_optimizer(model: Trainable, rates: Mapping[str, float], stage: StageConfig) -> torch.optim.AdamW:
    """Return AdamW over the trainable parameters of these groups; biases, norms and other vectors do not decay.

    Each entry of `param_groups` has ``group``, ``names`` (one per parameter) and ``base_lr`` beside torch's own keys.

    Raises:
        TrainError: nothing is trainable, or a parameter stands in two groups.
    """
    entries: list[dict[str, Any]] = []
    owner: dict[int, str] = {}
    for group, parameters in model.groups().items():
        if group not in rates:
            continue
        for decays in (True, False):
            chosen = {name: p for name, p in parameters.items() if p.requires_grad and _decays(name, p) is decays}
            for name, parameter in chosen.items():
                other = owner.setdefault(id(parameter), f"{group}/{name}")
                if other != f"{group}/{name}":
                    raise TrainError(f"parameter {name!r} stands in two groups, as {other} and {group}/{name}; leave it in one")
            if chosen:
                entries.append(
                    {
                        "params": list(chosen.values()),
                        "names": list(chosen),
                        "group": group,
                        "base_lr": rates[group],
                        "lr": rates[group],
                        "weight_decay": stage.weight_decay if decays else 0.0,
                    }
                )
    if not entries:
        raise TrainError(f"stage {stage.name!r}: nothing to train, all parameters of {', '.join(rates) or 'no group'} are frozen")
    sharded = any(_is_sharded(p) for entry in entries for p in entry["params"])
    return torch.optim.AdamW(entries, betas=stage.betas, eps=stage.eps, foreach=False if sharded else None)


def _decays(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim > 1 and not name.endswith("bias") and "norm" not in name.lower()


def _is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")


def named_parameters(optimizer: torch.optim.Optimizer) -> dict[str, nn.Parameter]:
    """Return ``group/name`` -> the parameter that the optimizer moves."""
    return {
        f"{entry['group']}/{name}": parameter
        for entry in optimizer.param_groups
        for name, parameter in zip(entry["names"], entry["params"], strict=True)
    }


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Tensors]:
    """Return ``group/name`` -> {key: tensor}, whole, on the CPU; every rank must call this where tensors are sharded."""
    state: dict[str, Tensors] = {}
    for name, parameter in named_parameters(optimizer).items():
        held = optimizer.state.get(parameter)
        if held:
            state[name] = {key: whole(torch.as_tensor(held[key])) for key in sorted(held)}
    return state


def restore_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Put back what `optimizer_state` returned. A parameter without a state has not moved yet (an idle head).

    Raises:
        CheckpointError: a name that this optimizer has not, or a tensor of another shape.
    """
    parameters = named_parameters(optimizer)
    unknown = sorted(state.keys() - parameters.keys())
    if unknown:
        raise CheckpointError(
            f"the checkpoint's optimizer holds {len(unknown)} parameters that do not train here, such as {unknown[0]}; "
            f"resume with the recipe of the run"
        )
    for name, held in state.items():
        parameter = parameters[name]
        optimizer.state[parameter] = {key: _placed(name, key, value, parameter) for key, value in held.items()}


def _placed(name: str, key: str, value: Tensor, parameter: nn.Parameter) -> Tensor:
    if value.ndim == 0:
        # AdamW keeps its step count on the CPU.
        return value.clone()
    if value.shape != parameter.shape:
        raise CheckpointError(
            f"the checkpoint's optimizer has {key} of shape {tuple(value.shape)} for {name}, here it is {tuple(parameter.shape)}"
        )
    if _is_sharded(parameter):
        from torch.distributed.tensor import DTensor, distribute_tensor

        assert isinstance(parameter, DTensor)
        placed: Tensor = distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
        return placed
    return value.to(parameter.device, copy=True)
