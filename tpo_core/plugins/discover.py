"""Which packages announce themselves, read from installed metadata alone: nothing of theirs is imported here."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata

from tpo_core.contract import API_GROUP

BUILTIN = "tpo"
"""The distribution whose plugins are always loaded: this one."""

_VERSIONED = re.compile(r"tpo_core\.v(\d+)")


@dataclass(frozen=True)
class Found:
    """One entry point. `fault` says why it cannot be read (then `target` is empty)."""

    name: str
    target: str
    group: str
    package: str
    version: str
    fault: str | None = None

    @property
    def builtin(self) -> bool:
        return canonical(self.package) == BUILTIN

    def is_named(self, names: Sequence[str]) -> bool:
        """Return whether these names hold this entry point's, or its package's."""
        return self.name in names or canonical(self.package) in {canonical(name) for name in names}

    @property
    def major(self) -> int:
        """The contract's major version that the group's name carries."""
        return major_of(self.group)


def canonical(package: str) -> str:
    """Return a distribution's name as PyPI compares it: lower case, runs of ``-_.`` as one ``-``."""
    return re.sub(r"[-_.]+", "-", package).lower()


def major_of(group: str) -> int:
    """Return 1 for ``tpo_core.v1``."""
    match = _VERSIONED.fullmatch(group)
    if match is None:
        raise ValueError(f"entry-point group {group!r} must read tpo_core.v<number>")
    return int(match.group(1))


def find_plugins(path: Sequence[str] | None = None) -> list[Found]:
    """Return every announced plugin of any contract version, the built-in ones first, then by package and name.

    Of a distribution that lies on the path twice (an editable install beside a wheel), the first counts, as for imports.
    A package that serves several contract versions is listed under ours only.

    Args:
        path: folders to look in, as in ``sys.path`` (the default).
    """
    found: dict[tuple[str, str, str], Found] = {}
    for name in _announcing(path):
        distribution = next(iter(_distributions(path, name=name)))
        entries = list(_entries(distribution, name))
        if any(entry.group == API_GROUP for entry in entries):
            entries = [entry for entry in entries if entry.group == API_GROUP]
        found |= {(entry.package, entry.group, entry.name): entry for entry in entries}
    return sorted(found.values(), key=lambda entry: (not entry.builtin, canonical(entry.package), entry.group, entry.name))


def find_commands(group: str, path: Sequence[str] | None = None) -> dict[str, Found]:
    """Return the commands that packages add, by name, from metadata only. Of two with one name, the built-in or first package wins."""
    commands: dict[str, Found] = {}
    for name in _announcing(path):
        distribution = next(iter(_distributions(path, name=name)))
        for entry in _entries(distribution, name, only=group):
            known = commands.get(entry.name)
            if known is None or (entry.builtin and not known.builtin):
                commands[entry.name] = entry
    return dict(sorted(commands.items()))


def _announcing(path: Sequence[str] | None) -> list[str]:
    names: dict[str, str] = {}
    for distribution in _distributions(path):
        if "tpo_core.v" in _announcement(distribution):
            name = _field(distribution, "Name")
            if name:
                names.setdefault(canonical(name), name)
    return [names[key] for key in sorted(names)]


def _announcement(distribution: metadata.Distribution) -> str:
    try:
        return distribution.read_text("entry_points.txt") or ""
    except (OSError, UnicodeError):  # Not ours to report: nothing says that this package announces anything.
        return ""


def _field(distribution: metadata.Distribution, key: str) -> str:
    values = distribution.metadata.get_all(key, [])
    return str(values[0]) if values else ""


def _distributions(path: Sequence[str] | None, name: str | None = None) -> Iterator[metadata.Distribution]:
    if path is None and name is None:
        return iter(metadata.distributions())
    if path is None:
        return iter(metadata.distributions(name=name))
    if name is None:
        return iter(metadata.distributions(path=list(path)))
    return iter(metadata.distributions(name=name, path=list(path)))


def _entries(distribution: metadata.Distribution, name: str, only: str | None = None) -> Iterator[Found]:
    version = _field(distribution, "Version") or "unknown"
    try:
        points = list(distribution.entry_points)
    except Exception as error:
        fault = f"its entry_points.txt cannot be read: {type(error).__name__}: {error}"
        yield Found(name, "", only or API_GROUP, name, version, fault)
        return
    for point in points:
        if point.group == only or (only is None and _VERSIONED.fullmatch(point.group)):
            yield Found(point.name, point.value, point.group, name, version)
