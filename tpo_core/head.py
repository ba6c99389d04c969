"""The base classes that a head's author derives from: `Codec` (data workers, no weights), `Head` (device), `Metric` (records).

What is hard and the same for everyone (tokens, zero rows, denominators, ranks, caching, padding) is core's affair. See
docs/write-a-head.md; letters behind an underscore are explained in `tpo_core.types`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import ClassVar, Generic, TypeVar

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from tpo_core.contract import HeadConfig
from tpo_core.types import Answer, BackboneView, Chunk, ClipView, MediaInfo, Queries, Target, Tensors, Widths

C = TypeVar("C", bound=HeadConfig)


class Codec(Generic[C]):
    """The data adapter: annotation <-> tensors. Runs in data workers; no weights, no device; picklable.

    Class attributes (an author sets what differs from the default):
        schema: a pydantic model that validates the head's own fields of a target (``extra="forbid"`` is the author's choice), or None.
        terms: names of the loss terms, the same that `Head.loss` returns.
        ragged: names of tensors (in `encode` or `inputs`) whose first dimension varies; core pads them with zeros to the longest and adds a
            bool tensor ``<name>_valid`` of shape (N or K, longest).
        kinds: kinds of media it works on; a generated query is about the last such medium of the conversation.
        needs_features: whether the head reads `Queries.features`.
        absent: what the assistant says where a target has nothing to answer (`encode` returned no query).
    """

    schema: ClassVar[type[BaseModel] | None] = None
    ragged: ClassVar[frozenset[str]] = frozenset()
    kinds: ClassVar[frozenset[str]] = frozenset({"image", "video"})
    needs_features: ClassVar[bool] = True
    absent: ClassVar[str] = "It is not there."

    def __init__(self, config: C, view: BackboneView) -> None:
        self.config = config
        self.view = view

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of the loss terms; may depend on the config."""
        return ("loss",)

    def check(self, target: Target, media: MediaInfo) -> None:
        """Raise `ValueError` (one sentence: found, expected, what to do) where the annotation does not fit the medium."""

    def is_absent(self, target: Target) -> bool:
        """Return whether the annotation says that there is nothing to answer, so that `encode` gives no query and words answer."""
        return False

    def inputs(self, clip: ClipView) -> Tensors:
        """Return what the head itself reads of the medium (say, uint8 frames at its own size), no batch dimension."""
        return {}

    def encode(self, target: Target, clip: ClipView) -> list[Tensors]:
        """Return one dict of tensors per query (no batch dimension): k give k token groups in a row, none is answered in words."""
        raise NotImplementedError(f"{type(self).__name__}.encode")

    def counts(self, encoded: Tensors) -> dict[str, float]:
        """Return how much each loss term counts for one query (boxes, annotated frames); denominators are their sums. Default 1."""
        return dict.fromkeys(self.terms, 1.0)

    def encode_prompt(self, prompt: Target, clip: ClipView) -> Tensors:
        """Return the tensors of one spatial prompt in the question (no batch dimension).

        Raises:
            ValueError: this head takes no prompts, or not of this kind.
        """
        raise ValueError(f"this head takes no {prompt.kind or 'spatial'} prompt in the question")

    def decode(self, output: Tensors, clip: ClipView) -> Answer:
        """Return one query's answer, JSON-ready, in original pixels and seconds. `output` is one row of `Head.forward` (CPU)."""
        raise NotImplementedError(f"{type(self).__name__}.decode")

    def chunks(self, clip: ClipView) -> Iterator[Chunk]:
        """Yield the pieces in which a medium is predicted; default: one piece, `inputs` and the language model's own features."""
        yield Chunk(inputs=self.inputs(clip))

    def merge(self, answers: Sequence[Answer], clip: ClipView) -> Answer:
        """Merge the answers of the chunks of one query; default: there is only one."""
        if len(answers) != 1:
            raise ValueError(f"{type(self).__name__} yields {len(answers)} chunks but does not say how to merge their answers")
        return answers[0]

    def describe(self, answers: Sequence[Answer]) -> str:
        """Return the answers (of one target) in a few words, for a terminal."""
        return "; ".join(str(answer) for answer in answers)

    def to_text(self, target: Target) -> str:
        """Return a target in words, for the baseline in which the language model writes answers as text (`tpo ablate`). Optional.

        Raises:
            NotImplementedError: this head's targets have no such form.
        """
        raise NotImplementedError(f"{type(self).__name__}.to_text")

    def from_text(self, text: str, clip: ClipView) -> list[Answer]:
        """Return the answers that a text in the form of `to_text` holds, as `decode` would give them; [] where it holds none."""
        raise NotImplementedError(f"{type(self).__name__}.from_text")


class Head(nn.Module, Generic[C]):
    """Task embeddings -> output -> loss, on the device. Reads no files and never sees N = 0.

    Class attributes:
        mixing_terms: names of loss terms that look at other rows of the micro-batch (batch negatives); set it in `__init__` where it
            depends on the config.
    """

    mixing_terms: frozenset[str] = frozenset()
    prompt: nn.Module | None

    def __init__(self, config: C, widths: Widths) -> None:
        super().__init__()
        self.config = config
        self.widths = widths
        self.prompt = None

    @property
    def term_weights(self) -> Mapping[str, float]:
        """Factor of each loss term in the head's loss; a term that is not named counts 1."""
        return {}

    def forward(self, queries: Queries, targets: Tensors | None = None) -> Tensors:
        """Return tensors whose first dimension is N. What `Codec.decode` reads must not depend on the targets."""
        raise NotImplementedError(f"{type(self).__name__}.forward")

    def loss(self, output: Tensors, targets: Tensors) -> Tensors:
        """Return {term: (N,)}: row i is query i's summed loss. The only division is core's, by the summed `Codec.counts`."""
        raise NotImplementedError(f"{type(self).__name__}.loss")

    def ideal(self, targets: Tensors) -> Tensors:
        """Return the output that a perfect head would give for these targets; the conformance kit decodes and scores it."""
        raise NotImplementedError(f"{type(self).__name__}.ideal")

    def stream(self, queries: Queries, chunks: Iterable[Chunk]) -> Iterator[Tensors]:
        """Yield one output per chunk of a long medium (all queries are on that medium). Default: `forward` on each."""
        for chunk in chunks:
            features = chunk.features if chunk.features is not None else queries.features
            yield self(queries.with_media(features, chunk.inputs))


class Metric:
    """Scores records: the codec's answers against the annotation as written. One per head and split."""

    def update(self, answers: Sequence[Answer], target: Target) -> None:
        """Add one target with the answers given for it; none means that no query was emitted, which is a miss, never left out."""
        raise NotImplementedError(f"{type(self).__name__}.update")

    def compute(self) -> dict[str, float]:
        """Return {name: value}; an empty metric returns {}."""
        raise NotImplementedError(f"{type(self).__name__}.compute")

    def chance(self) -> dict[str, float]:
        """Return what an answer that ignores question and medium scores on the targets seen so far, under the same names."""
        raise NotImplementedError(f"{type(self).__name__}.chance")


def prompt_rows(prompt: nn.Module, tensors: Tensors) -> Tensor:
    """Return the embeddings (number of prompts, D) that stand for spatial prompts in the question."""
    rows = prompt(tensors)
    if not isinstance(rows, torch.Tensor) or rows.ndim != 2:
        raise TypeError(f"prompt modules return (number of prompts, D), got {getattr(rows, 'shape', type(rows))}")
    return rows


__all__ = ["Answer", "Codec", "Head", "Metric", "prompt_rows"]
