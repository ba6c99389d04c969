"""Which answers a report shows: each record scored by a fresh metric, and of each head the best, the median and the worst one, drawn."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tpo_core.errors import TPOError
from tpo_core.jobs.sources import OpenSource
from tpo_core.model.build import Assembly
from tpo_core.plugins import LoadedHead
from tpo_core.predict import HeadAnswer, Prediction
from tpo_core.predict.pictures import draw_picture
from tpo_core.types import Target

logger = logging.getLogger(__name__)

Row = Mapping[str, Any]
"""A line of ``predictions.jsonl``."""


@dataclass(frozen=True)
class Scored:
    """An answer with its score.

    Args:
        head: whose. score: its primary metric on this record alone. row: the record's line of ``predictions.jsonl``.
        others: mean of the metric's other values, which tells equal scores apart (a hit is 0 or 1).
    """

    head: str
    score: float
    row: Row
    others: float = 0.0


@dataclass(frozen=True)
class Shown:
    """An answer on the report's page.

    Args:
        rank: best, median or worst. score: see `Scored`. png: the drawn answer, or None with the reason in `fault`.
    """

    rank: str
    score: float
    question: str
    expected: str
    answer: str
    record: str
    png: bytes | None
    fault: str = ""


def score_rows(head: LoadedHead, rows: Iterable[Row]) -> list[Scored]:
    """Return the records that expect a head (and nothing else), with the score that each has alone; best first."""
    scored = []
    for row in rows:
        targets = targets_of(row)
        if not targets or any(target.head != head.name for target in targets):
            continue
        answers = [answer.answers for answer in prediction_of(row).of(head.name)]
        with head.blame():
            metric = head.metric()
            for target in targets:
                metric.update(answers.pop(0) if answers else (), target)
            values = metric.compute()
        if head.spec.primary in values:
            score = float(values.pop(head.spec.primary))
            scored.append(Scored(head.name, score, row, sum(values.values()) / max(len(values), 1)))
    return sorted(scored, key=lambda one: (-one.score, -one.others, str(one.row["id"])))


def choose(scored: Sequence[Scored]) -> list[tuple[str, Scored]]:
    """Return the best, the median and the worst; fewer where there are not three."""
    if not scored:
        return []
    places = {"best": 0, "median": len(scored) // 2, "worst": len(scored) - 1}
    taken: dict[int, str] = {}
    for rank, place in places.items():
        taken.setdefault(place, rank)
    return [(rank, scored[place]) for place, rank in taken.items()]


def show_answers(assembly: Assembly, rows: Sequence[Row], tests: Sequence[OpenSource]) -> dict[str, list[Shown]]:
    """Return the page of each head. Records that say "not there" in words have nothing to show and are passed over where others exist."""
    pages = {}
    wanted: dict[str, list[tuple[str, Scored]]] = {}
    for name, head in sorted(assembly.heads.items()):
        scored = score_rows(head, rows)
        codec = assembly.codecs[name]
        present = [one for one in scored if not any(codec.is_absent(target) for target in targets_of(one.row))]
        wanted[name] = choose(present or scored)
    ids = {(str(one.row["source"]), str(one.row["id"])) for chosen in wanted.values() for _, one in chosen}
    places = _find(ids, tests)
    for name, chosen in wanted.items():
        pages[name] = [_show(assembly, rank, one, places) for rank, one in chosen]
    return pages


def show_talk(rows: Iterable[Row], most: int = 4) -> list[Row]:
    """Return the first conversation rows of each source, as they are."""
    shown: dict[str, list[Row]] = {}
    for row in rows:
        if not row.get("expected", {}).get("targets", True):
            shown.setdefault(str(row["source"]), []).append(row)
    return [row for rows_of in shown.values() for row in rows_of[:most]]


def targets_of(row: Row) -> list[Target]:
    """Return the targets that a line of ``predictions.jsonl`` expects."""
    listed = row.get("expected", {}).get("targets", [])
    return [Target.model_validate({"id": f"t{i}", **fields}) for i, fields in enumerate(listed)]


def prediction_of(row: Row) -> Prediction:
    """Return the prediction in a line of ``predictions.jsonl``."""
    found = row["prediction"]
    heads = tuple(HeadAnswer(h["head"], h["media"], tuple(h["answers"]), h["text"]) for h in found["heads"])
    return Prediction(text=found["text"], words=found["words"], heads=heads)


def _find(ids: set[tuple[str, str]], tests: Sequence[OpenSource]) -> dict[tuple[str, str], tuple[OpenSource, int]]:
    """Return where records stand, in one pass over the test sources."""
    places: dict[tuple[str, str], tuple[OpenSource, int]] = {}
    for source in tests:
        left = {record for name, record in ids if name == source.name}
        for row, (_, record) in enumerate(source.rows()):
            if not left:
                break
            if not isinstance(record, Exception) and record.id in left:
                left.discard(record.id)
                places[source.name, record.id] = (source, row)
    return places


def _show(assembly: Assembly, rank: str, one: Scored, places: Mapping[tuple[str, str], tuple[OpenSource, int]]) -> Shown:
    row, targets = one.row, targets_of(one.row)
    prediction = prediction_of(row)
    # A head that was not called has nothing to draw; its empty answer brings the annotation onto the picture.
    missed = [HeadAnswer(one.head, targets[0].media, (), "not called")] if not prediction.of(one.head) else []
    drawn = Prediction(text=prediction.text, words=prediction.words, heads=(*prediction.heads, *missed))
    png, fault = None, ""
    try:
        source, place = places[str(row["source"]), str(row["id"])]
        media = assembly.preparer.load_media(source.record(place), source.root).media
        canvases = draw_picture(media, drawn, assembly.heads, title=str(row["question"]), targets=targets)
        memory = io.BytesIO()
        canvases[min(canvases)].picture().save(memory, format="PNG", optimize=True)
        png = memory.getvalue()
    except (TPOError, KeyError) as error:
        fault = f"the record or its media are not there any more ({error})"
    except Exception as error:  # a stranger's drawing must not cost the report
        logger.exception("head %r could not draw record %r", one.head, row["id"])
        fault = f"head {one.head!r} could not draw it ({type(error).__name__}: {error})"
    return Shown(
        rank=rank,
        score=one.score,
        question=str(row["question"]),
        expected=_brief(row["expected"]),
        answer=prediction.text,
        record=f"{row['source']} / {row['id']}",
        png=png,
        fault=fault,
    )


def _brief(expected: Mapping[str, Any]) -> str:
    words = str(expected.get("words") or "")
    called = ", ".join(str(target["head"]) for target in expected.get("targets", []))
    return " ".join(part for part in (words.strip(), f"[{called}]" if called else "") if part)
