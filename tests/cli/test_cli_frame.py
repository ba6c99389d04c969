"""The frame of the command line: lazy commands, suggestions, one-line errors, nothing that drives the terminal."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from tpo_core.cli import COMMANDS, main
from tpo_core.cli.frame import Lazy, LazyGroup
from tpo_core.cli.output import printable
from tpo_core.errors import DataError

COMMAND_SOURCE = """
import click, sys
from tpo_core.errors import ConfigError
@click.command()
@click.argument("how", default="fine")
def command(how):
    if how == "data":
        error = ConfigError("r.yaml:3: train.lr: found 'x\\x1b[31m', expected a number; correct it")
        error.add_note("in head 'foo' (tpo-head-foo 1.2)")
        raise error
    if how == "bug":
        raise KeyError("ours")
    click.echo("ran")
"""


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LazyGroup:
    (tmp_path / "lazy_toy.py").write_text(COMMAND_SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "lazy_toy", raising=False)
    return LazyGroup("tpo", table={"toy": Lazy("lazy_toy", "A toy."), "absent": Lazy("lazy_nowhere", "Not there.")})


def run(group: click.Group, *args: str) -> Result:
    return CliRunner().invoke(group, list(args))


def install(folder: Path, name: str, points: str, source: str | None = None) -> None:
    info = folder / f"{name}-1.5.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n")
    (info / "entry_points.txt").write_text(points)
    if source is not None:
        (folder / f"{name}.py").write_text(source)


def test_help_imports_no_command(group: LazyGroup) -> None:
    result = run(group, "--help")
    assert result.exit_code == 0
    assert "toy     A toy." in result.output
    assert "absent  Not there." in result.output
    assert "lazy_toy" not in sys.modules


def test_a_command_runs(group: LazyGroup) -> None:
    assert run(group, "toy").output == "ran\n"


def test_wrong_command_gets_a_suggestion(group: LazyGroup) -> None:
    result = run(group, "tyo")
    assert result.exit_code == 2
    assert "there is no command 'tyo'. Did you mean 'toy'?" in result.output


def test_our_errors_are_one_line_with_their_note(group: LazyGroup) -> None:
    result = run(group, "toy", "data")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr == (
        "Error: r.yaml:3: train.lr: found 'x\\x1b[31m', expected a number; correct it (in head 'foo' (tpo-head-foo 1.2))\n"
    )


@pytest.mark.parametrize("args", [("--debug", "toy", "data"), ("toy", "data", "--debug")])
def test_debug_gives_the_exception_itself(group: LazyGroup, args: tuple[str, ...]) -> None:
    result = run(group, *args)
    assert type(result.exception).__name__ == "ConfigError"


def test_after_two_dashes_debug_is_an_argument(group: LazyGroup) -> None:
    assert run(group, "toy", "--", "--debug").output == "ran\n"


def test_a_bug_keeps_its_traceback(group: LazyGroup) -> None:
    assert isinstance(run(group, "toy", "bug").exception, KeyError)


def test_commands_of_packages_are_listed_from_metadata_and_imported_when_run(
    group: LazyGroup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    install(
        site,
        "extra_one",
        "[tpo_core.v1.commands]\nzoom = extra_one:zoom\ntoy = extra_one:zoom\n",
        "import click\nzoom = click.command()(lambda: click.echo('zoomed'))\n",
    )
    install(site, "extra_two", "[tpo_core.v1.commands]\nsick = extra_two:sick\nodd = extra_three:odd\n", "raise RuntimeError('boom')\n")
    (site / "extra_three.py").write_text("odd = 3\n")
    monkeypatch.syspath_prepend(str(site))
    listing = run(group, "--help").output
    assert "zoom  from extra_one 1.5" in listing
    assert "extra_one" not in sys.modules
    assert run(group, "zoom").output == "zoomed\n"
    assert run(group, "toy").output == "ran\n"
    assert run(group, "sick").stderr == ("Error: command 'sick' (extra_two 1.5): importing extra_two:sick raised RuntimeError: boom\n")
    assert "extra_three:odd is int, expected a click command" in run(group, "odd").stderr
    for name in ("extra_one", "extra_three"):
        del sys.modules[name]


def test_every_command_of_ours_is_there() -> None:
    for lazy in COMMANDS.values():
        assert isinstance(import_module(lazy.module).command, click.Command)


def test_version() -> None:
    assert run(main, "--version").output.startswith("tpo, version ")


@pytest.mark.parametrize("args", [["--help"], ["heads"], ["heads", "--json"], ["--version"]])
def test_light_commands_import_neither_torch_nor_transformers(args: list[str]) -> None:
    program = (
        "import sys\nfrom tpo_core.cli import main\n"
        f"try:\n    main({args!r})\nexcept SystemExit as done:\n    assert not done.code\n"
        "print([name for name in ('torch', 'transformers', 'numpy', 'PIL') if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env={"TPO_PLUGINS": "", "PATH": "/usr/bin:/bin"}, check=True
    )
    assert done.stderr.strip() == "[]"


def test_help_does_not_read_rich_or_yaml() -> None:
    program = (
        "import sys\nfrom tpo_core.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit: pass\n"
        "print([name for name in ('rich', 'ruamel', 'tpo_heads') if name in sys.modules], file=sys.stderr)"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stderr.strip() == "[]"


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("plain ünï 漢字 \t tab\nline", "plain ünï 漢字 \t tab\nline"),
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("a\u202eb\u2066c", "a\\u202eb\\u2066c"),
        ("\r\x9b31m", "\\r\\x9b31m"),
        ("\ud800", "\\ud800"),
    ],
)
def test_text_cannot_drive_the_terminal(text: str, escaped: str) -> None:
    assert printable(text) == escaped


@given(st.text(alphabet=st.characters(codec=None)))
def test_escaping_leaves_nothing_unsafe_and_is_stable(text: str) -> None:
    once = printable(text)
    assert printable(once) == once
    assert "\x1b" not in once
    once.encode("utf-8")


def test_errors_of_data_name_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        raise DataError("a.jsonl:1: nothing there")

    monkeypatch.setattr("tpo_core.cli.heads.load_plugins", fail)
    result = run(main, "heads")
    assert (result.exit_code, result.stderr) == (1, "Error: a.jsonl:1: nothing there\n")
