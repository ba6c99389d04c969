"""What the README shows works as it is written."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner
from tiny_run import region_rows, write_rows

from tpo_core.cli import main

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text("utf-8")


def test_the_loop_of_a_dozen_lines_trains(tmp_path, backbones):
    spec = importlib.util.spec_from_file_location("loop", ROOT / "examples" / "loop.py")
    loop = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loop)
    records = write_rows(tmp_path / "train.jsonl", region_rows(4))
    losses = loop.train(str(backbones["qwen3_vl"]), str(records), steps=6, batch_size=4)
    assert len(losses) == 6
    assert losses[-1] < losses[0]


def test_the_readme_opens_with_which_tpo_it_is():
    first = README.splitlines()[0]
    assert "Task" in first
    assert "2412.19326" in first
    assert "Temporal" in README.splitlines()[2]


def test_the_readmes_record_is_valid():
    from tpo_core.data import Record

    text = re.search(r"```json\n(.*?)```", README, re.DOTALL).group(1)
    record = Record.from_json(json.dumps(json.loads(text)), where="README")
    assert record.targets[0].head == "region"


def test_the_readmes_commands_parse():
    """Every `tpo ...` line of the README names a command and options that exist."""
    lines = [line.split("#")[0].strip() for line in README.splitlines() if line.startswith("tpo ")]
    assert len(lines) >= 6
    for line in lines:
        words = shlex.split(line)[1:]
        command = main.get_command(None, words[0])
        assert command is not None, line
        options = {name for parameter in command.params for name in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options, line


def test_every_link_of_the_docs_leads_somewhere():
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text("utf-8")):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "name the heads"),
        (["train", "--heads", "regoin"], "regoin"),
        (["train", "--heads", "region,region"], "twice"),
        (["train", "--heads", "region", "recipe.sample=3"], "recipe.sample"),
        (["train", "--config", "missing.yaml"], "missing.yaml"),
        (["train", "--data", "x.jsonl"], "--model"),
        (["predict", "nowhere", "x"], "nowhere"),
        (["eval", "nowhere"], "nowhere"),
        (["trian"], "train"),
    ],
)
def test_wrong_commands_are_one_sentence(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code != 0
    assert message in result.output
    assert "Traceback" not in result.output
    assert list(tmp_path.iterdir()) == []
