"""Parts of a head replaced by classes from a script: what is asked for, what is refused, and that the original stays."""

from __future__ import annotations

import pytest

from tpo_core.errors import HeadNotFound, PluginBroken
from tpo_core.plugins import load_plugins
from tpo_heads.region.config import RegionConfig
from tpo_heads.region.head import RegionHead


class OtherHead(RegionHead):
    """Another head."""


class OtherConfig(RegionConfig):
    """Other options."""

    sharpness: float = 1.0


def test_parts_are_replaced_and_the_original_stays() -> None:
    plugins = load_plugins()
    changed = plugins.replacing("region", head=OtherHead).replacing("region", config=OtherConfig)
    assert changed.load_head("region").head is OtherHead
    assert changed.config_class("region") is OtherConfig
    assert changed.load_head("region").codec is plugins.load_head("region").codec
    assert plugins.load_head("region").head is RegionHead
    assert plugins.config_class("region") is RegionConfig
    version = changed.load_head("region").version
    assert version.startswith(plugins.load_head("region").version)
    assert "with config " in version
    assert version.endswith("OtherHead")


def test_what_cannot_stand_in_is_refused() -> None:
    plugins = load_plugins()
    with pytest.raises(PluginBroken, match=r"head 'region': codec is a class OtherHead, expected a subclass of tpo_core.head.Codec"):
        plugins.replacing("region", codec=OtherHead)  # type: ignore[arg-type] # the fault under test
    with pytest.raises(HeadNotFound, match="Did you mean 'region'"):
        plugins.replacing("regoin", head=OtherHead)
