"""Test records -> metrics of every head, accuracy of the conversation, and what ignoring the medium scores.

A record's first question is asked; everything it expects counts. A query that was not emitted is a miss, never left out.
Several processes share the questions, batch by batch; the first one scores.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tpo_core.data.records import Record
from tpo_core.errors import DataError, TPOError
from tpo_core.evaluate.conversation import BlindBaseline, is_right
from tpo_core.head import Metric
from tpo_core.model import GenerationOptions
from tpo_core.predict import Prediction, Predictor
from tpo_core.prepare.question import Question, first_question

if TYPE_CHECKING:
    from tpo_core.train import Processes


@dataclass(frozen=True)
class TestSource:
    """Records to test on.

    Args:
        name: how the report calls them.
        records: (file:line, record); a record may be replaced by the `DataError` that reading it gave.
        root: folder that media paths are relative to.
    """

    __test__ = False

    name: str
    records: Sequence[tuple[str, Record | DataError]]
    root: Path


@dataclass
class Report:
    """What an evaluation found.

    Args:
        heads: head -> metric -> value. chance: the same shape, for answers that ignore question and medium.
        conversation: source -> accuracy of what is answered in words. blind: the same shape, from the question's words alone.
        assignment: how often exactly the expected heads were called: ``right`` (of all questions), ``blind`` (if none ever were) and
            ``sources`` (source -> the same of its questions); {} without questions.
        counts: source -> number of records.
        bad: (file:line, reason) of records that could not be used; they count as misses of nothing and are listed.
        rows: one JSON-ready dict per record: question, expected, prediction.
    """

    heads: dict[str, dict[str, float]] = field(default_factory=dict)
    chance: dict[str, dict[str, float]] = field(default_factory=dict)
    conversation: dict[str, float] = field(default_factory=dict)
    blind: dict[str, float] = field(default_factory=dict)
    assignment: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    bad: list[tuple[str, str]] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the figures (not the rows), JSON-ready."""
        return {
            "heads": self.heads,
            "chance": self.chance,
            "conversation": self.conversation,
            "blind": self.blind,
            "assignment": self.assignment,
            "counts": self.counts,
            "bad_records": len(self.bad),
        }


@dataclass
class _Score:
    right: int = 0
    blind: int = 0
    total: int = 0


@dataclass(frozen=True)
class _Batch:
    """Questions that are asked at once; with each its file:line."""

    source: str
    root: Path
    asked: Sequence[tuple[str, Question]]


