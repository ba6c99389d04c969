"""The plugins of this installation, as one value that is passed around; there is no global registry."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import pluggy

from tpo_core.contract import BackboneSpec, HeadConfig, HeadSpec, ReaderSpec
from tpo_core.errors import HeadNotFound, PluginBroken, PluginClash, PluginError, did_you_mean
from tpo_core.plugins.blame import blame
from tpo_core.plugins.discover import find_plugins
from tpo_core.plugins.load import Loaded, PluginEntry, load_plugin, one_line
from tpo_core.plugins.resolve import LoadedHead, check_parts, resolve, resolve_config, resolve_head

if TYPE_CHECKING:
    from tpo_core.head import Codec, Head, Metric

logger = logging.getLogger(__name__)

ONLY_VARIABLE = "TPO_PLUGINS"
STRICT_VARIABLE = "TPO_STRICT_PLUGINS"


class Card(Protocol):
    """What the three cards have in common."""

    @property
    def name(self) -> str: ...


K = TypeVar("K", bound=Card)


@dataclass(frozen=True)
class Announced(Generic[K]):
    """A card and the plugin that announces it."""

    card: K
    entry: PluginEntry


class Plugins:
    """What `load_plugins` found.

    Attributes:
        entries: every announced plugin with its status, built-in ones first.
    """

    def __init__(self, loaded: Sequence[Loaded]) -> None:
        names = {
            "head": _gather((card, one.entry) for one in loaded for card in one.heads),
            "reader": _gather((card, one.entry) for one in loaded for card in one.readers),
            "backbone": _gather((card, one.entry) for one in loaded for card in one.backbones),
        }
        self.entries: tuple[PluginEntry, ...] = tuple(_mark_clash(one.entry, names) for one in loaded)
        self._heads: dict[str, list[Announced[HeadSpec]]] = names["head"]
        self._readers: dict[str, list[Announced[ReaderSpec]]] = names["reader"]
        self._backbones: dict[str, list[Announced[BackboneSpec]]] = names["backbone"]
        self._replaced: dict[str, dict[str, Any]] = {}
        self._observers = [(one.entry, one.manager) for one in loaded if one.manager is not None and one.entry.status == "ok"]

    def heads(self) -> dict[str, HeadSpec]:
        """Return the usable heads' cards by name (none that clashes, none of a misspelt plugin)."""
        return _usable(self._heads)

    def readers(self) -> dict[str, ReaderSpec]:
        """Return the usable readers' cards by name."""
        return _usable(self._readers)

    def backbones(self) -> dict[str, BackboneSpec]:
        """Return the usable family overrides by name."""
        return _usable(self._backbones)

    def head(self, name: str) -> HeadSpec:
        """Return the card of a head.

        Raises:
            HeadNotFound: no package announces it (the message lists those known, and the nearest).
            PluginClash: several packages announce it.
            PluginBroken: the package that announces it, or whose entry point has this name, cannot be used; the cause is chained.
        """
        return self._find("head", self._heads, name).card

    def owner(self, name: str) -> PluginEntry:
        """Return the plugin that announces a head. Raises like `head`."""
        return self._find("head", self._heads, name).entry

    def reader(self, name: str) -> ReaderSpec:
        """Return the card of a reader. Raises `PluginError` (or as `head`) where it cannot be used."""
        return self._find("reader", self._readers, name).card

    def reader_owner(self, name: str) -> PluginEntry:
        """Return the plugin that announces a reader. Raises like `reader`."""
        return self._find("reader", self._readers, name).entry

    def backbone_of(self, model_type: str) -> BackboneSpec | None:
        """Return the family override for a transformers ``model_type``, None where no plugin knows it.

        Raises:
            PluginClash: several packages want to serve it.
        """
        serving = [one for one in self._usable_backbones() if model_type in one.card.model_types]
        if len({one.card.name for one in serving}) > 1:
            raise PluginClash(_clash_text("backbone", model_type, [one.entry for one in serving]))
        return serving[0].card if serving else None

    def config_class(self, name: str) -> type[HeadConfig]:
        """Return a head's config class; imports the module that holds it and no more. Raises like `head`."""
        found = self._find("head", self._heads, name)
        replaced: type[HeadConfig] | None = self._replaced.get(name, {}).get("config")
        return replaced or resolve_config(found.card, found.entry.package, found.entry.version)

    def load_head(self, name: str) -> LoadedHead:
        """Import a head's classes and check them. Raises like `head`."""
        found = self._find("head", self._heads, name)
        loaded = resolve_head(found.card, found.entry.package, found.entry.version)
        if name not in self._replaced:
            return loaded
        parts = self._replaced[name]
        marks = ", ".join(f"{part} {value.__module__}.{value.__qualname__}" for part, value in sorted(parts.items()))
        return replace(loaded, version=f"{loaded.version} with {marks}", **parts)

    def replacing(
        self,
        name: str,
        *,
        config: type[HeadConfig] | None = None,
        head: type[Head[Any]] | None = None,
        codec: type[Codec[Any]] | None = None,
        metric: type[Metric] | None = None,
        draw: Callable[..., None] | None = None,
    ) -> Plugins:
        """Return these plugins with parts of one head replaced, for research on it: its name, tokens and records stay.

        A run that is trained so remembers which parts in its head's version; load it with plugins that replace them, too.

        Args:
            name: of the head.
            config, head, codec, metric, draw: what stands in for the parts that its card names; None: the card's.

        Raises:
            PluginBroken: a part is not of the class it must be. And like `head`.
        """
        self.head(name)
        given = {"config": config, "head": head, "codec": codec, "metric": metric, "draw": draw}
        parts = {part: value for part, value in given.items() if value is not None}
        check_parts(name, parts)
        changed = copy.copy(self)
        changed._replaced = {**self._replaced, name: {**self._replaced.get(name, {}), **parts}}
        return changed

    def resolve(self, reference: str) -> Any:
        """Import ``"package.module:Name"``. Raises `PluginBroken`, the cause chained."""
        return resolve(reference)

    def blame(self, name: str) -> AbstractContextManager[None]:
        """Return a context that adds head, package and version as a note to exceptions raised inside a head's code."""
        entry = self.owner(name)
        return blame(name, entry.label)

    def step_end(self, step: int, metrics: Mapping[str, float]) -> None:
        """Tell every observer (hook `tpo_step_end`) of an optimiser step. What one raises is logged; the others are told all the same."""
        for entry, manager in self._observers:
            _tell(entry, manager, step, metrics)

    def _usable_backbones(self) -> list[Announced[BackboneSpec]]:
        return [found[0] for found in self._backbones.values() if len(found) == 1 and found[0].entry.status != "misspelt"]

    def _find(self, kind: str, announced: Mapping[str, list[Announced[K]]], name: str) -> Announced[K]:
        found = announced.get(name, [])
        if len(found) > 1:
            raise PluginClash(_clash_text(kind, name, [one.entry for one in found]))
        if found and found[0].entry.status == "misspelt":
            raise _unusable(kind, name, found[0].entry)
        if found:
            return found[0]
        for entry in self.entries:
            if entry.name == name and entry.status in ("broken", "misspelt", "empty", "outdated"):
                raise _unusable(kind, name, entry)
        raise (HeadNotFound if kind == "head" else PluginError)(self._missing_text(kind, name, _usable(announced)))

    def _missing_text(self, kind: str, name: str, known: Iterable[str]) -> str:
        known = sorted(known)
        text = f"no installed package announces a {kind} {name!r}. Known: {', '.join(known) or 'none'}.{did_you_mean(name, known)}"
        if not self.entries:
            return f"{text} No plugin is installed at all; install this project itself (pip install -e .)"
        off = [entry for entry in self.entries if entry.status == "off" and entry.name == name]
        if off:
            return f"{text} {off[0].label} may bring it, but {off[0].cause}"
        unused = [entry.label for entry in self.entries if entry.status not in ("ok", "clash", "off")]
        return f"{text} Not usable: {', '.join(unused)} (see `tpo heads`)." if unused else text


