"""Ask a model its test records: figures, one line per record, and pictures."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from tpo_core.errors import TPOError
from tpo_core.evaluate import BlindBaseline, Evaluator, Report, TestSource, training_pairs
from tpo_core.jobs.listen import JobListener
from tpo_core.jobs.sources import OpenSource
from tpo_core.model import GenerationOptions
from tpo_core.model.build import Assembly
from tpo_core.predict import Predictor
from tpo_core.predict.pictures import draw_picture
from tpo_core.prepare.question import first_question
from tpo_core.train import Processes, run_on_main

BLIND_RECORDS = 5000
"""Training records whose turns the blind baseline knows, at most."""
PER_HEAD = 2
"""Pictures per head."""


Answerer = Callable[[Assembly], Predictor]
"""Makes what answers the test questions."""


def measure_model(
    assembly: Assembly,
    tests: Sequence[OpenSource],
    *,
    trained_on: Sequence[OpenSource] = (),
    output: Path,
    most: int | None = None,
    listener: JobListener | None = None,
    options: GenerationOptions | None = None,
    batch_size: int = 16,
    answerer: Answerer = Predictor,
    processes: Processes | None = None,
) -> dict[str, Any]:
    """Evaluate, write ``predictions.jsonl``, ``pictures/`` and ``picture.png`` into the output folder, and return the figures.

    Args:
        tests: sources to ask. most: records per source; None: all.
        trained_on: where the blind row takes its answers from; without it there is no blind row for conversation.
        batch_size: questions per generation.
        answerer: makes what answers.
        processes: those that share the questions, all of which must call this; the first one writes and returns, the others return {}.

    Raises:
        TPOError: in all processes, when one of them cannot go on.
    """
    predictor, sources = answerer(assembly), open_tests(tests, most)
    report = ask_tests(
        predictor, sources, trained_on=trained_on, listener=listener, options=options, batch_size=batch_size, processes=processes
    )
    if processes is None:
        return _written(report, predictor, sources, output)
    return run_on_main(processes.accelerator, lambda: _written(report, predictor, sources, output)) or {}


def _written(report: Report, predictor: Predictor, sources: Sequence[TestSource], output: Path) -> dict[str, Any]:
    output.mkdir(parents=True, exist_ok=True)
    _write_rows(output / "predictions.jsonl", report)
    pictures = draw_examples(predictor, sources, output)
    figures = report.to_json()
    figures["primary"] = {name: head.spec.primary for name, head in sorted(predictor.assembly.heads.items())}
    figures["files"] = {"predictions": str(output / "predictions.jsonl"), "pictures": [str(path) for path in pictures]}
    return figures


def open_tests(tests: Sequence[OpenSource], most: int | None) -> list[TestSource]:
    """Return what is asked of each source: its first `most` records; None: all."""
    return [TestSource(s.name, [row for _, row in zip(range(most or s.size), s.rows(), strict=False)], s.root) for s in tests]


def ask_tests(
    predictor: Predictor,
    sources: Sequence[TestSource],
    *,
    trained_on: Sequence[OpenSource] = (),
    listener: JobListener | None = None,
    options: GenerationOptions | None = None,
    batch_size: int = 16,
    processes: Processes | None = None,
) -> Report:
    """Ask every record and score the answers; nothing is written. Arguments as of `measure_model`."""
    listener = listener or JobListener()
    listener.evaluation_begins(sum(len(s.records) for s in sources))
    scores = processes is None or processes.rank == 0
    return Evaluator(
        predictor,
        metrics={name: head.metric for name, head in predictor.assembly.heads.items()},
        blind=_blind(trained_on) if scores else None,
        batch_size=batch_size,
        options=options or GenerationOptions(max_new_tokens=48),
        progress=listener.evaluated,
        processes=processes,
    ).run(sources)


def draw_examples(predictor: Predictor, sources: Sequence[TestSource], output: Path) -> list[Path]:
    """Draw the first records of each head with the annotation beside the answer; one of each stands in ``picture.png``.

    They are the first, not the best ones.
    """
    folder = output / "pictures"
    drawn: list[Path] = []
    firsts: list[Image.Image] = []
    heads = predictor.assembly.heads
    for name in sorted(heads):
        found = 0
        for source in sources:
            for _, record in source.records:
                if found == PER_HEAD or isinstance(record, Exception):
                    continue
                question = first_question(record)
                if [t.head for t in question.targets] != [name]:
                    continue
                picture = _draw(predictor, question, source.root, heads)
                if picture is None:
                    continue
                folder.mkdir(parents=True, exist_ok=True)
                path = folder / f"{name}-{found + 1}.png"
                picture.save(path)
                drawn.append(path)
                firsts += [picture] if found == 0 else []
                found += 1
    if firsts:
        _stack(firsts).save(output / "picture.png")
        drawn.insert(0, output / "picture.png")
    return drawn


def _draw(predictor: Predictor, question: Any, root: Path, heads: Any) -> Image.Image | None:
    try:
        (prediction,) = predictor.predict([question.record], root=root, options=GenerationOptions(max_new_tokens=48))
        loaded = predictor.assembly.preparer.load_media(question.record, root)
    except TPOError:
        # It is listed among the bad records of the report.
        return None
    canvases = draw_picture(loaded.media, prediction, heads, title=question.record.prompt_text(), targets=question.targets)
    return canvases[min(canvases)].picture(title=question.record.prompt_text()) if canvases else None


def _stack(pictures: Sequence[Image.Image], gap: int = 16) -> Image.Image:
    width = max(p.width for p in pictures)
    height = sum(p.height for p in pictures) + gap * (len(pictures) - 1)
    board = Image.new("RGB", (width, height), (250, 250, 250))
    top = 0
    for picture in pictures:
        board.paste(picture, (0, top))
        top += picture.height + gap
    return board


def _blind(trained_on: Sequence[OpenSource]) -> BlindBaseline | None:
    if not trained_on:
        return None
    share = max(1, BLIND_RECORDS // len(trained_on))
    records = [row for s in trained_on for _, (_, row) in zip(range(share), s.rows(), strict=False) if not isinstance(row, Exception)]
    return BlindBaseline(training_pairs(records))


def _write_rows(path: Path, report: Report) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in report.rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        for where, reason in report.bad:
            file.write(json.dumps({"where": where, "bad": reason}, ensure_ascii=False) + "\n")
