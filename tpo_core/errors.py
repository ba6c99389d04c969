"""The exception tree. Every message says what was found, what was expected, and what to do."""

from __future__ import annotations

from collections.abc import Iterable


class TPOError(Exception):
    """Base of everything this package raises on purpose; catch it to catch them all."""


class ConfigError(TPOError):
    """A recipe, an override or a head's config is wrong. The message holds `file:line: path:`."""


class DataError(TPOError):
    """A record or its annotation is wrong. The message holds `file:line:`."""


class MediaError(DataError):
    """A picture or a clip is missing, unreadable, broken or not allowed."""


class HeadNotFound(TPOError):
    """A run or a config names a head that no installed package announces."""


class PluginError(TPOError):
    """A package that announces itself to this one cannot be used."""


class PluginBroken(PluginError):
    """Importing a plugin, or calling one of its hooks, raised; the cause is chained."""


class PluginClash(PluginError):
    """Two packages announce the same name; neither is used."""


class CheckpointError(TPOError):
    """A run's folder is incomplete, of another model, or holds keys that nobody owns."""


class BackboneError(TPOError):
    """A model has no interface that this package can use (embeddings, decoder, vision)."""


class TrainError(TPOError):
    """Training cannot start or go on (empty mixture, loss not finite, too many bad rows)."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the nearest of the known names, or "" where none is near; appended to messages."""
    from difflib import get_close_matches

    near = get_close_matches(name, sorted(set(known)), n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""
