"""Which id and which string each task token has. Plain values: no torch, no model.

Ids are given when a model is built or loaded, beyond the rows of the backbone's own table, so nothing of the backbone is resized:

    [0, rows)            the backbone's vocabulary
    start of each head   in order of name
    slots of each head   in order of name
    prompts of a batch   one id per spatial prompt, numbered by collation

Weights are stored by head name, never by id (DESIGN: "Tokens and backbones").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

ANSWER_OPEN, ANSWER_CLOSE = "<|tpo:answer|>", "<|tpo:/answer|>"
WORDS_OPEN, WORDS_CLOSE = "<|tpo:words|>", "<|tpo:/words|>"
MARKERS = (ANSWER_OPEN, ANSWER_CLOSE, WORDS_OPEN, WORDS_CLOSE)
RESERVED = "<|tpo:"


@dataclass(frozen=True)
class TaskVocabulary:
    """Ids and strings of the task tokens.

    Args:
        rows: rows of the backbone's embedding table, or the tokenizer's length where that is larger.
        slots: head name -> slots per query.
    """

    rows: int
    slots: Mapping[str, int]

    @property
    def names(self) -> tuple[str, ...]:
        """Heads in the order of their ids."""
        return tuple(sorted(self.slots))

    @property
    def size(self) -> int:
        """Number of start and slot ids."""
        return len(self.slots) + sum(self.slots.values())

    @property
    def prompt_base(self) -> int:
        """First id of the spatial prompts of a batch."""
        return self.rows + self.size

    def start_id(self, name: str) -> int:
        """Return the id of a head's start token."""
        return self.rows + self.names.index(name)

    def slot_ids(self, name: str) -> tuple[int, ...]:
        """Return the ids of a head's slot tokens, in their order."""
        first = self.rows + len(self.slots)
        for other in self.names:
            if other == name:
                return tuple(range(first, first + self.slots[name]))
            first += self.slots[other]
        raise KeyError(name)

    def is_task(self, token: int) -> bool:
        """Tell whether an id stands for a task token or a prompt."""
        return token >= self.rows

    def start_text(self, name: str) -> str:
        """Return the string of a start token, as it stands in rendered chat text."""
        return f"{RESERVED}{name}|>"

    def group_text(self, name: str) -> str:
        """Return the string of one token group: the start token and its slots."""
        return self.start_text(name) + "".join(f"{RESERVED}{name}:{i}|>" for i in range(self.slots[name]))

    def prompt_text(self, name: str) -> str:
        """Return the string of a spatial prompt that a head encodes."""
        return f"{RESERVED}{name}:prompt|>"

    def id_of(self) -> dict[str, int]:
        """Return string -> id for start and slot tokens, and string -> -1 for prompts (collation numbers those)."""
        table: dict[str, int] = {}
        for name in self.names:
            table[self.start_text(name)] = self.start_id(name)
            for i, token in enumerate(self.slot_ids(name)):
                table[f"{RESERVED}{name}:{i}|>"] = token
            table[self.prompt_text(name)] = -1
        return table

    def successors(self) -> dict[int, int]:
        """Return id -> id that must follow it in generation: the first slot after a start, the next slot after a slot."""
        follow: dict[int, int] = {}
        for name in self.names:
            chain = (self.start_id(name), *self.slot_ids(name))
            follow.update(pairwise(chain))
        return follow
