"""The observer writes each step, the command shows them; both come through the plugin host as a stranger's would."""

import json
from pathlib import Path

import pytest
import tpo_jsonl_log
from click.testing import CliRunner, Result
from tpo_jsonl_log.command import curve, log

from tpo_core.errors import TPOError


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(tpo_jsonl_log.VARIABLE, str(tmp_path / "logs" / "steps.jsonl"))
    return tmp_path / "logs" / "steps.jsonl"


def write(steps: int, session: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tpo_jsonl_log, "SESSION", session)
    for step in range(1, steps + 1):
        tpo_jsonl_log.tpo_step_end(step=step, metrics={"loss": 1 / step, "tokens": 7.0})


def run(*args: str) -> Result:
    return CliRunner().invoke(log, list(args))


def test_steps_become_lines(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(2, "a", monkeypatch)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["session"], row["step"], row["loss"], row["tokens"]) for row in rows] == [("a", 1, 1.0, 7.0), ("a", 2, 0.5, 7.0)]


def test_without_the_variable_it_writes_under_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(tpo_jsonl_log.VARIABLE, raising=False)
    write(1, "a", monkeypatch)
    assert len((tmp_path / "runs" / "steps.jsonl").read_text().splitlines()) == 1


def test_the_command_shows_the_newest_session(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(9, "a", monkeypatch)
    write(4, "b", monkeypatch)
    lines = run("--last", "2").output.splitlines()
    assert lines[:2] == ["step      3  loss 0.3333", "step      4  loss 0.2500"]
    assert lines[2] == "█▃▂▁  0.2500 to 1.0000 over 4 steps"
    assert "over 13 steps" in run("--all").output
    assert "tokens 7.0000" in run(str(path), "--metric", "tokens").output


def test_a_wrong_metric_and_a_wrong_file_are_one_sentence(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(1, "a", monkeypatch)
    (tmp_path / "empty").write_text("")
    (tmp_path / "other").write_text('{"loss": 1}\n')
    for args, message in (
        (("--metric", "lost"), "no step has a metric 'lost'; the log has loss, tokens"),
        ((str(tmp_path / "none"),), "no such log; train with TPO_JSONL_LOG="),
        ((str(tmp_path / "empty"),), "the log is empty"),
        ((str(tmp_path / "other"),), "other:1: not a line of a tpo-jsonl-log"),
    ):
        error = run(*args).exception
        assert isinstance(error, TPOError)
        assert message in str(error)


def test_the_curve() -> None:
    assert curve([1.0, 1.0]) == "▁▁"
    assert curve([0.0, 1.0, 2.0, 7.0]) == "▁▂▃█"
    assert len(curve([float(i) for i in range(1000)])) == 60
