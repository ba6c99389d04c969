"""Merge ``stages.0.steps=50`` into a recipe's mapping. Values are YAML; list items are named by index or by their ``name``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tpo_core.config.document import Document, Location, dotted, parse_value
from tpo_core.errors import ConfigError


def apply_overrides(document: Document, overrides: Sequence[str]) -> None:
    """Set each ``path=value`` in the document, in order; it is validated later, with the rest.

    Raises:
        ConfigError: no ``=``, or the path leads through a value or past the end of a list. The message names the override.
    """
    for text in overrides:
        path, equals, value = text.partition("=")
        if not equals or not path.strip("."):
            raise ConfigError(f"override {text!r}: expected path=value, such as stages.0.steps=50")
        _set(document, path.strip().split("."), parse_value(value, source=f"override {text!r}"), text)


def _set(document: Document, parts: list[str], value: Any, text: str) -> None:
    container: Any = document.data
    location: Location = ()
    while True:
        key, parts = _next_key(container, parts, location, text)
        location = (*location, key)
        if not parts:
            break
        missing = isinstance(container, dict) and container.get(key) is None
        if missing:
            container[key] = {}
        container = container[key]
    container[key] = value
    for table in (document.lines, document.overrides):
        for below in [known for known in table if known[: len(location)] == location]:
            del table[below]
    document.overrides[location] = text


def _next_key(container: Any, parts: list[str], location: Location, text: str) -> tuple[str | int, list[str]]:
    if isinstance(container, dict):
        if len(location) == 3 and location[0] == "stages" and location[2] == "train":
            # The groups' own names have dots (heads.region).
            return ".".join(parts), []
        return parts[0], parts[1:]
    if isinstance(container, list):
        return _index(container, parts[0], location, text), parts[1:]
    raise ConfigError(f"override {text!r}: {dotted(location)} is {container!r}, which has nothing called {parts[0]!r} in it")


def _index(container: list[Any], part: str, location: Location, text: str) -> int:
    if part.isascii() and part.isdigit():
        if int(part) < len(container):
            return int(part)
        raise ConfigError(f"override {text!r}: {dotted(location)} has {len(container)} items, so the last is {len(container) - 1}")
    names = [item.get("name") for item in container if isinstance(item, dict)]
    if part in names:
        return next(index for index, item in enumerate(container) if isinstance(item, dict) and item.get("name") == part)
    known = ", ".join(str(name) for name in names if name is not None) or "none"
    raise ConfigError(f"override {text!r}: {dotted(location)} has no item {part!r}; give an index from 0 or a name (known: {known})")
