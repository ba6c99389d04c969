"""AdamW, with Muon for matrices where a stage wants it, over named groups; its state by parameter name, so that it survives a change of
order and of process count.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tpo_core.config import StageConfig
from tpo_core.errors import CheckpointError, TrainError
from tpo_core.runs.state import whole
from tpo_core.types import Tensors, Trainable


class AdamWMuon(torch.optim.Optimizer):
    """Two optimizers as one: AdamW and Muon (Jordan 2024), each over its own entries of `param_groups`, with one state.

    Muon's step is a nearly orthogonal matrix, scaled as `match_rms_adamw` does: 0.2 of the rate per number, whatever the shape.
    """

    def __init__(self, adamw: list[dict[str, Any]], muon: list[dict[str, Any]], stage: StageConfig) -> None:
        super().__init__([*adamw, *muon], {"muon": False})
        self.adamw = torch.optim.AdamW(adamw, betas=stage.betas, eps=stage.eps) if adamw else None
        self.muon = torch.optim.Muon(muon, adjust_lr_fn="match_rms_adamw")
        parts = [part for part in (self.adamw, self.muon) if part is not None]
        # With every option of its own.
        self.param_groups = [entry for part in parts for entry in part.param_groups]

    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # torch's has overloads for a closure that nobody gives here
        """Move all parameters that have a gradient."""
        for part, muon in ((self.adamw, False), (self.muon, True)):
            if part is not None:
                # Loading a state puts new objects in the place of these.
                part.state = self.state
                part.param_groups = [entry for entry in self.param_groups if entry.get("muon", False) is muon]
                part.step()


def build_optimizer(
    model: Trainable, rates: Mapping[str, float], stage: StageConfig, *, muon: Mapping[str, float] | None = None
) -> torch.optim.Optimizer:
    """Return AdamW over the trainable parameters of these groups; biases, norms and other vectors do not decay.

    Each entry of `param_groups` has ``group``, ``names`` (one per parameter) and ``base_lr`` beside torch's own keys, and ``muon`` where it
    is Muon's.

    Args:
        rates: of AdamW, by group.
        muon: of Muon, by group: it moves these groups' weight matrices (not embeddings).

    Raises:
        TrainError: nothing is trainable, a parameter stands in two groups, or Muon is wanted for sharded parameters.
    """
    tables = {id(p) for m in _modules(model) if isinstance(m, nn.Embedding) for p in m.parameters(recurse=False)}
    kept: list[dict[str, Any]] = []
    turned: list[dict[str, Any]] = []
    owner: dict[int, str] = {}
    for group, parameters in model.groups().items():
        if group not in rates:
            continue
        kinds: dict[tuple[bool, bool], dict[str, nn.Parameter]] = {}
        for name, parameter in parameters.items():
            if not parameter.requires_grad:
                continue
            other = owner.setdefault(id(parameter), f"{group}/{name}")
            if other != f"{group}/{name}":
                raise TrainError(f"parameter {name!r} stands in two groups, as {other} and {group}/{name}; leave it in one")
            turns = group in (muon or {}) and parameter.ndim == 2 and name.endswith("weight") and id(parameter) not in tables
            if turns and is_sharded(parameter):
                raise TrainError(
                    f"stage {stage.name!r}: muon moves whole matrices, but those of {group} are sharded; leave muon out under FSDP2"
                )
            kinds.setdefault((turns, _decays(name, parameter)), {})[name] = parameter
        for (turns, decays), chosen in sorted(kinds.items(), key=lambda item: (item[0][0], not item[0][1])):
            rate = muon[group] if turns and muon else rates[group]
            entry = {
                "params": list(chosen.values()),
                "names": list(chosen),
                "group": group,
                "base_lr": rate,
                "lr": rate,
                "weight_decay": stage.weight_decay if decays else 0.0,
            }
            if turns:
                turned.append({**entry, "muon": True})
            else:
                kept.append(entry)
    if not kept and not turned:
        raise TrainError(f"stage {stage.name!r}: nothing to train, all parameters of {', '.join(rates) or 'no group'} are frozen")
    if turned:
        return AdamWMuon(kept, turned, stage)
    sharded = any(is_sharded(p) for entry in kept for p in entry["params"])
    return torch.optim.AdamW(kept, betas=stage.betas, eps=stage.eps, foreach=False if sharded else None)


def _modules(model: Trainable) -> list[nn.Module]:
    return list(model.modules()) if isinstance(model, nn.Module) else []


def _decays(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim > 1 and not name.endswith("bias") and "norm" not in name.lower()


def is_sharded(tensor: Tensor) -> bool:
    """Return whether a parameter lies in shards (FSDP2), so that every process must take part wherever it is read."""
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
    if is_sharded(parameter):
        from torch.distributed.tensor import DTensor, distribute_tensor

        assert isinstance(parameter, DTensor)
        placed: Tensor = distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
        return placed
    return value.to(parameter.device, copy=True)
