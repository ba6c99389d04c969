"""One record: a conversation with media, places where heads are called, and their annotations. The project's own JSON object.

Hugging Face ``messages`` with content parts, plus a ``target`` part (where a head is called, or a spatial prompt stands) and a
``targets`` list. A key whose value is null is a missing key (table formats fill absent columns with null); null inside a list stays.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NoReturn, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from tpo_core.errors import DataError, did_you_mean
from tpo_core.types import Target

_STRICT = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
_LARGEST = 2**63
_MEDIA_FIELDS = frozenset({"start", "end", "fps", "frames"})
_PART_FIELDS = {
    "text": frozenset({"text"}),
    "image": frozenset({"path"}),
    "video": frozenset({"path"}) | _MEDIA_FIELDS,
    "target": frozenset({"id"}),
}


class Part(BaseModel):
    """A piece of a message: text, a picture, a clip, or the place of a target.

    Raises:
        ValidationError: a field that the type does not have, or one that it needs is missing.
    """

    model_config = _STRICT

    type: Literal["text", "image", "video", "target"]
    text: str | None = Field(None, description="of a text")
    path: str | None = Field(None, description="of an image or video, relative to the record file's folder")
    id: str | None = Field(None, description="of a target part: the target's id")
    start: float | None = Field(None, ge=0, strict=True, description="of a video: begin of the cut in seconds of the file")
    end: float | None = Field(None, gt=0, strict=True, description="of a video: end of the cut in seconds of the file")
    fps: float | None = Field(
        None, gt=0, le=1000, strict=True, description="of a frame folder: its rate; of a file: the rate to read it at"
    )
    frames: tuple[str, ...] | None = Field(None, min_length=1, description="of a frame folder: names of the pictures in order")

    @model_validator(mode="after")
    def _fields_fit_type(self) -> Self:
        given = self.model_fields_set - {"type"}
        allowed = _PART_FIELDS[self.type]
        needed = allowed - _MEDIA_FIELDS
        if given - allowed:
            raise ValueError(f"a part of type {self.type} has no {', '.join(sorted(given - allowed))}; it has {', '.join(sorted(allowed))}")
        if needed - given:
            raise ValueError(f"a part of type {self.type} needs {', '.join(sorted(needed))}")
        if self.path == "":
            raise ValueError(f"the path of a part of type {self.type} is empty; give the path of a file")
        if self.start is not None and self.end is not None and self.end <= self.start:
            raise ValueError(f"the cut ends at {self.end:g} s but starts at {self.start:g} s; give start < end")
        return self

    @property
    def is_media(self) -> bool:
        """Whether this is a picture or a clip."""
        return self.type in ("image", "video")


class Message(BaseModel):
    """A turn of the conversation. Plain text as content becomes one text part."""

    model_config = _STRICT

    role: Literal["system", "user", "assistant"]
    content: tuple[Part, ...]

    @field_validator("content", mode="before")
    @classmethod
    def _text_becomes_part(cls, content: object) -> object:
        return [{"type": "text", "text": content}] if isinstance(content, str) else content

    @property
    def text(self) -> str:
        """The text parts, joined."""
        return "".join(part.text or "" for part in self.content if part.type == "text")


class Record(BaseModel):
    """One sample as it stands in a file; see docs/data.md.

    Raises:
        ValidationError: what was found, field by field (`from_json` makes one sentence of it).
    """

    model_config = _STRICT

    id: str = Field(min_length=1, description="stable and unique in its file; the evaluator's key")
    source: str | None = Field(None, description="data set and split")
    task: str | None = Field(None, description="kind of task, for tables and mixtures")
    split: str | None = Field(None, description="train, val, test")
    messages: tuple[Message, ...] = Field(min_length=1)
    targets: tuple[Target, ...] = ()
    choices: tuple[str, ...] | None = Field(None, min_length=2, description="of a multiple-choice question")
    answer: int | None = Field(None, ge=0, strict=True, description="index of the right choice")

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        _check_turns(self.messages)
        _check_choice(self)
        _check_targets(self)
        return self

    @classmethod
    def from_json(cls, text: str | bytes, *, where: str) -> Self:
        """Return the record in one line of JSON, with something to learn or to answer in it.

        Args:
            text: one JSON object.
            where: ``file:line``, for messages.

        Raises:
            DataError: ``file:line: field: found, expected``; the first fault that was found, and how many there are. Of a row that a
                reader could not turn into a record (``{"fault": sentence}``): the reader's sentence.
        """
        fields = parse_object(text, where=where)
        if "fault" in fields and "messages" not in fields:
            raise DataError(f"{where}: {fields['fault']}")
        try:
            record = cls.model_validate(fields)
        except ValidationError as error:
            raise DataError(f"{where}: {_sentence(error)}") from None
        except RecursionError:
            raise DataError(f"{where}: the record is nested too deeply; expected a record of a few levels") from None
        if record.choices is None and all(message.role != "assistant" for message in record.messages):
            raise DataError(f"{where}: messages: there is no assistant turn and no choices; add what is to be answered")
        return record

    def parts(self) -> Iterator[tuple[Message, Part]]:
        """Yield every part with its message, in reading order."""
        for message in self.messages:
            for part in message.content:
                yield message, part

    def media_parts(self) -> list[Part]:
        """Return the pictures and clips in reading order; a target's `media` counts in this list."""
        return [part for _, part in self.parts() if part.is_media]

    def prompt_text(self) -> str:
        """Return the text of the last user turn."""
        return next(message.text for message in reversed(self.messages) if message.role == "user")

    def target(self, target_id: str) -> Target:
        """Return the target of an id.

        Raises:
            KeyError: there is none.
        """
        for target in self.targets:
            if target.id == target_id:
                return target
        raise KeyError(target_id)

    def to_json(self) -> str:
        """Return the record as one line of JSON, without the fields that are not set."""
        fields = self.model_dump(mode="json", by_alias=True, exclude_none=True, exclude={"targets"})
        fields["targets"] = [
            {**target.model_dump(mode="json", by_alias=True, include=set(Target.model_fields), exclude_unset=True), **target.fields()}
            for target in self.targets
        ]
        return json.dumps(fields, ensure_ascii=False, allow_nan=False)


