"""What a row of an ablation learns from: the same records without the turns that it is not to see, or with answers written as text.

The media stay, so that a target's index still counts them; a turn that goes leaves its media to the next one that stays.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tpo_core.data.records import Message, Part, Record
from tpo_core.errors import DataError
from tpo_core.head import Codec
from tpo_core.jobs.sources import OpenSource
from tpo_core.model import GenerationOptions
from tpo_core.model.build import Assembly
from tpo_core.predict import HeadAnswer, Prediction, Predictor
from tpo_core.types import ClipView, Target

Codecs = Mapping[str, Codec[Any]]


@dataclass(frozen=True)
class Keep:
    """Which turns of a record stay.

    Args:
        heads: answered by these heads. textual: answered by the language model, in words, in place of these heads.
        conversation: whether turns without a target stay.
    """

    heads: frozenset[str]
    textual: frozenset[str] = frozenset()
    conversation: bool = True

    @property
    def label(self) -> str:
        """A name for files: equal for equal choices."""
        parts = [*sorted(self.heads), *(f"{name}.text" for name in sorted(self.textual)), *(["talk"] if self.conversation else [])]
        return "+".join(parts) or "nothing"


def has_text(codec: Codec[Any]) -> bool:
    """Return whether a codec can write its targets as text and read them back."""
    return type(codec).to_text is not Codec.to_text and type(codec).from_text is not Codec.from_text


def reshape(record: Record, keep: Keep, codecs: Codecs) -> Record | None:
    """Return a training record with the turns that stay; None where none does.

    A turn goes as a whole: if one of its targets is of a head that is left out, or if it serves a head in words with a spatial prompt,
    which has no form in text.
    """
    targets = {target.id: target for target in record.targets}
    messages: list[Message] = []
    used: list[Target] = []
    waiting: list[Message] = []
    orphans: list[Part] = []
    answered = False
    for message in record.messages:
        if message.role == "system":
            messages.append(message)
        elif message.role == "user":
            waiting.append(message)
        elif _stays(waiting, message, targets, keep):
            turn = [_with_media(waiting[0], orphans), *waiting[1:]] if waiting else []
            messages += [*turn, _answer(message, targets, keep, codecs)]
            named = [targets[part.id or ""] for m in (*turn, message) for part in m.content if part.type == "target"]
            used += [target for target in named if target.role == "prompt" or target.head in keep.heads]
            waiting, orphans, answered = [], [], True
        else:
            orphans += [part for m in waiting for part in m.content if part.is_media]
            waiting = []
    if not answered:
        return None
    return record.model_copy(update={"messages": tuple(messages), "targets": tuple(used), "choices": None, "answer": None})


def keeps_test(record: Record, keep: Keep) -> bool:
    """Return whether a test record is asked: its first answer needs no head that the row has not. Conversation is always asked."""
    answer = next((message for message in record.messages if message.role == "assistant"), None)
    ids = {part.id for part in answer.content if part.type == "target"} if answer is not None else set()
    return all(target.head in keep.heads | keep.textual for target in record.targets if target.id in ids)


def write_records(source: OpenSource, path: Path, keep: Keep, codecs: Codecs, *, test: bool) -> int:
    """Write what stays of a source, whole or not at all, and return how many records that are. No file is left where none stays.

    Rows that are no valid record are passed over; a run on the whole records sets them aside.
    """
    lines = []
    for _, record in source.rows():
        if isinstance(record, DataError):
            continue
        kept = (record if keeps_test(record, keep) else None) if test else reshape(record, keep, codecs)
        if kept is not None:
            lines.append(kept.to_json() + "\n")
    if not lines:
        path.unlink(missing_ok=True)
        return 0
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(lines)
    if not path.is_file() or path.read_text("utf-8") != text:
        aside = path.with_name(f"{path.name}.tmp-{os.getpid()}")
        aside.write_text(text, "utf-8")
        os.replace(aside, path)
    return len(lines)


def _stays(asked: Iterable[Message], answer: Message, targets: Mapping[str, Target], keep: Keep) -> bool:
    owners = {targets[part.id or ""].head for part in answer.content if part.type == "target"}
    if not owners:
        return keep.conversation
    prompts = [targets[part.id or ""] for message in asked for part in message.content if part.type == "target"]
    served = {targets[prompt.serves or ""].head for prompt in prompts if prompt.serves in targets}
    return owners <= keep.heads | keep.textual and not served & keep.textual


def _with_media(message: Message, media: list[Part]) -> Message:
    return message.model_copy(update={"content": (*media, *message.content)}) if media else message


def _answer(message: Message, targets: Mapping[str, Target], keep: Keep, codecs: Codecs) -> Message:
    """Return the assistant's turn with the targets of textual heads written out."""
    parts = []
    for part in message.content:
        target = targets[part.id or ""] if part.type == "target" else None
        if target is None or target.head not in keep.textual:
            parts.append(part)
            continue
        codec = codecs[target.head]
        text = codec.absent if codec.is_absent(target) else codec.to_text(target)
        parts.append(Part(type="text", text=text))
    return message.model_copy(update={"content": tuple(parts)})


class TextualPredictor(Predictor):
    """Reads the answers of some heads out of the words, so that they are scored like any head's.

    Args:
        assembly: of the model.
        textual: heads whose answers are written; the first by name whose form the words have, on a medium that it works on, answered.
    """

    def __init__(self, assembly: Assembly, textual: Iterable[str]) -> None:
        super().__init__(assembly)
        self.textual = sorted(textual)

    def predict(self, questions: Sequence[Record], *, root: Path, options: GenerationOptions | None = None) -> list[Prediction]:
        """See `Predictor.predict`."""
        found = super().predict(questions, root=root, options=options)
        return [self._read(record, root, prediction) for record, prediction in zip(questions, found, strict=True)]

    def _read(self, record: Record, root: Path, prediction: Prediction) -> Prediction:
        if prediction.heads or not prediction.words:
            return prediction
        loaded = self.assembly.preparer.load_media(record, root)
        for name in self.textual:
            codec = self.assembly.codecs[name]
            able = [index for index, medium in enumerate(loaded.media) if medium.kind in codec.kinds]
            if not able:
                continue
            view: ClipView = self.assembly.preparer.view(name, loaded, able[-1])
            with self.assembly.heads[name].blame():
                answers = codec.from_text(prediction.words, view)
                if answers:
                    read = HeadAnswer(name, able[-1], tuple(answers), codec.describe(answers))
                    return replace(prediction, heads=(read,))
        return prediction
