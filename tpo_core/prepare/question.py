"""From an annotated record to the question it asks: everything before the assistant's answer."""

from __future__ import annotations

from dataclasses import dataclass

from tpo_core.data.records import Message, Part, Record
from tpo_core.types import Target


@dataclass(frozen=True)
class Question:
    """What is asked, and what is expected.

    Args:
        record: the conversation up to and with the user's turn.
        targets: the targets of the assistant's turn that followed, in reading order.
        text: the words of that turn.
    """

    record: Record
    targets: tuple[Target, ...]
    text: str


def first_question(record: Record) -> Question:
    """Return the record's first question with its expected answer."""
    end = next((i for i, message in enumerate(record.messages) if message.role == "assistant"), len(record.messages))
    answer = record.messages[end] if end < len(record.messages) else None
    by_id = {t.id: t for t in record.targets}
    expected = tuple(by_id[p.id or ""] for p in (answer.content if answer else ()) if p.type == "target")
    asked = record.messages[:end]
    standing = [by_id[p.id or ""] for m in asked for p in m.content if p.type == "target"]
    prompts = tuple(_with_head(prompt, by_id) if prompt.role == "prompt" else prompt for prompt in standing)
    question = record.model_copy(update={"messages": tuple(asked), "targets": prompts})
    return Question(question, expected, answer.text if answer else "")


def ask(media: tuple[Part, ...], prompt: str, *, history: tuple[Message, ...] = (), prompts: tuple[Target, ...] = ()) -> Record:
    """Return a record that asks about media. Spatial prompts (targets with a role, a kind and a head) stand before the words."""
    parts = [*media, *(Part(type="target", id=p.id) for p in prompts), Part(type="text", text=prompt)]
    turn = Message(role="user", content=tuple(parts))
    # A question has no assistant turn and its prompts serve no target of their own: the format's checks are for annotated rows.
    return Record.model_construct(
        id="question", messages=(*history, turn), targets=prompts, source=None, task=None, split=None, choices=None, answer=None
    )


def _with_head(prompt: Target, by_id: dict[str, Target]) -> Target:
    served = by_id.get(prompt.serves or "")
    return prompt.model_copy(update={"head": prompt.head or (served.head if served else None)})
