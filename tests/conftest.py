from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from toy_data import write_media

from tpo_core.testing.backbones import FAMILIES, build_tiny_backbone

torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _quiet() -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


@pytest.fixture(scope="session", autouse=True)
def _own_plugins_only() -> Iterator[None]:
    """What else is installed in a developer's environment (the packages under plugins/, too) takes no part unless a test names it."""
    before = os.environ.get("TPO_PLUGINS")
    os.environ["TPO_PLUGINS"] = ""
    yield
    os.environ.pop("TPO_PLUGINS")
    if before is not None:
        os.environ["TPO_PLUGINS"] = before


@pytest.fixture(scope="session")
def media_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_media(tmp_path_factory.mktemp("media"))


@pytest.fixture(scope="session")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("backbones")
    return {family: build_tiny_backbone(family, folder / family) for family in FAMILIES}
