"""Load one plugin: import its card, ask its hooks, and say how it went. Nothing that one plugin does reaches another."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from importlib.metadata import EntryPoint
from typing import Any, Literal

import pluggy

from tpo_core import hooks
from tpo_core.contract import API_GROUP, BackboneSpec, HeadSpec, ReaderSpec
from tpo_core.errors import PluginBroken, did_you_mean
from tpo_core.plugins.discover import Found, major_of

Status = Literal["ok", "broken", "empty", "clash", "outdated", "misspelt", "off"]

HEAVY = ("torch", "torchvision", "transformers", "tensorflow", "jax", "cv2", "scipy", "matplotlib")
"""Modules that a card must not import; `tpo heads` names the plugin that does, and what it cost."""

_CARDS: dict[str, type[HeadSpec] | type[ReaderSpec] | type[BackboneSpec]] = {
    "tpo_heads": HeadSpec,
    "tpo_readers": ReaderSpec,
    "tpo_backbones": BackboneSpec,
}


@dataclass(frozen=True)
class PluginEntry:
    """One installed plugin and how it fared.

    Args:
        name: of its entry point. package, version: of its distribution. group: of the entry point; it carries the contract's version.
        status: ``ok``; ``broken`` (importing it or asking its hooks raised); ``empty`` (it announces nothing); ``clash`` (another
            package announces one of its names); ``outdated`` (made for another version of the contract, not imported); ``misspelt``
            (it implements a hook that does not exist); ``off`` (not named by TPO_PLUGINS, not imported).
        cause: one sentence where the status is not ``ok``, else None.
        heads, readers, backbones: names that it announces.
        seconds: what importing the card and asking its hooks took. heavy: modules of `HEAVY` that only this brought in.
        error: the exception behind ``broken`` and ``misspelt``.
        builtin: part of this distribution.
    """

    name: str
    package: str
    version: str
    group: str
    status: Status
    cause: str | None = None
    heads: tuple[str, ...] = ()
    readers: tuple[str, ...] = ()
    backbones: tuple[str, ...] = ()
    seconds: float = 0.0
    heavy: tuple[str, ...] = ()
    error: BaseException | None = field(default=None, repr=False, compare=False)
    builtin: bool = False

    @property
    def label(self) -> str:
        """Return ``package version``, for messages."""
        return f"{self.package} {self.version}"

    @property
    def api(self) -> str:
        """Return the contract's version, ``v1``."""
        return self.group.rsplit(".", 1)[-1]

    @property
    def note(self) -> str | None:
        """Return what is odd but no failure: a card that imports something heavy, with its cost."""
        return f"card imports {', '.join(self.heavy)}, cost {self.seconds:.1f} s" if self.heavy else None


@dataclass
class Loaded:
    """A plugin's entry with its cards and, if it could be registered, its own hook manager (for observers)."""

    entry: PluginEntry
    heads: list[HeadSpec] = field(default_factory=list)
    readers: list[ReaderSpec] = field(default_factory=list)
    backbones: list[BackboneSpec] = field(default_factory=list)
    manager: pluggy.PluginManager | None = None


def load_plugin(found: Found, *, wanted: bool) -> Loaded:
    """Import one plugin and collect its cards. Never raises because of the plugin: the entry's status and cause say what happened."""
    entry = PluginEntry(found.name, found.package, found.version, found.group, "ok", builtin=found.builtin)
    if found.group != API_GROUP:
        return Loaded(replace(entry, status="outdated", cause=_outdated(found)))
    if not wanted:
        return Loaded(replace(entry, status="off", cause=f"TPO_PLUGINS does not name {found.name!r}, so it was not imported"))
    if found.fault:
        return Loaded(replace(entry, status="broken", cause=found.fault, error=PluginBroken(found.fault)))
    before = set(sys.modules)
    start = time.perf_counter()
    try:
        module = EntryPoint(found.name, found.target, found.group).load()
    except (Exception, SystemExit) as error:
        return Loaded(replace(entry, status="broken", cause=f"importing {found.target} raised {one_line(error)}", error=error))
    loaded = _ask(entry, module)
    heavy = tuple(name for name in HEAVY if name in sys.modules and name not in before)
    loaded.entry = replace(loaded.entry, seconds=time.perf_counter() - start, heavy=heavy)
    return loaded


def one_line(error: BaseException) -> str:
    """Return ``Type: first line of the message``."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _outdated(found: Found) -> str:
    theirs, ours = found.major, major_of(API_GROUP)
    who = found.package if theirs < ours else "tpo"
    return f"it was made for version {theirs} of the contract, this tpo speaks version {ours}; upgrade {who}"


def _ask(entry: PluginEntry, module: Any) -> Loaded:
    """Register the plugin with a manager of its own and collect what it announces."""
    manager = pluggy.PluginManager(hooks.PROJECT)
    manager.add_hookspecs(hooks)
    try:
        manager.register(module, name=entry.name)
        cards = {hook: _collect(manager, hook, card) for hook, card in _CARDS.items()}
    except (Exception, SystemExit) as error:
        return Loaded(replace(entry, status="broken", cause=f"its hooks raised {one_line(error)}", error=error))
    heads, readers, backbones = cards["tpo_heads"], cards["tpo_readers"], cards["tpo_backbones"]
    entry = replace(entry, heads=_names(heads), readers=_names(readers), backbones=_names(backbones))
    loaded = Loaded(entry, heads, readers, backbones, manager)
    try:
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        loaded.entry = replace(entry, status="misspelt", cause=_misspelt(manager, module), error=error)
        return loaded
    if not any(cards.values()) and not manager.hook.tpo_step_end.get_hookimpls():
        loaded.entry = replace(entry, status="empty", cause=_empty(manager, module))
    return loaded


def _collect(manager: pluggy.PluginManager, hook: str, card: type[Any]) -> list[Any]:
    collected: list[Any] = []
    for answer in getattr(manager.hook, hook)():
        if not isinstance(answer, Iterable):
            raise TypeError(f"{hook} returned {type(answer).__name__}, expected a list of {card.__name__}")
        for item in answer:
            if not isinstance(item, card):
                raise TypeError(f"{hook} returned a {type(item).__name__} ({item!r}), expected {card.__name__}")
            collected.append(item)
    return collected


def _names(cards: Iterable[Any]) -> tuple[str, ...]:
    return tuple(card.name for card in cards)


def _misspelt(manager: pluggy.PluginManager, module: Any) -> str:
    legal = _legal_hooks()
    unknown = sorted(caller.name for caller in manager.get_hookcallers(module) or () if not caller.has_spec())
    return "; ".join(f"there is no hook {name!r}.{did_you_mean(name, legal) or f' Hooks: {legal}.'}" for name in unknown)


def _empty(manager: pluggy.PluginManager, module: Any) -> str:
    implemented = sorted(caller.name for caller in manager.get_hookcallers(module) or ())
    if implemented:
        return f"{', '.join(implemented)} returned no card"
    unmarked = [name for name in _legal_hooks() if hasattr(module, name)]
    if unmarked:
        return f"{', '.join(unmarked)} is not marked as a hook: put @tpo_core.hookimpl above it"
    return f"{getattr(module, '__name__', module)} implements no hook; a head's package implements tpo_heads"


def _legal_hooks() -> list[str]:
    return sorted(name for name in vars(hooks) if name.startswith("tpo_"))
