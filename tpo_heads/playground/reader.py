"""Read the truth of a playground's scenes, for any head: as rows in Python, or as records by a small mapping file.

A mapping file is a JSON object, here for a head named ``depth`` that tells how far an object is::

    {"playground": "../world", "split": "train", "kinds": ["image"], "per": "object",
     "head": "depth", "questions": ["how far is the {name}?"], "fields": {"metres": "depth"}}

``per`` is ``object``, ``event`` or ``scene``; ``fields`` maps a target's fields to dotted paths into that part of the truth
(``"box": "boxes.0"``), and ``questions`` may use ``{name}``, ``{colour}``, ``{shape}``, ``{size}`` and, of events, ``{action}``. The
questions are used in turn. See `tpo_heads.playground.records.truth` for what there is.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tpo_core.errors import DataError

Row = dict[str, Any]


class Mapping(BaseModel):
    """How scenes become records of one head."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    playground: str = Field(description="the playground's folder, relative to the mapping file")
    split: str = Field("train", description="train, val or test")
    kinds: tuple[Literal["image", "clip", "track"], ...] = Field(("image", "clip", "track"), description="kinds of scenes to read")
    per: Literal["object", "event", "scene"] = Field("object", description="one record for each of these")
    head: str = Field(description="name of the head that answers")
    questions: tuple[str, ...] = Field(min_length=1, description="ways to ask, used in turn")
    fields: dict[str, str] = Field(description="a target's fields: name -> dotted path into the truth")


def scenes(folder: str | Path, *, split: str | None = None, kinds: Sequence[str] | None = None) -> Iterator[tuple[int, Row]]:
    """Yield (line, truth) of a playground folder's scenes, in the order they were written; without a split, of all that are there.

    Raises:
        DataError: the folder holds no ``scenes-<split>.jsonl``, or a line of it is not JSON.
    """
    root = Path(folder)
    paths = [root / f"scenes-{split}.jsonl"] if split is not None else sorted(root.glob("scenes-*.jsonl"))
    if not paths or not paths[0].is_file():
        raise DataError(f"{paths[0] if paths else root / 'scenes-train.jsonl'}: no such file; write it with `tpo data playground {folder}`")
    for path in paths:
        with path.open(encoding="utf-8") as file:
            for line, text in enumerate(file, 1):
                try:
                    row: Row = json.loads(text)
                except json.JSONDecodeError as error:
                    raise DataError(f"{path}:{line}: not JSON ({error.msg}); write the playground anew") from error
                if kinds is None or row["kind"] in kinds:
                    yield line, row


def read(path: Path) -> Iterator[tuple[int, Row]]:
    """Yield (line of scenes-<split>.jsonl, record) for a mapping file; media paths are relative to the mapping file's folder.

    Raises:
        DataError: the mapping is not valid, or names a part of the truth that does not exist.
    """
    try:
        mapping = Mapping.model_validate_json(path.read_text("utf-8"))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise DataError(f"{path}:1: {where}: {first['msg']}; see tpo_heads.playground.reader for the mapping's form") from error
    folder = path.parent / mapping.playground
    for line, scene in scenes(folder, split=mapping.split, kinds=mapping.kinds):
        media = os.path.relpath(folder / scene["media"], path.parent)
        for number, (part, words) in enumerate(_parts(scene, mapping.per)):
            fields = {name: _look_up(part, dotted, path, name) for name, dotted in mapping.fields.items()}
            question = mapping.questions[(line + number) % len(mapping.questions)]
            try:
                text = question.format(**words)
            except (KeyError, IndexError) as error:
                raise DataError(f"{path}:1: questions: {question!r} uses {error}; known per {mapping.per}: {sorted(words)}") from error
            yield line, _record(scene, mapping, media, number, text, fields)


def _parts(scene: Row, per: str) -> Iterator[tuple[Row, dict[str, str]]]:
    """Yield (part of the truth, words for the question)."""
    if per == "scene":
        yield scene, {}
    elif per == "object":
        for item in scene["objects"]:
            yield item, _words(scene, item)
    else:
        for event in scene["events"]:
            yield event, {**_words(scene, scene["objects"][event["object"]]), "action": event["action"]}


def _words(scene: Row, item: Row) -> dict[str, str]:
    twins = [o for o in scene["objects"] if (o["colour"], o["shape"]) == (item["colour"], item["shape"])]
    name = f"{item['colour']} {item['shape']}"
    return {
        "name": name if len(twins) == 1 else f"{item['size']} {name}",
        "colour": item["colour"],
        "shape": item["shape"],
        "size": item["size"],
    }


def _look_up(part: Row, dotted: str, path: Path, name: str) -> Any:
    value: Any = part
    for key in dotted.split("."):
        try:
            value = value[int(key)] if isinstance(value, list) else value[key]
        except (KeyError, IndexError, ValueError, TypeError) as error:
            known = (
                sorted(value) if isinstance(value, dict) else f"{len(value)} entries" if isinstance(value, list) else type(value).__name__
            )
            raise DataError(f"{path}:1: fields.{name}: {dotted!r} leads nowhere at {key!r}; there is {known}") from error
    return value


def _record(scene: Row, mapping: Mapping, media: str, number: int, text: str, fields: Row) -> Row:
    kind = "image" if scene["kind"] == "image" else "video"
    return {
        "id": f"{scene['id']}-{mapping.head}-{number}",
        "source": f"playground/{mapping.head}",
        "task": mapping.head,
        "messages": [
            {"role": "user", "content": [{"type": kind, "path": media}, {"type": "text", "text": text}]},
            {"role": "assistant", "content": [{"type": "target", "id": "t0"}]},
        ],
        "targets": [{"id": "t0", "head": mapping.head, "media": 0, **fields}],
    }
