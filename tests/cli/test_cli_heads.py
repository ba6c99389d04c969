"""`tpo heads`: the list, one head in full, both as JSON; on fixture packages, not on ours."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tpo_core.cli import heads, main
from tpo_core.plugins import load_plugins

CARD = """
from typing import Literal
from pydantic import Field
from tpo_core import HeadConfig, HeadSpec, ReaderSpec, hookimpl
class Config(HeadConfig):
    points: list[int] = Field([1, 2], description="how many points")
    form: Literal["a", "b"] | None = Field(None, description="which [red]form[/red]\\x1b")
@hookimpl
def tpo_heads():
    return [HeadSpec(name="{name}", summary="finds [b]things[/b]\\x1b[2J", config="{module}:Config", head="{module}:H",
                     codec="{module}:C", metric="{module}:M", primary="acc", examples=[{{"spots": [1, 2]}}])]
"""
READER = """
from tpo_core import ReaderSpec, hookimpl
@hookimpl
def tpo_readers():
    return [ReaderSpec("csv", "rows", "x:y")]
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(heads, "load_plugins", lambda: load_plugins(path=[str(tmp_path)], env={}))
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        if name.startswith("shown_"):
            del sys.modules[name]


def install(site: Path, module: str, source: str, group: str = "tpo_core.v1") -> None:
    info = site / f"{module}-1.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.5\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{module} = {module}\n")
    (site / f"{module}.py").write_text(source)


def run(*args: str) -> Result:
    return CliRunner().invoke(main, ["heads", *args])


@pytest.fixture
def many(site: Path) -> None:
    install(site, "shown_foo", CARD.format(name="foo", module="shown_foo"))
    install(site, "shown_bad", "raise RuntimeError('boom')")
    install(site, "shown_old", "", group="tpo_core.v0")
    install(site, "shown_csv", READER)


@pytest.mark.usefixtures("many")
def test_list_shows_every_plugin_with_status_and_cause() -> None:
    result = run()
    assert result.exit_code == 0
    lines = {line.split()[0]: line.split(maxsplit=5) for line in result.output.splitlines() if "1.5" in line}
    assert lines["foo"][1:5] == ["shown_foo", "1.5", "v1", "ok"]
    assert lines["foo"][5].strip() == "finds [b]things[/b]\\x1b[2J"
    assert lines["(shown_bad)"][4] == "broken"
    assert "RuntimeError: boom" in lines["(shown_bad)"][5]
    assert lines["(shown_old)"][3:5] == ["v0", "outdated"]
    assert lines["(shown_csv)"][5].strip() == "reader csv"


@pytest.mark.usefixtures("many")
def test_list_as_json() -> None:
    entries = {entry["plugin"]: entry for entry in json.loads(run("--json").output)}
    assert entries["shown_foo"]["heads"] == [{"name": "foo", "summary": "finds [b]things[/b]\x1b[2J"}]
    assert (entries["shown_bad"]["status"], entries["shown_bad"]["cause"]) == ("broken", "importing shown_bad raised RuntimeError: boom")
    assert entries["shown_csv"]["readers"] == ["csv"]


@pytest.mark.usefixtures("many")
def test_one_head_in_full() -> None:
    output = run("foo").output
    assert "package   shown_foo 1.5 (API v1, ok)" in output
    assert "<|tpo:foo|><|tpo:foo:0|>" in output
    assert '{"head": "foo", "spots": [1, 2]}' in output
    rows = {line.split()[0]: line for line in output.splitlines() if line.strip().startswith("heads.foo.")}
    assert "list of integer" in rows["heads.foo.points"]
    assert "[1, 2]" in rows["heads.foo.points"]
    assert '"a" | "b" | null' in rows["heads.foo.form"]
    assert "which [red]form[/red]\\x1b" in rows["heads.foo.form"]
    assert "\x1b" not in output


@pytest.mark.usefixtures("many")
@pytest.mark.parametrize("args", [("foo", "--json"), ("--json", "foo"), ("show", "foo", "--json")])
def test_one_head_as_json(args: tuple[str, ...]) -> None:
    card = json.loads(run(*args).output)
    assert (card["name"], card["package"], card["version"], card["status"]) == ("foo", "shown_foo", "1.5", "ok")
    assert card["config"]["properties"]["points"]["description"] == "how many points"
    assert card["examples"] == [{"spots": [1, 2]}]


@pytest.mark.usefixtures("many")
def test_an_unknown_head_is_an_error_with_the_nearest() -> None:
    result = run("fooo")
    assert result.exit_code == 1
    assert "Did you mean 'foo'?" in result.stderr


@pytest.mark.usefixtures("many")
def test_a_broken_plugin_by_its_name_says_why() -> None:
    result = run("shown_bad")
    assert result.exit_code == 1
    assert "plugin 'shown_bad' (shown_bad 1.5) is broken: importing shown_bad raised RuntimeError: boom" in result.stderr


TOY = (Path(__file__).parents[1] / "testing" / "material" / "toy_head.py").read_text()
"""The good toy head of the kit's own tests, here as one module with its card."""

TOY_CARD = """
from tpo_core import HeadSpec, hookimpl
@hookimpl
def tpo_heads():
    return [HeadSpec(name="spot", summary="the middle", config="shown_toy:SpotConfig", head="shown_toy:{head}", codec="shown_toy:SpotCodec",
                     metric="shown_toy:SpotMetric", primary="hit", examples=[{{"size": [64, 48], "points": [[10, 20], [30, 40]]}}],
                     prompt_examples=[{{"kind": "point", "size": [64, 48], "point": [10, 20]}}])]
"""


def test_check_runs_the_kit_on_an_installed_head(site: Path) -> None:
    install(site, "shown_toy", TOY)
    install(site, "shown_card", TOY_CARD.format(head="SpotHead"))
    result = run("check", "spot")
    lines = {line.split()[0]: line for line in result.output.splitlines() if line.strip()}
    assert "passed" in lines["mixing"]
    assert "not run" in lines["draw"]
    assert "20 of 21 checks passed, 0 failed" in result.output
    assert result.exit_code == 0


def test_check_fails_with_the_reason(site: Path) -> None:
    mean = (
        "class Mean(SpotHead):\n    def loss(self, output, targets):\n        return {'l1': super().loss(output, targets)['l1'].mean()}\n"
    )
    install(site, "shown_toy", TOY + "\n" + mean)
    install(site, "shown_card", TOY_CARD.format(head="Mean"))
    result = run("check", "spot", "--json")
    assert result.exit_code == 1
    outcomes = {one["check"]: one for one in json.loads(result.output)["checks"]}
    assert outcomes["losses"]["outcome"] == "failed"
    assert "has shape () for N = 1, expected (1,)" in outcomes["losses"]["message"]
