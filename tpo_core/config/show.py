"""Write a recipe as YAML with the description of every option above it."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from tpo_core.config.document import parse_value
from tpo_core.config.recipe import Recipe

_WIDTH = 110
_PLAIN = re.compile(r"[A-Za-z_./][A-Za-z0-9_./@+-]*")


def format_recipe(recipe: Recipe) -> str:
    """Return YAML text that `load_recipe` reads back to an equal recipe; an option's description stands where it first occurs."""
    return "\n".join(_Writer().model(recipe, 0)) + "\n"


class _Writer:
    def __init__(self) -> None:
        self.described: set[tuple[type[BaseModel], str]] = set()

    def model(self, part: BaseModel, depth: int) -> list[str]:
        lines: list[str] = []
        for name, field in type(part).model_fields.items():
            key = field.alias or name
            if field.description and (type(part), name) not in self.described:
                lines += _comment(field.description, depth)
                self.described.add((type(part), name))
            lines += self.entry(key, getattr(part, name), depth)
        return lines

    def entry(self, key: str, value: Any, depth: int) -> list[str]:
        pad = "  " * depth
        label = f"{pad}{_scalar(key)}:"
        if isinstance(value, BaseModel):
            return [label, *self.model(value, depth + 1)] if type(value).model_fields else [f"{label} {{}}"]
        if isinstance(value, Mapping):
            return [label, *(line for k, v in value.items() for line in self.entry(str(k), v, depth + 1))] if value else [f"{label} {{}}"]
        if isinstance(value, list | tuple) and any(isinstance(item, BaseModel) for item in value):
            return [label, *(line for item in value for line in self.item(item, depth + 1))]
        if isinstance(value, list | tuple | set | frozenset):
            return [f"{label} [{', '.join(_scalar(item) for item in value)}]"]
        return [f"{label} {_scalar(value)}"]

    def item(self, item: BaseModel, depth: int) -> list[str]:
        pad = "  " * depth
        lines = self.model(item, depth + 1)
        first = next(index for index, line in enumerate(lines) if not line.lstrip().startswith("#"))
        comments = [line[2:] for line in lines[:first]]
        return [*comments, f"{pad}- {lines[first].lstrip()}", *lines[first + 1 :]]


def _comment(text: str, depth: int) -> list[str]:
    pad = "  " * depth
    return [f"{pad}# {line}" for line in textwrap.wrap(text, _WIDTH - len(pad))]


def _scalar(value: Any) -> str:
    if value is None or isinstance(value, bool | int):
        return json.dumps(value)
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(_scalar(item) for item in value)}]"
    if isinstance(value, Mapping):
        return json.dumps(dict(value))
    return _text(str(value))


def _text(value: str) -> str:
    """Return text plain where it reads back as itself, else in double quotes with every unprintable character escaped."""
    if _PLAIN.fullmatch(value) and parse_value(value, source="text") == value:
        return value
    escaped = "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in value.replace("\\", "\\\\").replace('"', '\\"'))
    return f'"{escaped}"'