def parse_object(text: str | bytes, *, where: str) -> dict[str, Any]:
    """Return a JSON object, null keys dropped.

    Raises:
        DataError: not UTF-8, not JSON, not an object, a doubled key, NaN, infinity, or a number beyond 64 bits.
    """
    try:
        decoded = text.decode("utf-8") if isinstance(text, bytes) else text
        value = json.loads(decoded, parse_constant=_refuse_constant, parse_float=_finite, parse_int=_bounded, object_pairs_hook=_unique)
        return _as_object(_without_null(value), where)
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: the line is not UTF-8 (byte {error.start}); save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON at character {error.pos + 1} ({error.msg}); expected one JSON object per line") from None
    except RecursionError:
        raise DataError(f"{where}: the JSON is nested too deeply; expected a record of a few levels") from None
    except _BadValue as error:
        raise DataError(f"{where}: {error}") from None


class _BadValue(ValueError):
    """A value that JSON allows and we do not; its text is the sentence."""


def _refuse_constant(name: str) -> NoReturn:
    raise _BadValue(f"found {name}; expected finite numbers, and null or nothing where a value is unknown")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _BadValue(f"the number {text[:40]} is too large; expected finite numbers")
    return value


def _bounded(text: str) -> int:
    if len(text) > 20 or abs(int(text)) >= _LARGEST:
        raise _BadValue(f"the number {text[:24]}... of {len(text)} digits is too large; expected whole numbers within 64 bits")
    return int(text)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        keys = [key for key, _ in pairs]
        double = next(key for key in keys if keys.count(key) > 1)
        raise _BadValue(f"the key {double!r} stands twice in one object; expected it once")
    return fields


