"""Readers of two common conversation formats: LLaVA's JSON and VideoChat2-IT's. Both are one JSON list and name no head.

They are read whole (converted once, see `tpo_core.data.readers`). Where a row stands is counted in rows of the list, from 1.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tpo_core.errors import DataError

_PLACE = re.compile(r"\n?<(?:image|video)>\n?")
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}

Fields = dict[str, Any]


def read_llava(path: Path) -> Iterator[tuple[int, Fields]]:
    """Yield (row, record) of a LLaVA JSON or JSON-lines file: ``conversations`` of ``from``, ``value`` with ``<image>`` or ``<video>``.

    ``image`` (or ``video``) is a path, a list of paths, or missing; the tags stand for them in order. Media without a tag come first in
    the first user turn. Media paths stay as they are: relative to the file's folder. A row of another shape becomes a fault.

    Raises:
        DataError: the file cannot be read, or is not JSON.
    """
    for row, fields in _rows(path):
        name = str(fields.get("id", f"{path.stem}-{row}"))
        try:
            messages = _llava_messages(fields)
        except _Fault as fault:
            yield row, {"id": name, "fault": str(fault)}
        else:
            yield row, {"id": name, "source": str(fields.get("data_source", path.stem)), "task": "chat", "messages": messages}


def read_videochat2_it(path: Path) -> Iterator[tuple[int, Fields]]:
    """Yield (row, record) of a VideoChat2-IT ``train.json``: ``video`` or ``image``, ``QA`` of ``i``, ``q``, ``a``, ``start``, ``end``.

    The first pair's instruction becomes the system turn; a question that is empty (captions) is the instruction itself. A row of another
    shape becomes a fault.

    Raises:
        DataError: the file cannot be read, or is not JSON.
    """
    folder = path.parent.name
    for row, fields in _rows(path):
        name = f"{folder}-{row}"
        try:
            messages = _videochat2_messages(fields)
        except _Fault as fault:
            yield row, {"id": name, "fault": str(fault)}
        else:
            yield row, {"id": name, "source": f"videochat2_it/{folder}", "task": "chat", "messages": messages}


class _Fault(ValueError):
    """A row of another shape; its text is the sentence."""


def _llava_messages(fields: Fields) -> list[Fields]:
    turns = fields.get("conversations")
    if not isinstance(turns, list) or not turns:
        raise _Fault(f"conversations: found {type(turns).__name__}; expected a list of turns")
    media = [{"type": kind, "path": item} for kind in ("image", "video") for item in _as_list(fields.get(kind))]
    tags = sum(len(_PLACE.findall(str(turn.get("value", "")))) for turn in turns if isinstance(turn, dict))
    if tags > len(media):
        raise _Fault(f"conversations: {tags} tags stand for {len(media)} media; expected as many")
    waiting = iter(media)
    untagged = [next(waiting) for _ in range(len(media) - tags)]
    messages = []
    for turn in turns:
        role = _ROLES.get(str(turn.get("from"))) if isinstance(turn, dict) else None
        if role is None:
            raise _Fault(f"conversations: found {ascii(turn)[:60]}; expected from (human, gpt or system) and value")
        parts = _split(str(turn.get("value", "")), waiting)
        if role == "user" and untagged:
            parts, untagged = [*untagged, *parts], []
        messages.append({"role": role, "content": parts})
    return messages


def _videochat2_messages(fields: Fields) -> list[Fields]:
    kind = next((kind for kind in ("video", "image") if fields.get(kind)), None)
    pairs = fields.get("QA")
    if kind is None or not isinstance(pairs, list) or not pairs:
        raise _Fault("found a row without media or without QA; expected video or image, and QA with at least one pair")
    medium: Fields = {"type": kind, "path": fields[kind], **{key: fields[key] for key in ("start", "end") if fields.get(key) is not None}}
    messages: list[Fields] = []
    for number, pair in enumerate(pairs):
        if not isinstance(pair, dict) or "a" not in pair:
            raise _Fault(f"QA.{number}: found {ascii(pair)[:60]}; expected i, q and a")
        instruction, question = str(pair.get("i") or "").strip(), str(pair.get("q") or "").strip()
        if number == 0 and instruction and question:
            messages.append({"role": "system", "content": instruction})
        words = {"type": "text", "text": question or instruction or "Describe it."}
        messages.append({"role": "user", "content": [medium, words] if number == 0 else [words]})
        messages.append({"role": "assistant", "content": str(pair["a"])})
    return messages


def _rows(path: Path) -> Iterator[tuple[int, Fields]]:
    try:
        text = path.read_text("utf-8-sig")
        rows = json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in text.splitlines() if line.strip()]
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({str(error)[:120]}); expected a list of rows, or one per line") from None
    for row, fields in enumerate(rows, 1):
        yield row, fields if isinstance(fields, dict) else {}


def _as_list(value: Any) -> list[Any]:
    if value is None or value == "":
        return []
    return value if isinstance(value, list) else [value]


def _split(text: str, waiting: Iterator[Fields]) -> list[Fields]:
    """Return text and media parts: each tag takes the next medium."""
    parts: list[Fields] = []
    for number, piece in enumerate(_PLACE.split(text)):
        if number:
            parts.append(next(waiting))
        if piece:
            parts.append({"type": "text", "text": piece})
    return parts
