"""What a prediction gives: words, and the answers of the heads that were called, in the order of the text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from tpo_core.types import Answer


@dataclass(frozen=True)
class HeadAnswer:
    """What one head answered in one place of the text.

    Args:
        head: its name.
        media: index of the medium in reading order.
        answers: one per token group that stood in a row (a region target of k boxes gives k).
        text: the answers in a few words.
    """

    head: str
    media: int
    answers: tuple[Answer, ...]
    text: str

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dict."""
        return {"head": self.head, "media": self.media, "answers": list(self.answers), "text": self.text}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Return what `to_json` wrote."""
        return cls(value["head"], value["media"], tuple(value["answers"]), value["text"])


@dataclass(frozen=True)
class Prediction:
    """The answer to one question.

    Args:
        text: the words, with each head's answer in its place as ``[head: ...]``.
        words: the words alone.
        heads: the heads' answers in the order of the text.
        ids: the generated ids.
        frames: per medium, the frames (indices) that the language model saw.
    """

    text: str
    words: str
    heads: tuple[HeadAnswer, ...] = ()
    ids: tuple[int, ...] = ()
    frames: Mapping[int, tuple[int, ...]] = field(default_factory=dict)

    def of(self, head: str) -> tuple[HeadAnswer, ...]:
        """Return one head's answers."""
        return tuple(answer for answer in self.heads if answer.head == head)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dict."""
        return {"text": self.text, "words": self.words, "heads": [answer.to_json() for answer in self.heads]}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Return what `to_json` wrote, without ids and frames."""
        return cls(value["text"], value["words"], tuple(HeadAnswer.from_json(answer) for answer in value["heads"]))
