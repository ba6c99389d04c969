"""Loss balance, and how the losses pull on the weights they share.

An owner is ``lm``, ``assign`` or a head; its terms are ``region/l1``, ``region/giou``, ... The loss is linear in every term's share, and a
share is a sum over a denominator: so scaling an owner's denominators scales its loss, and an infinite one switches it off. Nothing of
the model needs to change.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tpo_core.errors import TrainError
from tpo_core.train.rng import capture_rng, restore_rng
from tpo_core.train.step import LOSS
from tpo_core.types import Batch, Trainable

Mode = Literal["fixed", "uncertainty", "gradient_norm"]

SHARED_GROUPS = ("lora", "llm", "connector")
"""The shared weights are the first of these that trains."""


@dataclass(frozen=True)
class Pulls:
    """Each owner's gradient on the shared weights in one optimiser step.

    Args:
        norms: owner -> norm; an owner without a count in the step is absent.
        cosines: (owner, owner) in order -> cosine of the angle between their gradients.
    """

    norms: dict[str, float] = field(default_factory=dict)
    cosines: dict[tuple[str, str], float] = field(default_factory=dict)


def owner_of(term: str) -> str:
    """Return whose loss a term belongs to."""
    return term.partition("/")[0]


def owner_gradients(
    model: Trainable, micro: Sequence[Batch], denominators: Mapping[str, float], shared: Sequence[nn.Parameter], accelerator: Any
) -> dict[str, Tensor]:
    """Return each owner's gradient on the shared weights, flat, float32, on the CPU; an owner that does not pull is absent.

    Gradients and random state are left as they were. It costs a forward and a backward per owner and micro-batch.

    Args:
        denominators: of the step, at least 1 each.
        shared: the weights to look at.

    Raises:
        TrainError: the weights are sharded.
    """
    if any(hasattr(parameter, "full_tensor") for parameter in shared):
        raise TrainError("the pulls on the shared weights cannot be measured under FSDP2; set loss.measure_every to null")
    rng = capture_rng()
    gradients: dict[str, Tensor] = {}
    for owner in dict.fromkeys(owner_of(term) for term in denominators):
        alone = {term: value if owner_of(term) == owner else math.inf for term, value in denominators.items()}
        total = torch.zeros(sum(parameter.numel() for parameter in shared), dtype=torch.float32)
        for batch in micro:
            # The same dropout for every owner.
            restore_rng(rng)
            loss = model(batch.to(accelerator.device), alone).loss
            parts = torch.autograd.grad(loss, list(shared), allow_unused=True)
            flat = [p.new_zeros(p.numel()) if g is None else g.flatten() for p, g in zip(shared, parts, strict=True)]
            total += torch.cat(flat).float().cpu()
        if accelerator.num_processes > 1:
            total = accelerator.reduce(total.to(accelerator.device), "sum").cpu()
        if float(total.norm()) > 0:
            gradients[owner] = total
    restore_rng(rng)
    return gradients


def pulls_of(gradients: Mapping[str, Tensor]) -> Pulls:
    """Return norms and cosines of `owner_gradients`."""
    owners = list(gradients)
    cosines = {
        (left, right): float(torch.nn.functional.cosine_similarity(gradients[left], gradients[right], dim=0))
        for index, left in enumerate(owners)
        for right in owners[index + 1 :]
    }
    return Pulls({owner: float(gradient.norm()) for owner, gradient in gradients.items()}, cosines)


def measure_pulls(
    model: Trainable, micro: Sequence[Batch], denominators: Mapping[str, float], shared: Sequence[nn.Parameter], accelerator: Any
) -> Pulls:
    """Take the step's gradient apart, owner by owner; see `owner_gradients`."""
    return pulls_of(owner_gradients(model, micro, denominators, shared, accelerator))


