"""Ablations: what a row learns from, which runs follow, and a table of them; at tiny size, mostly in this process."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image
from tiny_run import recipe, region_rows
from toy_data import image, record, target, text

from tpo_core.cli import main
from tpo_core.errors import ConfigError
from tpo_core.jobs import ablate, ablate_worker
from tpo_core.jobs.ablate import Ablation
from tpo_core.jobs.ablate_plan import RowConfig, choose_rows, read_table, standard_rows, with_sources
from tpo_core.jobs.ablate_records import TextualPredictor
from tpo_core.jobs.ablate_table import Cell, as_markdown, write_table
from tpo_core.jobs.load import load_run
from tpo_core.jobs.recipes import read_recipe
from tpo_core.plugins import load_plugins
from tpo_core.predict import Prediction, Predictor


def test_standard_rows_name_each_head_pairs_and_the_controls():
    rows = standard_rows(("a", "b", "c"), ("a", "b"))
    assert [row.name for row in rows] == [
        "a alone",
        "b alone",
        "c alone",
        "a + b",
        "a + c",
        "b + c",
        "all heads",
        "all + conversation",
        "conversation only",
        "all + conversation (detached)",
        "written as text + conversation",
    ]
    assert rows[-2].set == ("heads.a.detach=true", "heads.b.detach=true", "heads.c.detach=true")
    assert (rows[-1].heads, rows[-1].textual) == (("c",), ("a", "b"))
    assert [row.name for row in standard_rows(("a",), ())] == [
        "a alone",
        "all + conversation",
        "conversation only",
        "all + conversation (detached)",
    ]


def test_rows_are_chosen_by_name():
    rows = standard_rows(("a", "b"), ())
    assert [row.name for row in choose_rows(rows, ["Conversation-only", "a alone"])] == ["a alone", "conversation only"]
    with pytest.raises(ConfigError, match=r"no row 'b allone'.*Did you mean 'b alone'"):
        choose_rows(rows, ["b allone"])
    with pytest.raises(ConfigError, match="stands twice"):
        choose_rows([RowConfig(name="x y"), RowConfig(name="x-y")], [])


def stages_recipe(folder, backbone):
    """Two sources (boxes, and chat alone), three stages; `lone` has something only for conversation."""
    mapping = recipe(folder, backbone, rows=[row for row in region_rows() if row["targets"]])
    chat = folder / "data" / "chat.jsonl"
    chat.write_text("".join(json.dumps(row) + "\n" for row in region_rows() if not row["targets"]))
    mapping["data"]["train"].append({"name": "chat", "path": str(chat)})
    mapping["data"]["test"] += [{"name": "talk", "path": str(chat)}]
    stage = mapping["stages"][0]
    mapping["stages"] = [
        {**stage, "steps": 2},
        {**stage, "name": "lone", "steps": 1, "sources": {"chat": 1.0}},
        {**stage, "name": "last", "steps": None, "epochs": 0.5, "sources": {"toy": 3.0, "chat": 1.0}},
    ]
    mapping["trainer"] = {"report": False, "eval_after_stage": True}
    return mapping


def ablation(mapping, output, **options):
    plugins = load_plugins()
    return Ablation(read_recipe(mapping, plugins, heads=None, overrides=()), plugins, output, **options)


def test_every_row_trains_as_long_on_what_it_keeps(tmp_path, backbones):
    made = ablation(stages_recipe(tmp_path, backbones["qwen3_vl"]), tmp_path / "out", seeds=(0, 5), scale=2.0)
    runs = made.plan()
    assert not (tmp_path / "out").exists()
    assert [(run.row.name, run.seed) for run in runs][:3] == [("region alone", 0), ("region alone", 5), ("all + conversation", 0)]
    # 12 records, half an epoch of fours: 2 steps; all twice as long.
    assert {tuple((s["name"], s["steps"], s["epochs"]) for s in run.recipe["stages"]) for run in runs} == {
        (("first", 4, None), ("lone", 2, None), ("last", 4, None))
    }
    assert runs[1].recipe["seed"] == 5
    assert not runs[0].recipe["trainer"]["eval_after_stage"]
    detached = next(run for run in runs if "detached" in run.row.name)
    assert detached.recipe["heads"]["region"]["detach"] is True


def test_stages_without_anything_to_learn_from_are_left_out(tmp_path, backbones):
    (run,) = ablation(stages_recipe(tmp_path, backbones["qwen3_vl"]), tmp_path / "out", chosen=["region alone"]).plan()
    made = with_sources(run.recipe, {"toy": Path("/x/toy.jsonl")}, {}, {"train/toy": Path("/media")})
    assert [(s["name"], s["sources"]) for s in made["stages"]] == [("first", None), ("last", {"toy": 3.0})]
    assert made["data"]["train"][0]["root"] == "/media"
    with pytest.raises(ConfigError, match="no stage of the recipe has records"):
        with_sources(run.recipe, {}, {}, {})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"heads": ["regoin"]}, "no head 'regoin'.*Did you mean 'region'"),
        ({"stages": ["frist"]}, "no stage 'frist'.*Did you mean 'first'"),
        ({"set": ["heads.region.detatch=true"]}, "row 'x': .*detach"),
        ({"textual": ["mask"]}, "no head 'mask'"),
    ],
)
def test_rows_that_do_not_fit_the_recipe_are_named(row, message, tmp_path, backbones):
    table = [RowConfig.model_validate_json(json.dumps({"name": "x", **row}))]
    with pytest.raises(ConfigError, match=message):
        ablation(stages_recipe(tmp_path, backbones["qwen3_vl"]), tmp_path / "out", rows=table).plan()


def test_a_row_that_would_not_run_is_told_before_any_does(tmp_path, backbones, in_process):
    table = [
        RowConfig(name="plain"),
        RowConfig(name="muon", set=("stages.0.muon.vision=0.1",)),
        RowConfig(name="kept", set=("stages.0.keep_states=1.0",)),
    ]
    with pytest.raises(ConfigError) as told:
        ablation(stages_recipe(tmp_path, backbones["qwen3_vl"]), tmp_path / "out", rows=table).run()
    lines = str(told.value).splitlines()
    assert [line.split(":")[0] for line in lines] == ["row 'muon'", "row 'kept'"]
    assert "vision" in lines[0]
    assert "keep_states keeps what comes before the heads" in lines[1]
    assert in_process.started == []


@pytest.mark.parametrize(("rows", "told_of"), [(("a", "b"), "every row"), (("a", "b", "plain"), "rows 'a', 'b'")])
def test_a_fault_that_rows_share_is_told_once(rows, told_of, tmp_path, backbones, in_process):
    table = [RowConfig(name=name, set=() if name == "plain" else ("stages.0.muon.vision=0.1",)) for name in rows]
    with pytest.raises(ConfigError) as told:
        ablation(stages_recipe(tmp_path, backbones["qwen3_vl"]), tmp_path / "out", rows=table).run()
    assert [line.split(":")[0] for line in str(told.value).splitlines()] == [told_of]


def test_a_table_with_a_fault_says_where(tmp_path):
    path = tmp_path / "table.yaml"
    path.write_text("rows:\n  - {name: a}\n  - {name: b, heads: [x], textual: [x]}\n")
    with pytest.raises(ConfigError, match=r"table.yaml:3: rows\[1\]: 'x' stands in heads and in textual"):
        read_table(path)
    path.write_text("rows:\n  - {name: 'a, b'}\n")
    with pytest.raises(ConfigError, match=r"table.yaml:2: rows\[0\]: the name 'a, b' has a comma, which separates names in --rows"):
        read_table(path)
    path.write_text("rows:\n  - {name: a, head: [x]}\n")
    with pytest.raises(ConfigError, match=r"rows\[0\].head: .*a row has name, heads"):
        read_table(path)


class InProcess:
    """Stands for a process: runs the worker here."""

    started: list[Path] = []
    fail: set[str] = set()

    def __init__(self, spec: Path) -> None:
        self.started.append(spec)
        if any(name in str(spec) for name in self.fail):
            ablate.log_of(spec).write_text("loading\nout of memory\n")
            self.returncode = 137
        else:
            self.returncode = ablate_worker.main(spec)

    def poll(self):
        return self.returncode


@pytest.fixture
def in_process(monkeypatch):
    InProcess.started, InProcess.fail = [], set()
    monkeypatch.setattr(ablate, "_start", InProcess)
    monkeypatch.setattr(ablate, "POLL_SECONDS", 0.0)
    return InProcess


def test_rows_run_fail_and_go_on(tmp_path, backbones, in_process):
    mapping = stages_recipe(tmp_path, backbones["qwen3_vl"])
    names = ["region alone", "conversation only", "written as text + conversation"]
    said = []
    in_process.fail = {"conversation-only"}
    first = ablation(mapping, tmp_path / "out", chosen=names, command="tpo ablate x", say=said.append).run()
    assert list(first["failed"]) == ["conversation only, seed 0"]
    assert "out of memory" in first["failed"]["conversation only, seed 0"]
    assert any("failed: conversation only" in line for line in said)
    assert [line.rsplit(", ", 1)[1].split(")")[0] for line in said if " left)" in line] == ["2 runs left", "1 run left", "0 runs left"]
    by_row = {row["row"]: row for row in first["rows"]}
    assert by_row["region alone"]["cost"]["steps"]["mean"] == 4  # the stage for conversation is left out
    assert by_row["written as text + conversation"]["cost"]["steps"]["mean"] == 5
    assert by_row["conversation only"]["seeds"] == []
    assert 0 <= by_row["region alone"]["values"]["region acc@0.5"]["mean"] <= 1
    assert len(in_process.started) == 3

    in_process.fail = set()
    done = ablation(mapping, tmp_path / "out", chosen=names, command="tpo ablate x").run()
    assert len(in_process.started) == 4
    assert done["failed"] == {}
    by_row = {row["row"]: row for row in done["rows"]}
    talk = by_row["conversation only"]
    assert talk["values"]["region acc@0.5"] is None
    assert 0 <= talk["values"]["talk"]["mean"] <= 1
    text = (tmp_path / "out" / "table.md").read_text()
    assert "Failed" not in text
    assert Image.open(tmp_path / "out" / "table.png").size[0] > 300

    records = [json.loads(line) for line in (tmp_path / "out/records/region.text+talk/train-toy.jsonl").read_text().splitlines()]
    assert all(not row["targets"] for row in records)
    assert records[0]["messages"][1]["content"][0]["text"].startswith("box 05 04 ")
    again = ablation(mapping, tmp_path / "out", chosen=names)
    again.run()
    assert len(in_process.started) == 4


def test_a_row_is_the_plain_run_where_nothing_is_changed(tmp_path, backbones, in_process):
    """All heads with conversation: the same records in the same order give the same losses as `tpo train`."""
    from tpo_core.jobs.train import TrainJob

    mapping = stages_recipe(tmp_path, backbones["qwen3_vl"])
    ablation(mapping, tmp_path / "out", chosen=["all + conversation"], seeds=(mapping["seed"],)).run()
    plugins = load_plugins()
    TrainJob(read_recipe(mapping, plugins, heads=None, overrides=()), plugins, cpu=True, test=False).run()

    def losses(folder):
        return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]

    assert losses(tmp_path / "out" / "all-conversation" / "seed-3") == losses(tmp_path / "run")


def test_written_answers_are_scored_like_a_heads(tmp_path, backbones, in_process, monkeypatch):
    mapping = stages_recipe(tmp_path, backbones["qwen3_vl"])
    ablation(mapping, tmp_path / "out", chosen=["written as text + conversation"]).run()
    run = load_run(tmp_path / "out" / "written-as-text-conversation" / "seed-0", device="cpu")
    words = {"one": "It is at box 10 25 50 50.", "none": "It is not there.", "empty": ""}

    def scripted(self, questions, *, root, options=None):
        return [Prediction(text=words[q.id], words=words[q.id]) for q in questions]

    monkeypatch.setattr(Predictor, "predict", scripted)
    box = {"id": "t0", "head": "region", "media": 0, "size": [80, 48], "boxes": [[8, 12, 40, 24]]}
    asked = [record([image(), text("where?")], [target("t0")], [box], id=name) for name in words]
    found = TextualPredictor(run.assembly, ["region"]).predict(asked, root=tmp_path / "data")
    assert [(answer.head, answer.answers) for answer in found[0].heads] == [("region", ({"box": [8.4, 12.24, 40.4, 24.24]},))]
    assert [len(prediction.heads) for prediction in found[1:]] == [0, 0]


def test_the_command_runs_rows_in_processes_of_their_own(tmp_path, backbones):
    mapping = stages_recipe(tmp_path, backbones["qwen3_vl"])
    mapping["stages"] = mapping["stages"][:1]
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(mapping))
    arguments = ["ablate", str(path), "stages.0.steps=1", "--rows", "region alone", "--seeds", "1", "--output", str(tmp_path / "out")]
    listed = CliRunner().invoke(main, [*arguments, "--list"])
    assert "to do  region alone, seed 1" in listed.output
    done = CliRunner().invoke(main, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    table = json.loads(done.stdout)
    assert [row["row"] for row in table["rows"]] == ["region alone"]
    assert table["rows"][0]["cost"]["steps"]["mean"] == 1
    assert "done   region alone, seed 1" in CliRunner().invoke(main, [*arguments, "--list"]).output
    assert CliRunner().invoke(main, [*arguments, "--seeds", "1,1"]).exit_code == 1


def test_processes_are_ended_with_the_ablation(tmp_path, backbones, monkeypatch):
    started = []

    def start(spec):
        if started:
            raise KeyboardInterrupt
        started.append(subprocess.Popen(["sleep", "60"]))
        return started[-1]

    monkeypatch.setattr(ablate, "_start", start)
    with pytest.raises(KeyboardInterrupt):
        ablation(stages_recipe(tmp_path, backbones["qwen3_vl"]), tmp_path / "out", seeds=(0, 1), jobs=2, chosen=["region alone"]).run()
    assert started[0].poll() is not None


def cells():
    def summary(acc, talk, chance=0.1):
        return {
            "heads": {"box": {"acc": acc}},
            "chance": {"box": {"acc": chance}},
            "primary": {"box": "acc"},
            "conversation": {"qa": talk},
            "blind": {"qa": 0.25},
            "assignment": {"right": acc + 0.25, "blind": 0.5, "sources": {"qa": 0.25}},
            "steps": 10,
            "cpu_seconds": 30.0,
        }

    talk_only = {
        "heads": {"box": {}},
        "chance": {"box": {}},
        "primary": {"box": "acc"},
        "conversation": {"qa": 0.75},
        "blind": {"qa": 0.25},
    }
    return [
        Cell("both | all", 0, summary(0.5, 0.5)),
        Cell("both | all", 1, summary(0.7, 0.5, chance=0.3)),
        Cell("talk", 0, {**talk_only, "steps": 10, "cpu_seconds": 12.0}),
    ]


def test_the_table_by_hand(tmp_path):
    options = {"rows": ["both | all", "talk", "lost"], "heads": ["box"], "failed": {"lost, seed 0": "no\nmemory"}, "seeds": [0, 1]}
    table = write_table(tmp_path, cells(), command="tpo ablate `x`", **options)
    both = table["rows"][0]["values"]["box acc"]
    assert both["mean"] == pytest.approx(0.6)
    assert both["deviation"] == pytest.approx(0.1414, abs=1e-4)
    assert table["chance"] == {"box acc": pytest.approx(0.2), "right head called": 0.5, "qa": 0.25}
    lines = as_markdown(table).splitlines()
    assert lines[0] == "| row | seeds | box acc | right head called | qa | steps | CPU s |"
    assert lines[2] == r"| both \| all | 2 | 0.600 ± 0.141 | 0.850 ± 0.141 | 0.500 ± 0.000 | 10 | 30 |"
    assert lines[3] == "| talk | 1 | - | - | 0.750 | 10 | 12 |"
    assert lines[4] == "| lost | 0 | - | - | - | - | - |"
    assert lines[5] == "| chance, blind | | 0.200 | 0.500 | 0.250 |  |  |"
    assert "Failed: lost, seed 0: no memory" in "\n".join(lines)
    assert json.loads((tmp_path / "table.json").read_text()) == table
