"""What may not change by accident: hooks, commands, public names, what `import tpo_core` costs, import floors, banned calls."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OWN = [p for folder in ("tpo_core", "tpo_heads", "plugins", "examples", "benchmarks") for p in sorted((ROOT / folder).rglob("*.py"))]


def test_hooks_are_these_four():
    from tpo_core import hooks

    found = {name: str(inspect.signature(f)) for name, f in vars(hooks).items() if hasattr(f, "tpo_spec")}
    assert found == {
        "tpo_backbones": "() -> 'Iterable[BackboneSpec]'",
        "tpo_heads": "() -> 'Iterable[HeadSpec]'",
        "tpo_readers": "() -> 'Iterable[ReaderSpec]'",
        "tpo_step_end": "(step: 'int', metrics: 'Mapping[str, float]') -> 'None'",
    }


def test_hooks_fit_on_a_screen():
    assert len((ROOT / "tpo_core" / "hooks.py").read_text().splitlines()) <= 50


def test_commands_are_these():
    from tpo_core.cli import main

    assert sorted(main.table) == ["ablate", "affinity", "eval", "heads", "new-head", "predict", "train"]


def test_public_names_are_these():
    import tpo_core

    assert sorted(tpo_core.__all__) == [
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
    for name in tpo_core.__all__:
        assert getattr(tpo_core, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'load_runs'"):
        _ = tpo_core.load_runs


@pytest.mark.parametrize(
    "code",
    [
        "import tpo_core",
        "from tpo_core.cli import main; main(['--help'], standalone_mode=False)",
        "from tpo_core.cli import main; main(['heads'], standalone_mode=False)",
    ],
)
def test_torch_is_not_imported_where_it_is_not_needed(code):
    heavy = "[m for m in ('torch', 'transformers', 'sam2', 'accelerate', 'peft') if m in sys.modules]"
    script = f"{code}\nimport sys\nheavy = {heavy}\nassert not heavy, heavy"
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


def test_imports_go_down_only():
    done = subprocess.run([Path(sys.executable).with_name("lint-imports"), "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]


def test_core_names_no_head():
    """No concrete head stands in core: no import, no name in a string, no branch."""
    pattern = re.compile(r"""["'](region|temporal|mask)["']|tpo_heads\.\w|import tpo_heads""")
    found = [
        f"{p.relative_to(ROOT)}: {line.strip()}"
        for p in OWN
        if "tpo_core" in p.parts
        for line in p.read_text().splitlines()
        if pattern.search(line)
    ]
    assert found == []


@pytest.mark.parametrize(
    "banned",
    [
        r"pickle\.(load|loads|Unpickler)\(",
        r"weights_only\s*=\s*False",
        r"trust_remote_code\s*=\s*True",
        r"allow_pickle\s*=\s*True",
        r"yaml\.load\(",
        r"\.load_state\(",
        r"register_for_checkpointing",
    ],
)
def test_nothing_unpickles_or_runs_what_came_with_data(banned):
    pattern = re.compile(banned)
    found = [f"{p.relative_to(ROOT)}:{i}" for p in OWN for i, line in enumerate(p.read_text().splitlines(), 1) if pattern.search(line)]
    assert found == []


def test_no_file_or_function_grows_too_long():
    import ast

    long_files = {str(p.relative_to(ROOT)): n for p in OWN if (n := len(p.read_text().splitlines())) > 420}
    assert long_files == {}
    long_functions = [
        f"{p.relative_to(ROOT)}:{node.name}"
        for p in OWN
        for node in ast.walk(ast.parse(p.read_text()))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and (node.end_lineno or 0) - node.lineno > 75
    ]
    assert long_functions == []


def test_no_room_is_named_for_nothing():
    assert [p for p in OWN if p.stem in ("utils", "helpers", "common", "misc")] == []