class Balance:
    """Factors of the owners' losses during a stage, beside the weights of the recipe.

    ``fixed``: all 1. ``uncertainty``: each owner has a learnt log-variance s, the objective is exp(-s) L + s (Kendall et al. 2018);
    its gradient, 1 - exp(-s) L, is known in closed form. ``gradient_norm``: each factor moves toward the one that gives the owner's
    gradient on the shared weights the norm of the conversation's (of the geometric mean where there is none). Factors stay in 1/20..20.

    Args:
        mode: as above.
        terms: of the model.
        shared: group names -> parameters that train; see `SHARED_GROUPS`.
        measure_every: steps between measurements; None: never.
        rate: step size of s, and share that a new measurement gets.
    """

    LIMIT = math.log(20.0)

    def __init__(
        self,
        mode: Mode,
        terms: Sequence[str],
        *,
        shared: Sequence[nn.Parameter] = (),
        measure_every: int | None = None,
        rate: float | None = None,
    ) -> None:
        if measure_every is not None and not shared:
            raise TrainError(f"loss.measure_every needs shared weights that train: one of the groups {', '.join(SHARED_GROUPS)}")
        self.mode = mode
        self.owners = list(dict.fromkeys(owner_of(term) for term in terms))
        self.logs = dict.fromkeys(self.owners, 0.0)
        self.pulls = Pulls()
        self._terms = list(terms)
        self._shared = list(shared)
        self._every = measure_every
        self._rate = rate if rate is not None else (0.02 if mode == "uncertainty" else 0.3)

    def factor(self, owner: str) -> float:
        """Return the factor of an owner's loss."""
        return math.exp(self.logs[owner])

    def due(self, step: int) -> bool:
        """Return whether this step (from 0) is measured."""
        self.pulls = Pulls()
        return self._every is not None and step % self._every == 0

    def measure(self, model: Trainable, micro: Sequence[Batch], denominators: Mapping[str, float], accelerator: Any) -> None:
        """Measure the pulls of this step, and follow them where the mode says so."""
        self.pulls = measure_pulls(model, micro, denominators, self._shared, accelerator)
        if self.mode != "gradient_norm" or not self.pulls.norms:
            return
        logs = {owner: math.log(norm) for owner, norm in self.pulls.norms.items()}
        reference = logs.get("lm", sum(logs.values()) / len(logs))
        for owner, value in logs.items():
            self._set(owner, self.logs[owner] + self._rate * (reference - value - self.logs[owner]))

    def apply(self, denominators: Mapping[str, float]) -> tuple[dict[str, float], float]:
        """Return denominators and a factor of the total that together give each owner its factor; no denominator gets smaller."""
        scale = max(self.factor(owner) for owner in self.owners)
        return {term: value * (scale / self.factor(owner_of(term))) for term, value in denominators.items()}, scale

    def plain_shares(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Return the metrics with each term's share as if every factor were 1."""
        scale = max(self.factor(owner) for owner in self.owners)
        return {name: value if name == LOSS else value * (scale / self.factor(owner_of(name))) for name, value in metrics.items()}

    def learn(self, shares: Mapping[str, float], counts: Mapping[str, float]) -> None:
        """Move the log-variances by this step's plain shares; an owner without a count stays."""
        if self.mode != "uncertainty":
            return
        for owner in self.owners:
            terms = [term for term in self._terms if owner_of(term) == owner]
            if any(counts[term] > 0 for term in terms):
                loss = sum(shares[term] for term in terms)
                # d/ds (exp(-s) L + s), with the factor's logarithm being -s.
                self._set(owner, self.logs[owner] + self._rate * (1.0 - self.factor(owner) * loss))

    def _set(self, owner: str, value: float) -> None:
        self.logs[owner] = min(max(value, -self.LIMIT), self.LIMIT)

    def metrics(self) -> dict[str, float]:
        """Return factors (unless fixed) and, in a measured step, norms and cosines."""
        factors = {} if self.mode == "fixed" else {f"factor/{owner}": self.factor(owner) for owner in self.owners}
        norms = {f"pull/{owner}": norm for owner, norm in self.pulls.norms.items()}
        cosines = {f"cosine/{left}/{right}": value for (left, right), value in self.pulls.cosines.items()}
        return factors | norms | cosines

    def state(self) -> dict[str, float]:
        """Return what `restore` takes."""
        return dict(self.logs)

    def restore(self, state: Mapping[str, float]) -> None:
        """Go on from a checkpoint; owners that it does not know begin at factor 1."""
        for owner in self.owners:
            self.logs[owner] = float(state.get(owner, 0.0))


def shared_parameters(model: Trainable) -> list[nn.Parameter]:
    """Return the trainable parameters of the first of `SHARED_GROUPS` that has any."""
    groups = model.groups()
    for group in SHARED_GROUPS:
        found = [parameter for parameter in groups.get(group, {}).values() if parameter.requires_grad]
        if found:
            return found
    return []
