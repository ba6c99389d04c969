"""What a head's package announces: a light card, no torch.

A package puts one line into its metadata,

    [options.entry_points]
    tpo_core.v1 =
        foo = tpo_head_foo

and in that module implements the hook `tpo_heads` (see `tpo_core.hooks`), which returns `HeadSpec` cards.
Classes are named as ``"package.module:Class"`` strings and are imported only when a run uses the head.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from tpo_core.types import Target

API_GROUP = "tpo_core.v1"
COMMAND_GROUP = "tpo_core.v1.commands"

_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")
_REFERENCE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def is_head_name(name: str) -> bool:
    """Tell whether a head may be called so: lower case letters, digits and ``_``, a letter first, at most 32."""
    return _NAME.fullmatch(name) is not None


class HeadConfig(BaseModel):
    """Options that every head has; a head's own config derives from this one and adds its fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    weight: float = Field(1.0, ge=0, description="factor of this head's loss in the total")
    detach: bool = Field(False, description="cut the head's gradient from the language model")
    slots: int = Field(1, ge=1, le=64, description="task embeddings (slot tokens) per query")
    init_from: str | None = Field(None, description="start the tokens as a copy of this head's tokens")


@dataclass(frozen=True)
class HeadSpec:
    """The card of one head.

    Args:
        name: lower case, letters, digits and ``_``; the key in configs, records and checkpoints.
        summary: one line for `tpo heads`.
        examples: valid targets (as they stand in a record's ``targets``), used by docs and as test data.
        config, head, codec, metric: ``"pkg.mod:Class"`` of the `HeadConfig`, `Head`, `Codec`, `Metric` subclasses.
        draw: ``"pkg.mod:function"``, ``draw(canvas, answers, target) -> None``, or None.
        fidelity: least score of ``decode(ideal(encode(target)))`` by the head's own metric, in 0-1.
        primary: name of the metric's value that `fidelity` and the summary table use.
        prompt_examples: valid spatial prompts of a question, with their ``kind``, for a head that takes them (`Head.prompt`).

    Raises:
        ValueError: a name or a reference is not well formed.
    """

    name: str
    summary: str
    config: str
    head: str
    codec: str
    metric: str
    primary: str
    examples: Sequence[Mapping[str, Any]] = field(default_factory=tuple)
    draw: str | None = None
    fidelity: float = 1.0
    prompt_examples: Sequence[Mapping[str, Any]] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        if not is_head_name(self.name):
            raise ValueError(f"head name {self.name!r} must match {_NAME.pattern}")
        for part in ("config", "head", "codec", "metric", "draw"):
            reference = getattr(self, part)
            if part == "draw" and reference is None:
                continue
            if not isinstance(reference, str) or not _REFERENCE.fullmatch(reference):
                raise ValueError(f'head {self.name!r}: {part} must read "package.module:Name", got {reference!r}')


@dataclass(frozen=True)
class ReaderSpec:
    """The card of a reader: it turns an annotation format into records (the project's own JSON objects).

    Args:
        name: how a recipe names the format (``data: [{reader: name, path: ...}]``).
        summary: one line for `tpo heads`.
        reader: ``"pkg.mod:function"``, ``read(path: Path) -> Iterator[tuple[int, dict]]`` of (line, record).
    """

    name: str
    summary: str
    reader: str


@dataclass(frozen=True)
class BackboneSpec:
    """The card of a family override: which layout reads the vision features of a transformers `model_type`.

    Args:
        name: name of the layout.
        model_types: values of ``config.model_type`` it serves.
        layout: ``"pkg.mod:Class"`` of a `tpo_core.backbone.Layout` subclass.
    """

    name: str
    model_types: tuple[str, ...]
    layout: str


def examples_of(spec: HeadSpec) -> list[Target]:
    """Return the card's example targets as `Target`s, ids ``t0``, ``t1``, ... and media 0 unless given."""
    from tpo_core.types import Target

    return [Target.model_validate({"id": f"t{i}", "head": spec.name, "media": 0, **e}) for i, e in enumerate(spec.examples)]


def prompts_of(spec: HeadSpec) -> list[Target]:
    """Return the card's example prompts as `Target`s with ``role: prompt``, ids ``p0``, ``p1``, ... and media 0 unless given."""
    from tpo_core.types import Target

    given = enumerate(spec.prompt_examples)
    return [Target.model_validate({"id": f"p{i}", "role": "prompt", "head": spec.name, "media": 0, **e}) for i, e in given]
