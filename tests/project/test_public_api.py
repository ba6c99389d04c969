"""The public API: its modules and names are frozen here, its signatures and words in docs/reference.md."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SPEC = importlib.util.spec_from_file_location("make_reference", ROOT / "docs" / "make_reference.py")
reference = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(reference)

NAMES = {
    "tpo_core": "API_GROUP BackboneSpec Codec Head HeadConfig HeadSpec Metric ReaderSpec Run TPOError __version__ build_model hookimpl "
    "load_backbone load_plugins load_run train_recipe",
    "tpo_core.contract": "BackboneSpec HeadConfig HeadSpec ReaderSpec examples_of is_head_name prompts_of",
    "tpo_core.hooks": "tpo_backbones tpo_heads tpo_readers tpo_step_end",
    "tpo_core.head": "Answer Codec Head Metric prompt_rows",
    "tpo_core.types": "Answer BackboneView Batch Chunk ClipView Denominators FrameFeatures HeadBatch Media MediaInfo Queries StepOutput "
    "Target Tensors Trainable VisualBatch Widths",
    "tpo_core.canvas": "Canvas Colour draw_text",
    "tpo_core.testing": "ArrayMedia CHECKS CheckFailed HeadCheck Report Result check_head clip_for head_checks picture_for",
    "tpo_core.errors": "BackboneError CheckpointError ConfigError DataError HeadNotFound MediaError PluginBroken PluginClash PluginError "
    "TPOError TrainError did_you_mean",
}


def test_the_public_names_are_these() -> None:
    found = {name: " ".join(reference.public_names(import_module(name))) for name in reference.MODULES}
    assert found == NAMES
    for module, names in NAMES.items():
        for name in names.split():
            assert getattr(import_module(module), name) is not None


def test_the_reference_is_fresh() -> None:
    """Where this fails a signature or a docstring changed: python docs/make_reference.py, and look at the difference."""
    assert reference.PAGE.read_text("utf-8") == reference.render()


def test_the_reference_says_nothing_of_this_machine() -> None:
    text = reference.PAGE.read_text("utf-8")
    assert not re.search(r"0x[0-9a-f]{6}|/home/|site-packages|environ\(", text)


def test_public_things_have_words() -> None:
    bare = [
        f"{module}.{name}"
        for module, names in NAMES.items()
        for name in names.split()
        if callable(value := getattr(import_module(module), name))
        and getattr(value, "__module__", "").startswith("tpo_core")
        and not value.__doc__
    ]
    assert bare == []


@pytest.mark.parametrize("module", ["tpo_core.contract", "tpo_core.hooks", "tpo_core.types", "tpo_core.errors"])
def test_what_a_card_imports_brings_no_torch(module: str) -> None:
    program = f"import {module}, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_packages_and_examples_for_authors_use_public_modules_only() -> None:
    pattern = re.compile(r"^\s*(?:from|import) (tpo_core[\w.]*|tpo_heads[\w.]*)", re.MULTILINE)
    paths = [p for folder in ("plugins", "examples/write_a_head", "examples/from_a_paper") for p in (ROOT / folder).rglob("*.py")]
    assert len(paths) > 25
    odd = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in paths
        if "build" not in path.parts
        for name in pattern.findall(path.read_text("utf-8"))
        if name not in NAMES
    }
    assert odd == set()
