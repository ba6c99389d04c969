from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from tiny import assemble
from toy_data import image, mixed_records, record, text

from tpo_core.errors import DataError, TPOError
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
    assert report.conversation == {"talk": 0.5}
    assert report.assignment == {"right": 4 / 6, "blind": 2 / 6, "sources": {"boxes": 0.75, "talk": 0.5}}
    assert {where for where, _ in report.bad} == {"t:2", "t:4"}
    assert len(report.rows) == 6
    assert report.to_json()["bad_records"] == 2


def test_a_head_that_the_run_has_not_is_said(backbones, media_root):
    assembly = assemble(backbones["qwen3_vl"])
    evaluator = Evaluator(Scripted(assembly, {}), metrics={"moment": Count})
    report = evaluator.run([TestSource("s", [("f:1", mixed_records()[0])], media_root)])
    assert report.bad == [("f:1", "it expects the heads box, which this run has not")]


class Pair:
    """Two threads in the place of two processes."""

    world = 2

    def __init__(self, rank, texts, meet):
        self.rank, self.texts, self.meet = rank, texts, meet

    def gather(self, text):
        self.texts[self.rank] = text
        self.meet.wait(timeout=10)
        return list(self.texts)


def in_two(make):
    """Run the evaluator that `make(processes)` gives as each of two processes; return what each gave or raised."""
    texts, meet = [None, None], threading.Barrier(2)

    def one(rank):
        evaluator, sources = make(Pair(rank, texts, meet))
        try:
            return evaluator.run(sources)
        except Exception as error:
            return error

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(one, range(2)))


ANSWERS = {
    "one-box": answer("", ("box", 1)),
    "two-boxes": answer("\u00fcber", ("box", 2)),
    "moment": answer("no idea"),
    "chat": answer("hello to you"),
    "absent": answer("It is not there."),
    "prompt": answer("", ("box", 1)),
    "two-heads": answer("", ("box", 1), ("moment", 1)),
}


@pytest.mark.parametrize("size", [1, 2, 3, 16])
def test_two_processes_give_the_report_of_one(backbones, media_root, size):
    assembly = assemble(backbones["qwen3_vl"])
    rows = [(f"f:{i}", r) for i, r in enumerate(mixed_records())]
    rows.insert(3, ("f:bad", DataError("f:bad: not JSON")))
    rows.insert(5, ("f:broken", record([image("broken.png"), text("x")], "y", id="broken")))
    asked, done = {0: [], 1: []}, {0: [], 1: []}

    class Noting(Scripted):
        def __init__(self, rank):
            super().__init__(assembly, ANSWERS)
            self.rank = rank

        def predict(self, records, *, root, options):
            asked[self.rank].append([r.id for r in records])
            return super().predict(records, root=root, options=options)

    def make(processes):
        rank = 0 if processes is None else processes.rank
        metrics = {"box": Count, "moment": Count}
        blind = BlindBaseline([("hello", "Hello to you.")])
        evaluator = Evaluator(Noting(rank), metrics=metrics, blind=blind, batch_size=size, progress=done[rank].append, processes=processes)
        return evaluator, [TestSource("first", rows[:4], media_root), TestSource("second", rows[4:], media_root)]

    evaluator, sources = make(None)
    alone = evaluator.run(sources)
    batches = asked[0][:]
    assert sum(done[0]) == len(mixed_records()) + 1
    asked[0].clear()
    done[0].clear()
    first, second = in_two(make)
    assert first == alone
    assert len(alone.rows) == len(mixed_records())
    assert second.rows == []
    assert second.heads == {}
    assert sorted(asked[0] + asked[1]) == sorted(batches)
    assert not asked[1] or len(asked[0]) < len(batches)
    assert sum(done[0]) == len(mixed_records()) + 1


@pytest.mark.parametrize("broken", [0, 1])
def test_no_process_waits_for_one_that_cannot_answer(backbones, media_root, broken):
    assembly = assemble(backbones["qwen3_vl"])

    class Failing(Scripted):
        def predict(self, records, *, root, options):
            raise RuntimeError("out of memory")

    def make(processes):
        predictor = (Failing if processes.rank == broken else Scripted)(assembly, ANSWERS)
        evaluator = Evaluator(predictor, metrics={"box": Count, "moment": Count}, batch_size=2, processes=processes)
        return evaluator, [TestSource("s", [(r.id, r) for r in mixed_records()], media_root)]

    raised = in_two(make)
    assert str(raised[broken]) == "out of memory"
    assert isinstance(raised[1 - broken], TPOError)
    assert str(raised[1 - broken]) == "1 other process(es) could not answer the test records; their messages say why"