def _without_null(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_null(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_null(item) if isinstance(item, dict | list) else item for item in value]
    return value


def _as_object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{where}: found {_kind(value)}; expected one JSON object per line")
    return value


def _check_turns(messages: Sequence[Message]) -> None:
    roles = [message.role for message in messages]
    if "user" not in roles:
        raise ValueError("messages hold no user turn; add the question")
    if "system" in roles[1:]:
        raise ValueError("a system turn stands behind the first place; put it first")
    if "assistant" in roles and roles.index("assistant") < roles.index("user"):
        raise ValueError("the assistant speaks before the user; begin with the question")
    for message in messages:
        if message.role != "user" and any(part.is_media for part in message.content):
            raise ValueError(f"an image or video stands in a turn of role {message.role}; put media into user turns")


def _check_choice(record: Record) -> None:
    if record.answer is not None and record.choices is None:
        raise ValueError("there is an answer but no choices; add the choices, or put the answer into an assistant turn")
    if record.answer is not None and record.choices is not None and record.answer >= len(record.choices):
        raise ValueError(f"answer is {record.answer}, but there are {len(record.choices)} choices (the first one is 0)")


def _check_targets(record: Record) -> None:
    targets = {target.id: target for target in record.targets}
    if len(targets) != len(record.targets):
        ids = [target.id for target in record.targets]
        double = next(name for name in ids if ids.count(name) > 1)
        raise ValueError(f"two targets have the id {double!r}; give each its own")
    turn_of_media = [turn for turn, message in enumerate(record.messages) for part in message.content if part.is_media]
    turn_of_target: dict[str, int] = {}
    for turn, message in enumerate(record.messages):
        for part in message.content:
            if part.type == "target" and part.id is not None:
                if part.id not in targets:
                    known = ", ".join(targets) or "none"
                    raise ValueError(f"a part names the target {part.id!r}, which targets do not hold; there: {known}")
                if part.id in turn_of_target:
                    raise ValueError(f"two parts name the target {part.id!r}; a target stands in one place")
                turn_of_target[part.id] = turn
    for target in record.targets:
        _check_target(record, targets, target, turn_of_target, turn_of_media)


def _check_target(
    record: Record, targets: dict[str, Target], target: Target, turn_of_target: dict[str, int], turn_of_media: Sequence[int]
) -> None:
    name = f"target {target.id!r}"
    if target.id not in turn_of_target:
        raise ValueError(f'{name} stands in no message; add the part {{"type": "target", "id": "{target.id}"}} where it belongs')
    turn = turn_of_target[target.id]
    expected = "user" if target.role == "prompt" else "assistant"
    if record.messages[turn].role != expected:
        raise ValueError(f"{name} has role {target.role} and stands in a turn of role {record.messages[turn].role}; expected {expected}")
    if target.media >= len(turn_of_media):
        raise ValueError(f"{name} is about media {target.media}, but the record holds {len(turn_of_media)} (the first one is 0)")
    if turn_of_media[target.media] > turn:
        raise ValueError(f"{name} is about media {target.media}, which comes in a later turn; show it first")
    if target.role == "answer":
        if target.head is None:
            raise ValueError(f"{name} names no head; add the head that answers it")
        if target.kind is not None or target.serves is not None:
            raise ValueError(f'{name} has a kind or "for", which only prompts have; set "role": "prompt", or drop them')
        return
    if target.head is not None:
        raise ValueError(f'{name} is a prompt and names a head; prompts have "for", the id of the target whose head encodes them')
    if target.kind is None or target.serves is None:
        raise ValueError(f'{name} is a prompt; it needs a kind (box or point) and "for", the id of the target it serves')
    served = targets.get(target.serves)
    if served is None or served.role != "answer":
        raise ValueError(f'{name} is for {target.serves!r}, which is no answer target of this record; set "for" to the id of one')
    if turn_of_target.get(target.serves, turn) < turn:
        raise ValueError(f"{name} stands behind {target.serves!r}, the target it serves; put it into the question")


def _sentence(error: ValidationError) -> str:
    faults = error.errors(include_url=False, include_context=False)
    first = faults[0]
    place = ".".join(str(step) for step in first["loc"])
    if first["type"] == "missing":
        text = "is missing; add it"
    elif first["type"] == "extra_forbidden":
        near = _near(first["loc"])
        text = f"is no field of the format; drop it, or correct its spelling{'.' + near if near else ''}"
    elif first["type"] == "value_error":
        text = first["msg"].removeprefix("Value error, ")
    else:
        expected = (first["msg"][:1].lower() + first["msg"][1:]).replace("tuple", "list").replace(" after validation", "")
        text = f"found {_kind(first['input'])}; {expected.replace('input should', 'it should')}"
    more = "" if len(faults) == 1 else f" (and {len(faults) - 1} more faults)"
    return f"{place}: {text}{more}" if place else f"{text}{more}"


def _near(place: tuple[int | str, ...]) -> str:
    owner = Record if len(place) == 1 else Part if "content" in place else Message
    return did_you_mean(str(place[-1]), owner.model_fields)


def _kind(value: Any) -> str:
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    return ascii(value) if len(repr(value)) <= 60 else f"{ascii(value)[:57]}..."