def load_plugins(
    *, only: Sequence[str] | None = None, strict: bool | None = None, path: Sequence[str] | None = None, env: Mapping[str, str] = os.environ
) -> Plugins:
    """Find and load every installed plugin, each on its own: one that fails leaves the others as they are.

    Args:
        only: plugins to load beside the built-in ones, by entry point or package; default: TPO_PLUGINS (comma-separated; set but
            empty: none), or all where it is not set.
        strict: raise at the first plugin that cannot be used; default: whether TPO_STRICT_PLUGINS is 1.
        path: folders to look for installed packages, as in ``sys.path`` (the default).
        env: where the two variables are read.

    Raises:
        PluginError: `only` names what no package announces; or `strict`, and a plugin cannot be used (the cause is chained).
    """
    if only is None and ONLY_VARIABLE in env:
        only = [name.strip() for name in env[ONLY_VARIABLE].split(",") if name.strip()]
    if strict is None:
        strict = env.get(STRICT_VARIABLE, "") not in ("", "0")
    found = find_plugins(path)
    for name in only or ():
        if not any(one.is_named([name]) for one in found):
            names = {one.name for one in found} | {one.package for one in found}
            raise PluginError(
                f"{ONLY_VARIABLE} names the plugin {name!r}, which no installed package announces. "
                f"Known: {', '.join(sorted(names)) or 'none'}.{did_you_mean(name, names)}"
            )
    plugins = Plugins([load_plugin(one, wanted=only is None or one.builtin or one.is_named(only)) for one in found])
    if strict:
        _raise_first(plugins.entries)
    return plugins