class Evaluator:
    """Scores a model on test sources.

    Args:
        predictor: of the model.
        metrics: head -> a fresh metric.
        blind: answers from words alone, made of training questions; None leaves the blind row out.
        batch_size: questions per generation.
        options: of the generation.
        progress: called in the first process with the number of records done (by all, as far as it can know) after each of its batches.
        processes: those that share the questions; None: this one answers all.
    """

    def __init__(
        self,
        predictor: Predictor,
        *,
        metrics: Mapping[str, Callable[[], Metric]],
        blind: BlindBaseline | None = None,
        batch_size: int = 16,
        options: GenerationOptions | None = None,
        progress: Callable[[int], None] | None = None,
        processes: Processes | None = None,
    ) -> None:
        self.predictor = predictor
        self.metrics = {name: make() for name, make in metrics.items()}
        self.blind = blind
        self.batch_size = batch_size
        self.options = options or GenerationOptions()
        self.progress = progress
        self.processes = processes

    def run(self, sources: Iterable[TestSource]) -> Report:
        """Ask every record's first question and score the answers. Every process must call this; the report of all but the first is empty.

        Raises:
            TPOError: in all processes, when one of them cannot go on.
        """
        report = Report()
        batches = [batch for source in sources for batch in self._batches(source, report)]
        answers = self._answers(batches)
        if answers is None:
            return Report()
        talk: dict[str, _Score] = {}
        assigned: dict[str, _Score] = {}
        for batch, found in zip(batches, answers, strict=True):
            for (where, question), answer in zip(batch.asked, found, strict=True):
                if isinstance(answer, str):
                    report.bad.append((where, answer))
                    continue
                self._score(batch.source, question, answer, talk, assigned)
                report.rows.append(_row(batch.source, where, question, answer))
        for name, metric in self.metrics.items():
            report.heads[name] = metric.compute()
            report.chance[name] = metric.chance() if report.heads[name] else {}
        for name, score in talk.items():
            report.conversation[name] = score.right / score.total
            if self.blind is not None:
                report.blind[name] = score.blind / score.total
        total = sum(score.total for score in assigned.values())
        if total:
            report.assignment = {
                "right": sum(score.right for score in assigned.values()) / total,
                "blind": sum(score.blind for score in assigned.values()) / total,
                "sources": {name: score.right / score.total for name, score in assigned.items()},
            }
        return report

    def _batches(self, source: TestSource, report: Report) -> Iterator[_Batch]:
        """Yield a source's questions; records that cannot be asked go to the report."""
        report.counts[source.name] = len(source.records)
        usable: list[tuple[str, Question]] = []
        for where, record in source.records:
            reason = str(record) if isinstance(record, DataError) else self._unusable(record)
            if reason is None and isinstance(record, Record):
                usable.append((where, first_question(record)))
            else:
                report.bad.append((where, reason or ""))
        for start in range(0, len(usable), self.batch_size):
            yield _Batch(source.name, source.root, usable[start : start + self.batch_size])

    def _answers(self, batches: Sequence[_Batch]) -> list[list[Prediction | str]] | None:
        """Return what every question of every batch got, a prediction or why there is none; None where another process scores."""
        if self.processes is None or self.processes.world == 1:
            return list(self._mine(batches, rank=0, world=1))
        rank, world = self.processes.rank, self.processes.world
        told, failure = "null", None
        try:
            mine = [[one if isinstance(one, str) else one.to_json() for one in found] for found in self._mine(batches, rank, world)]
            told = json.dumps(mine)
        except Exception as error:
            failure = error
        shares = [json.loads(text) for text in self.processes.gather(told)]
        if failure is not None:
            raise failure
        if None in shares:
            raise TPOError(f"{shares.count(None)} other process(es) could not answer the test records; their messages say why")
        if rank > 0:
            return None
        whole = [shares[index % world][index // world] for index in range(len(batches))]
        return [[one if isinstance(one, str) else Prediction.from_json(one) for one in found] for found in whole]

    def _mine(self, batches: Sequence[_Batch], rank: int, world: int) -> Iterator[list[Prediction | str]]:
        """Yield the answers to this process's batches: every `world`-th one."""
        for index in range(rank, len(batches), world):
            yield self._predict(batches[index].asked, batches[index].root)
            if self.progress is not None:
                self.progress(sum(len(batch.asked) for batch in batches[index : index + world]))

    def _unusable(self, record: Record) -> str | None:
        heads = {t.head for t in first_question(record).targets}
        unknown = sorted(str(head) for head in heads if head not in self.metrics)
        return f"it expects the heads {', '.join(unknown)}, which this run has not" if unknown else None

    def _predict(self, group: Sequence[tuple[str, Question]], root: Path) -> list[Prediction | str]:
        """Predict a batch; where a medium is bad, one by one, so that the others keep their answers."""
        records = [question.record for _, question in group]
        try:
            return list(self.predictor.predict(records, root=root, options=self.options))
        except DataError as error:
            if len(group) == 1:
                return [str(error)]
            return [answer for one in group for answer in self._predict([one], root)]

    def _score(self, source: str, question: Question, prediction: Prediction, talk: dict[str, _Score], assigned: dict[str, _Score]) -> None:
        answered = {name: [answer.answers for answer in prediction.of(name)] for name in self.metrics}
        for target in question.targets:
            queue = answered[str(target.head)]
            self.metrics[str(target.head)].update(queue.pop(0) if queue else (), target)
        expected = sorted(self._called(question))
        called = sorted(answer.head for answer in prediction.heads)
        choice = assigned.setdefault(source, _Score())
        choice.total += 1
        choice.right += called == expected
        choice.blind += not expected
        if question.targets:
            return
        score = talk.setdefault(source, _Score())
        score.total += 1
        record = question.record
        if called == expected:
            score.right += is_right(prediction.words, question.text, record.choices, record.answer)
        if self.blind is not None:
            guess = self.blind.answer(record.prompt_text())
            score.blind += is_right(guess, question.text, record.choices, record.answer)

    def _called(self, question: Question) -> list[str]:
        """Return the heads that the right answer calls: none where there is nothing to answer, which is said in words."""
        codecs = self.predictor.assembly.codecs
        return [str(target.head) for target in question.targets if not codecs[str(target.head)].is_absent(target)]


def training_pairs(records: Iterable[Record]) -> Iterator[tuple[str, str]]:
    """Yield (question, answer) of every turn of training records that is answered in words alone."""
    for record in records:
        asked: str | None = None
        for message in record.messages:
            if message.role == "user":
                asked = message.text
            elif message.role == "assistant" and asked is not None:
                if all(part.type == "text" for part in message.content):
                    yield asked, message.text
                asked = None


def _row(source: str, where: str, question: Question, prediction: Prediction) -> dict[str, Any]:
    return {
        "id": question.record.id,
        "source": source,
        "where": where,
        "question": question.record.prompt_text(),
        "expected": {
            "words": question.text,
            "targets": [{"head": t.head, "media": t.media, **t.fields()} for t in question.targets],
        },
        "prediction": prediction.to_json(),
    }
