"""What a run's folder holds, as plain values. The model's room turns a model into a `RunState` and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from torch import Tensor

from tpo_core.types import Tensors

HeadName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,31}$")]
"""Names a file of the folder, so it must not lead out of it."""


class Document(BaseModel):
    """Base of what is written as JSON."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class HeadOrigin(Document):
    """Where a head of the run came from."""

    package: str = Field(description="distribution that announced it")
    version: str = Field(description="its version when the run was made")


class BackboneIdentity(Document):
    """Tells one backbone from another."""

    path: str = Field(description="folder or hub name, as the recipe gave it")
    model_type: str = Field(description="transformers' name of the architecture")
    hidden: int = Field(description="width of the language model")
    vocabulary: int = Field(description="rows of the embedding table")
    digest: str = Field(description="of its config, in hexadecimal")

    def same_as(self, other: BackboneIdentity) -> bool:
        """Return whether states of the one fit the other; the folder may have moved."""
        return (self.model_type, self.hidden, self.vocabulary, self.digest) == (
            other.model_type,
            other.hidden,
            other.vocabulary,
            other.digest,
        )

    def __str__(self) -> str:
        return f"{self.path} ({self.model_type}, width {self.hidden}, vocabulary {self.vocabulary}, config {self.digest[:8]})"


class StageMark(Document):
    """How far a run is."""

    index: int = Field(0, ge=0, description="of the stage, from 0")
    name: str = Field("", description="of the stage")
    step: int = Field(0, ge=0, description="optimiser steps done in this stage")
    steps: int = Field(0, ge=0, description="optimiser steps of the whole stage")
    global_step: int = Field(0, ge=0, description="optimiser steps done in all stages")
    position: int = Field(0, ge=0, description="samples drawn from the stage's mixture")

    @property
    def finished(self) -> bool:
        """Whether the stage is done."""
        return self.step >= self.steps


class RunInfo(Document):
    """The file ``run.json``."""

    format: int = Field(1, description="of this folder")
    created: str = Field(description="when the run began, UTC")
    config: dict[str, Any] = Field(description="the recipe, after overrides")
    versions: dict[str, str] = Field(description="package -> version")
    heads: dict[HeadName, HeadOrigin] = Field(description="head -> package and version")
    backbone: BackboneIdentity
    data: dict[str, str] = Field(default_factory=dict, description="source -> fingerprint of its records")
    stage: StageMark = Field(default_factory=StageMark, description="how far the run is")


@dataclass(frozen=True)
class RunState:
    """What was learnt, by owner. Names, never ids; only what trained at some time of the run.

    Args:
        adapter: PEFT's names (``base_model.model....lora_A.weight``); empty without an adapter.
        adapter_config: content of ``adapter_config.json``; None without an adapter.
        tokens: head -> its token rows by name.
        heads: head -> its module's state.
        backbone: parameters of vision, connector or language model that trained, by the backbone's own names.
    """

    adapter: Tensors = field(default_factory=dict)
    adapter_config: Mapping[str, Any] | None = None
    tokens: dict[str, Tensors] = field(default_factory=dict)
    heads: dict[str, Tensors] = field(default_factory=dict)
    backbone: Tensors = field(default_factory=dict)


@dataclass(frozen=True)
class TrainerState:
    """What a trainer needs to go on exactly where it was.

    Args:
        mark: stage, step, position.
        optimizer: parameter name -> {``exp_avg``: tensor, ...}.
        rng: of each rank, as `tpo_core.train` captured it.
        balance: state of the loss balance.
    """

    mark: StageMark
    optimizer: dict[str, Tensors] = field(default_factory=dict)
    rng: list[Tensors] = field(default_factory=list)
    balance: dict[str, float] = field(default_factory=dict)


def whole(tensor: Tensor) -> Tensor:
    """Return a detached copy on the CPU, gathered where it is sharded (then every rank must call this)."""
    full = getattr(tensor, "full_tensor", None)
    value: Tensor = tensor if full is None else full()
    return value.detach().to("cpu", copy=True).contiguous()


def whole_state(state: Mapping[str, Tensor]) -> Tensors:
    """Return `whole` of each tensor, in order of name, so that ranks gather in step."""
    return {name: whole(state[name]) for name in sorted(state)}