def _gather(announced: Iterable[tuple[Any, PluginEntry]]) -> dict[str, list[Announced[Any]]]:
    gathered: dict[str, list[Announced[Any]]] = {}
    for card, entry in announced:
        gathered.setdefault(card.name, []).append(Announced(card, entry))
    return gathered


def _usable(announced: Mapping[str, list[Announced[K]]]) -> dict[str, K]:
    return {name: found[0].card for name, found in announced.items() if len(found) == 1 and found[0].entry.status != "misspelt"}


def _mark_clash(entry: PluginEntry, names: Mapping[str, Mapping[str, list[Announced[Any]]]]) -> PluginEntry:
    """Return the entry, with status ``clash`` if another package, or it itself again, announces one of its names."""
    if entry.status != "ok":
        return entry
    for kind, announced in names.items():
        for name, found in announced.items():
            if len(found) > 1 and any(one.entry is entry for one in found):
                return replace(entry, status="clash", cause=_clash_text(kind, name, [one.entry for one in found]))
    return entry


def _clash_text(kind: str, name: str, entries: Sequence[PluginEntry]) -> str:
    labels = " and ".join(sorted({entry.label for entry in entries}))
    if len({entry.package for entry in entries}) == 1:
        return f"{kind} {name!r} is announced {len(entries)} times by {labels}; none is used until its names differ"
    return f"{kind} {name!r} is announced by {labels}; none is used: uninstall one, or name the packages to load in {ONLY_VARIABLE}"


def _unusable(kind: str, name: str, entry: PluginEntry) -> PluginBroken:
    broken = PluginBroken(f"{kind} {name!r}: plugin {entry.name!r} ({entry.label}) is {entry.status}: {entry.cause}")
    broken.__cause__ = entry.error
    return broken


def _raise_first(entries: Iterable[PluginEntry]) -> None:
    for entry in entries:
        if entry.status == "clash":
            raise PluginClash(f"{STRICT_VARIABLE}: {entry.cause}")
        if entry.status not in ("ok", "off"):
            raise PluginBroken(
                f"{STRICT_VARIABLE}: plugin {entry.name!r} ({entry.label}) is {entry.status}: {entry.cause}"
            ) from entry.error


def _tell(entry: PluginEntry, manager: pluggy.PluginManager, step: int, metrics: Mapping[str, float]) -> None:
    try:
        manager.hook.tpo_step_end(step=step, metrics=MappingProxyType(dict(metrics)))
    except Exception as error:
        logger.warning("observer %s (%s) raised %s at step %d; training goes on", entry.name, entry.label, one_line(error), step)
