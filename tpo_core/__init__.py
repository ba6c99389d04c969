"""Task Preference Optimization: train task heads (boxes, moments, masks, a stranger's) on any Hugging Face multimodal LLM.

The names below are the public API; importing this package imports no torch (each name is loaded when first used).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tpo_core._version import __version__
from tpo_core.contract import API_GROUP, BackboneSpec, HeadConfig, HeadSpec, ReaderSpec
from tpo_core.errors import TPOError
from tpo_core.hooks import hookimpl

if TYPE_CHECKING:
    from tpo_core.backbone import load_backbone
    from tpo_core.head import Codec, Head, Metric
    from tpo_core.jobs.load import load_run
    from tpo_core.jobs.run import Run
    from tpo_core.jobs.train import train_recipe
    from tpo_core.model.build import build_model
    from tpo_core.plugins import load_plugins

_LAZY = {
    "Codec": "tpo_core.head",
    "Head": "tpo_core.head",
    "Metric": "tpo_core.head",
    "Run": "tpo_core.jobs.run",
    "build_model": "tpo_core.model.build",
    "load_backbone": "tpo_core.backbone",
    "load_plugins": "tpo_core.plugins",
    "load_run": "tpo_core.jobs.load",
    "train_recipe": "tpo_core.jobs.train",
}

__all__ = [
    "API_GROUP",
    "BackboneSpec",
    "Codec",
    "Head",
    "HeadConfig",
    "HeadSpec",
    "Metric",
    "ReaderSpec",
    "Run",
    "TPOError",
    "__version__",
    "build_model",
    "hookimpl",
    "load_backbone",
    "load_plugins",
    "load_run",
    "train_recipe",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
