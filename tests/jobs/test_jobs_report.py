"""The report: self-contained, escaped, true to the run's files; and a report that fails costs no run."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image
from tiny_run import recipe, region_rows

from tpo_core.jobs import report
from tpo_core.jobs.listen import JobListener
from tpo_core.jobs.recipes import read_recipe
from tpo_core.jobs.report_answers import choose, score_rows, show_answers
from tpo_core.jobs.report_charts import heat_map, loss_charts, pull_charts, rate_chart
from tpo_core.jobs.sources import open_sources
from tpo_core.jobs.train import TrainJob
from tpo_core.plugins import load_plugins

NASTY = '<script>alert("x")</script> & <img src="https://example.org/x.png" onerror="x()">'
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Reads a page and fails on tags that do not close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


@pytest.fixture(scope="module")
def run(tmp_path_factory, backbones):
    folder = tmp_path_factory.mktemp("reported")
    rows = region_rows()
    for row in (rows[0], rows[2]):
        row["messages"][0]["content"][1]["text"] = NASTY
    mapping = recipe(folder, backbones["qwen3_vl"], rows=rows)
    mapping["trainer"] |= {"eval_after_stage": True}
    mapping["loss"] = {"measure_every": 3}
    plugins = load_plugins()
    job = TrainJob(read_recipe(mapping, plugins, heads=None, overrides=()), plugins, cpu=True, command=f"tpo train {NASTY}")
    summary = job.run()
    return summary, Path(mapping["output"])


@pytest.fixture(scope="module")
def page(run):
    return Page((run[1] / "report.html").read_text("utf-8"))


def test_the_page_needs_nothing_else_and_runs_nothing(page):
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "iframe", "object", "form")]
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    pictures = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) >= 7
    for source in pictures:
        assert source.startswith("data:image/png;base64,")
        Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))).verify()
    assert all((attributes.get("href") or "#").startswith("#") for _, attributes in page.tags)


def test_whatever_a_user_wrote_stands_there_as_text(page):
    assert page.words.count(" ".join(NASTY.split())) >= 3  # command, question, conversation


def test_the_figures_are_the_summarys(run, page):
    summary, _ = run
    for head, values in summary["heads"].items():
        for metric, value in values.items():
            assert f"{head} {metric} {value:.3f} {summary['chance'][head][metric]:.3f}" in page.words
    for name, value in summary["conversation"].items():
        assert f"{name} {value:.3f} {summary['blind'][name]:.3f}" in page.words
    called = summary["assignment"]
    for name, value in called["sources"].items():
        assert f"always in words {name} {value:.3f}" in page.words
    assert f"all questions {called['right']:.3f} {called['blind']:.3f}" in page.words
    cells = " ".join(f"{figures['assignment']['right']:.3f}" for figures in summary["stages"].values())
    assert f"right head called {cells}" in page.words
    cells = " ".join(f"{figures['heads']['region']['acc@0.5']:.3f}" for figures in summary["stages"].values())
    assert f"region acc@0.5 {cells}" in page.words
    assert "toy 12 12 100.0 % 1.00" in page.words
    for rank in ("best", "median", "worst"):
        assert f"{rank} acc@0.5" in page.words


def test_records_are_scored_by_themselves_and_ranked():
    head = load_plugins().load_head("region")

    def row(name, *answered, boxes=((0, 0, 10, 10),), heads=("region",)):
        targets = [{"head": h, "media": 0, "size": [40, 40], "boxes": [list(b) for b in boxes]} for h in heads]
        answers = [{"head": "region", "media": 0, "answers": [{"box": list(b)} for b in answered], "text": ""}] if answered else []
        return {
            "id": name,
            "source": "s",
            "expected": {"words": "", "targets": targets},
            "prediction": {"text": "", "words": "", "heads": answers},
        }

    rows = [
        row("miss"),
        row("far", (20, 20, 30, 30)),
        row("near", (0, 0, 10, 7)),
        row("exact", (0, 0, 10, 10)),
        row("half", (0, 0, 10, 4)),
        row("other", heads=("temporal",)),
        row("talk", heads=()),
    ]
    scored = score_rows(head, rows)
    assert [(one.row["id"], one.score) for one in scored] == [("exact", 1.0), ("near", 1.0), ("half", 0.0), ("far", 0.0), ("miss", 0.0)]
    assert [(rank, one.row["id"]) for rank, one in choose(scored)] == [("best", "exact"), ("median", "half"), ("worst", "miss")]
    assert [rank for rank, _ in choose(scored[:1])] == ["best"]
    assert choose([]) == []


def test_a_drawing_that_fails_costs_its_picture_alone(run):
    from tpo_core import load_run

    _, output = run
    loaded = load_run(output, device="cpu")
    tests = open_sources(loaded.recipe.data.test, load_plugins(), cache=output / "data")
    rows = report.read_lines(output / "predictions.jsonl")

    def broken(canvas, answers, target):
        raise RuntimeError("no ink")

    heads = {name: dataclasses.replace(head, draw=broken) for name, head in loaded.assembly.heads.items()}
    shown = show_answers(dataclasses.replace(loaded.assembly, heads=heads), rows, tests)["region"]
    assert len(shown) == 3
    assert all(one.png is None and "no ink" in one.fault for one in shown)
    gone = show_answers(loaded.assembly, rows, [])["region"]
    assert all(one.png is None and "not there any more" in one.fault for one in gone)


def test_a_report_that_fails_costs_no_run(tmp_path, backbones, monkeypatch):
    said = []

    class Tell(JobListener):
        def say(self, text):
            said.append(text)

    def fail(output, story):
        raise OSError("disk full")

    monkeypatch.setattr(report, "write_report", fail)
    mapping = recipe(tmp_path, backbones["qwen3_vl"])
    mapping["stages"] = mapping["stages"][:1]
    plugins = load_plugins()
    summary = TrainJob(read_recipe(mapping, plugins, heads=None, overrides=()), plugins, cpu=True, listener=Tell()).run()
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary
    assert any("disk full" in text and "complete" in text for text in said)


def rows_of(**series):
    count = len(next(iter(series.values())))
    return [{"stage": "a" if i < 3 else "b", "step": i + 1, **{name: values[i] for name, values in series.items()}} for i in range(count)]


def size(png: bytes) -> tuple[int, int]:
    return Image.open(io.BytesIO(png)).size


def test_there_is_a_chart_for_each_owner_of_a_loss():
    rows = rows_of(loss=[1.0] * 6, lm=[3.0] * 6, grad_norm=[1.0] * 6, **{"box/l1": [0.0, 0.0, 0.0, 2.0, 1.0, 0.5], "lr/lora": [0.1] * 6})
    charts = loss_charts(rows, ["a", "b"])
    assert list(charts) == ["lm", "box"]
    assert rate_chart(rows, ["a", "b"]) is not None
    assert rate_chart(rows_of(lm=[1.0]), ["a"]) is None
    assert pull_charts(rows, ["a", "b"]) == []
    measured = rows_of(**{"pull/lm": [1.0, 2.0], "pull/box": [1.0, 0.5], "cosine/lm/box": [0.1, -0.3]})
    assert len(pull_charts(measured, ["a"])) == 2


def test_charts_show_values_that_are_missing_or_alone():
    for png in loss_charts(
        [{"stage": "a", "step": 1, "lm": None, "box/l1": 0.0}, {"stage": "a", "step": 2, "lm": 4.0}], ["a", "b"]
    ).values():
        assert min(size(png)) > 100
    assert min(size(heat_map(["a", "b"], [[1.0, None], [-1.0, 0.0]], title="t", limit=1.0, rows="r", columns="c"))) > 100
