"""Read YAML into plain values that remember their lines. YAML 1.2: `1e-4` is a number, `no` is text, a repeated key is an error."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from tpo_core.errors import ConfigError

Location = tuple[str | int, ...]
"""Where a value stands: keys and list indices from the root."""

MAX_BYTES = 1_000_000
MAX_DEPTH = 40
MAX_VALUES = 100_000
"""Aliases count each time they are used, so that a few bytes cannot stand for a gigabyte."""

_PLAIN = "tag:yaml.org,2002:"


@dataclass
class Document:
    """A mapping with the place each of its values came from.

    Args:
        data: plain dicts, lists, text, numbers, booleans and None. May be edited before it is validated.
        source: name for messages: a file, ``default``, ...
        lines: location -> line (from 1) in the source; empty for a mapping that was never text.
        overrides: location -> the override (as typed) that set it.
    """

    data: dict[str, Any]
    source: str
    lines: dict[Location, int] = field(default_factory=dict)
    overrides: dict[Location, str] = field(default_factory=dict)

    def place(self, location: Location) -> str:
        """Return ``file:line: stages[1].train:`` for a message; a missing key is placed at the nearest parent's line."""
        override = next((self.overrides[location[:n]] for n in range(len(location), 0, -1) if location[:n] in self.overrides), None)
        line = next((self.lines[location[:n]] for n in range(len(location), -1, -1) if location[:n] in self.lines), None)
        if override is not None:
            where = f"override {override!r}"
        else:
            where = self.source if line is None else f"{self.source}:{line}"
        return f"{where}: {dotted(location)}" if location else where


def dotted(location: Location) -> str:
    """Return ``stages[1].train.lora``; names that are not plain are quoted."""
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            name = part if re.fullmatch(r"[\w.@-]+", part, re.ASCII) else repr(part)
            text += f".{name}" if text else name
    return text


def read_yaml(path: str | Path) -> Document:
    """Read a recipe.

    Raises:
        ConfigError: not readable, not UTF-8, not YAML, larger or deeper than a recipe can be, a repeated key, or not a mapping.
    """
    path = Path(path)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the recipe ({error.strerror}); give the path of a YAML file") from error
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"{path}: {len(raw)} bytes, expected a recipe of at most {MAX_BYTES}")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8; save the recipe as UTF-8 text") from error
    return parse_yaml(text, source=str(path))


def parse_yaml(text: str, *, source: str) -> Document:
    """Return the document that this text holds; see `read_yaml`."""
    root = _compose(text, source)
    document = Document(data={}, source=source)
    if root is None:
        return document
    data = _Builder(document).build(root)
    if not isinstance(data, dict):
        raise ConfigError(f"{source}:1: found {_kind(data)}, expected a mapping such as 'seed: 0'")
    document.data = data
    return document


def parse_value(text: str, *, source: str) -> Any:
    """Return the value of one override: a number, text, ``null``, ``[a, b]``, ``{k: v}``."""
    root = _compose(text, source)
    return None if root is None else _Builder(Document({}, source)).build(root)


def from_mapping(data: Mapping[str, Any], *, source: str = "recipe") -> Document:
    """Return a document of a mapping made in Python; its containers are copied."""
    return Document(data={key: _copied(value) for key, value in data.items()}, source=source)


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_copied(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _compose(text: str, source: str) -> Node | None:
    try:
        node: Node | None = YAML(typ="safe", pure=True).compose(text)
    except RecursionError as error:
        raise ConfigError(f"{source}: nested more than {MAX_DEPTH} levels deep; a recipe needs fewer") from error
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = "" if mark is None else f":{mark.line + 1}"
        raise ConfigError(f"{source}{line}: not YAML: {', '.join(filter(None, (error.context, error.problem)))}") from error
    except YAMLError as error:
        raise ConfigError(f"{source}: not YAML: {str(error).splitlines()[0]}") from error
    return node


def _kind(value: Any) -> str:
    if isinstance(value, dict):
        return "a mapping"
    return "a list" if isinstance(value, list) else repr(value)


class _Builder:
    """Turns nodes into values and writes down their lines."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.values = 0

    def build(self, node: Node, location: Location = ()) -> Any:
        self.values += 1
        line = node.start_mark.line + 1
        if len(location) > MAX_DEPTH:
            raise self._error(line, f"nested more than {MAX_DEPTH} levels deep; a recipe needs fewer")
        if self.values > MAX_VALUES:
            raise self._error(line, f"aliases expand to more than {MAX_VALUES} values; write them out or use fewer")
        self.document.lines[location] = line
        if isinstance(node, MappingNode):
            return self._mapping(node, location)
        if isinstance(node, SequenceNode):
            self._check_tag(node, "seq")
            return [self.build(item, (*location, index)) for index, item in enumerate(node.value)]
        return self._scalar(node, line)

    def _mapping(self, node: MappingNode, location: Location) -> dict[str, Any]:
        self._check_tag(node, "map")
        result: dict[str, Any] = {}
        first: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, ScalarNode):
                raise self._error(line, "found a list or a mapping as a key, expected a name")
            key = str(key_node.value)
            if key in first:
                raise self._error(line, f"key {key!r} stands here and on line {first[key]}; keep one of them")
            first[key] = line
            result[key] = self.build(value_node, (*location, key))
            self.document.lines[(*location, key)] = line
        return result

    def _scalar(self, node: Node, line: int) -> Any:
        tag, text = str(node.tag), str(node.value)
        if tag in (_PLAIN + "str", _PLAIN + "timestamp"):
            return text
        if tag == _PLAIN + "null":
            return None
        if tag == _PLAIN + "bool":
            return text.lower() == "true"
        try:
            if tag == _PLAIN + "int":
                return self._integer(text)
            if tag == _PLAIN + "float":
                number = float(text.replace("_", "").replace(".inf", "inf").replace(".nan", "nan"))
                if not math.isfinite(number):
                    raise self._error(line, f"found {text}, expected a finite number")
                return number
        except ValueError as error:
            raise self._error(line, f"found {text[:40]!r}, which is not a number that can be read") from error
        raise self._error(line, f"found the tag {tag!r}; a recipe holds plain values only, remove the tag")

    @staticmethod
    def _integer(text: str) -> int:
        digits = text.replace("_", "").lower()
        sign, digits = (-1, digits[1:]) if digits.startswith("-") else (1, digits.removeprefix("+"))
        for prefix, base in (("0x", 16), ("0o", 8), ("0b", 2)):
            if digits.startswith(prefix):
                return sign * int(digits[2:], base)
        return sign * int(digits)

    def _check_tag(self, node: Node, expected: str) -> None:
        if str(node.tag) != _PLAIN + expected:
            raise self._error(
                node.start_mark.line + 1, f"found the tag {str(node.tag)!r}; a recipe holds plain values only, remove the tag"
            )

    def _error(self, line: int, message: str) -> ConfigError:
        return ConfigError(f"{self.document.source}:{line}: {message}")
