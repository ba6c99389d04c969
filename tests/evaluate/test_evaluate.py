from __future__ import annotations

import pytest
from tiny import assemble
from toy_data import image, mixed_records, record, text

from tpo_core.errors import DataError
from tpo_core.evaluate import BlindBaseline, Evaluator, TestSource, is_right, normalised, training_pairs
from tpo_core.head import Metric
from tpo_core.predict import HeadAnswer, Prediction


@pytest.mark.parametrize(
    ("words", "right"),
    [("Square", True), ("(b)", True), ("B.", True), ("b) square", True), ("a", False), ("", False), ("ring", False), ("because", False)],
)
def test_choices_are_right_by_words_or_by_letter(words, right):
    assert is_right(words, "square", ["ring", "square"], 1) is right


def test_words_are_compared_without_case_and_punctuation():
    assert is_right(" Two objects. ", "two objects")
    assert not is_right("", "")
    assert not is_right("two", "two objects")
    assert normalised("Ja, Größe!") == "ja grösse"


def test_blind_baseline_votes_among_the_most_similar_questions():
    pairs = [("what colour is the ring", "red")] * 2 + [("what colour is the square", "blue")] * 3 + [("how many are there", "two")] * 9
    blind = BlindBaseline(pairs)
    assert blind.answer("what colour is the ring?") == "red"
    assert blind.answer("what colour is the cross?") == "blue"
    assert blind.answer("how many") == "two"
    assert blind.answer("xyz") == "two"
    assert BlindBaseline([]).answer("x") == ""


def test_training_pairs_are_the_turns_in_words():
    assert list(training_pairs(mixed_records())) == [("hello", "Hello to you.")]


class Count(Metric):
    def __init__(self):
        self.seen = []

    def update(self, answers, target):
        self.seen.append((len(answers), target.id))

    def compute(self):
        return {"answered": sum(n for n, _ in self.seen) / len(self.seen)} if self.seen else {}

    def chance(self):
        return {"answered": 0.0}


class Scripted:
    """A predictor that answers from a table, so that scores can be derived by hand."""

    def __init__(self, assembly, answers):
        self.assembly = assembly
        self.answers = answers

    def predict(self, records, *, root, options):
        if any(r.id == "broken" for r in records):
            raise DataError("broken.png: not there")
        return [self.answers[r.id] for r in records]


def answer(words="", *heads):
    return Prediction(text=words, words=words, heads=tuple(HeadAnswer(head, 0, tuple({} for _ in range(n)), "") for head, n in heads))


def test_report_by_hand(backbones, media_root):
    assembly = assemble(backbones["qwen3_vl"])
    records = {r.id: r for r in mixed_records()}
    chat = record([text("how many?")], "two", id="chat2")
    broken = record([image("broken.png"), text("x")], "y", id="broken")
    answers = {
        "one-box": answer("", ("box", 1)),
        "two-boxes": answer("", ("box", 2)),
        "moment": answer("no idea"),
        "chat": answer("hello to you"),
        "chat2": answer("two", ("box", 1)),
        "absent": answer("It is not there."),
        "two-heads": answer("", ("box", 1), ("moment", 1)),
    }
    metrics = {"box": Count(), "moment": Count()}
    names = ["one-box", "two-boxes", "moment", "two-heads"]
    evaluator = Evaluator(
        Scripted(assembly, answers),
        metrics={name: (lambda m=metric: m) for name, metric in metrics.items()},
        blind=BlindBaseline([("how many", "two")]),
        batch_size=3,
    )
    talk = [("t:1", records["chat"]), ("t:2", broken), ("t:3", chat), ("t:4", DataError("t:4: not JSON"))]
    sources = [TestSource("boxes", [(f"b:{n}", records[n]) for n in names], media_root), TestSource("talk", talk, media_root)]
    report = evaluator.run(sources)
    assert metrics["box"].seen == [(1, "t0"), (2, "t0"), (1, "t0")]
    assert metrics["moment"].seen == [(0, "t0"), (1, "t1")]
    assert report.heads["moment"] == {"answered": 0.5}
    assert report.chance["box"] == {"answered": 0.0}
    assert report.conversation["talk"] == 0.5
    assert report.blind["talk"] == 0.5
    assert report.conversation["assignment"] == pytest.approx(4 / 6)
    assert {where for where, _ in report.bad} == {"t:2", "t:4"}
    assert len(report.rows) == 6
    assert report.to_json()["bad_records"] == 2


def test_a_head_that_the_run_has_not_is_said(backbones, media_root):
    assembly = assemble(backbones["qwen3_vl"])
    evaluator = Evaluator(Scripted(assembly, {}), metrics={"moment": Count})
    report = evaluator.run([TestSource("s", [("f:1", mixed_records()[0])], media_root)])
    assert report.bad == [("f:1", "it expects the heads box, which this run has not")]
