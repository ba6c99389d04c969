"""Discover the packages that announce heads, readers and backbones, load them one by one, resolve what they name. No torch at import."""

from __future__ import annotations

from tpo_core.plugins.blame import blame
from tpo_core.plugins.discover import Found, find_commands, find_plugins
from tpo_core.plugins.host import Plugins, load_plugins
from tpo_core.plugins.load import HEAVY, PluginEntry, Status
from tpo_core.plugins.resolve import LoadedHead, resolve, resolve_head

__all__ = [
    "HEAVY",
    "Found",
    "LoadedHead",
    "PluginEntry",
    "Plugins",
    "Status",
    "blame",
    "find_commands",
    "find_plugins",
    "load_plugins",
    "resolve",
    "resolve_head",
]
