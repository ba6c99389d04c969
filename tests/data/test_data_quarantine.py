"""Bad rows: put aside once, reported, counted over restarts, and capped."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest

from tpo_core.data import Quarantine
from tpo_core.errors import DataError, TrainError


def rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_row_is_put_aside_once(tmp_path: Path) -> None:
    report = tmp_path / "run" / "quarantine.jsonl"
    quarantine = Quarantine(cap=5, path=report, size=1000)
    assert quarantine.summary() == "no bad rows"
    assert not report.exists()
    for _ in range(3):
        quarantine.add("a.jsonl:3", "r3", "a.jsonl:3: id: is missing; add it")
    quarantine.add("a.jsonl:7", None, "bad \x1b[31m é")
    assert rows(report) == [
        {"where": "a.jsonl:3", "id": "r3", "reason": "a.jsonl:3: id: is missing; add it"},
        {"where": "a.jsonl:7", "id": None, "reason": "bad \x1b[31m é"},
    ]
    assert b"\x1b" not in report.read_bytes()
    assert len(quarantine) == 2
    assert "a.jsonl:3" in quarantine
    assert "a.jsonl:4" not in quarantine
    assert quarantine.summary() == f"2 bad rows were put aside (0.20% of 1,000); see {report}"


def test_over_the_cap_the_run_stops_and_the_report_is_whole(tmp_path: Path) -> None:
    report = tmp_path / "q.jsonl"
    quarantine = Quarantine(cap=2, path=report)
    quarantine.add("a:1", None, "x")
    quarantine.add("a:2", None, "x")
    with pytest.raises(TrainError, match=rf"3 bad rows are more than the cap of 2, the last one is a:3; mend the rows listed in {report}"):
        quarantine.add("a:3", None, "x")
    assert len(rows(report)) == 3


@pytest.mark.parametrize(
    ("cap", "size", "limit"), [(0, None, 0), (7, None, 7), (0.01, 1000, 10), (0.01, 46, 1), (0.0, 46, 0), (1.0, 46, 46)]
)
def test_the_cap_is_a_number_or_a_share(tmp_path: Path, cap: float, size: int | None, limit: int) -> None:
    assert Quarantine(cap=cap, path=tmp_path / "q.jsonl", size=size).limit == limit


def test_caps_that_mean_nothing(tmp_path: Path) -> None:
    for cap, size, words in ((-1, None, "the cap is -1"), (1.5, 10, "the share 1.5"), (0.1, None, "pass size")):
        with pytest.raises(ValueError, match=words):
            Quarantine(cap=cap, path=tmp_path / "q.jsonl", size=size)


def test_the_policy_raise_stops_at_the_first_row(tmp_path: Path) -> None:
    quarantine = Quarantine(policy="raise", cap=5, path=tmp_path / "q.jsonl")
    with pytest.raises(DataError, match=r"^a:1: id: is missing$"):
        quarantine.add("a:1", None, "id: is missing")
    with pytest.raises(DataError, match=r"^a:2: id: is missing$"):
        quarantine.add("a:2", None, "a:2: id: is missing")
    assert len(rows(tmp_path / "q.jsonl")) == 2


def test_a_resumed_run_goes_on_counting(tmp_path: Path) -> None:
    report = tmp_path / "q.jsonl"
    first = Quarantine(cap=2, path=report)
    first.add("a:1", None, "x")
    first.add("a:2", None, "x")
    with report.open("ab") as file:
        file.write(b'{"where": "a:9", "re')  # a crash tore this line
    second = Quarantine(cap=2, path=report)
    second.add("a:1", None, "x")
    assert len(second) == 2
    with pytest.raises(TrainError, match="3 bad rows"):
        second.add("a:9", None, "x")
    assert [row["where"] for row in rows(report)] == ["a:1", "a:2", "a:9"]


def test_another_file_in_its_place_is_not_overwritten(tmp_path: Path) -> None:
    report = tmp_path / "q.jsonl"
    report.write_text("my notes\n")
    with pytest.raises(DataError, match=r"q\.jsonl:1: not a line of a quarantine report; move the file away"):
        Quarantine(cap=2, path=report)
    assert report.read_text() == "my notes\n"


def _add_many(path: Path, name: str) -> None:
    quarantine = Quarantine(cap=1000, path=path)
    for i in range(50):
        quarantine.add(f"{name}:{i}", None, "x" * 300)


def test_lines_of_several_processes_do_not_mix(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_add_many, args=(tmp_path / "q.jsonl", f"f{k}")) for k in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert sorted(row["where"] for row in rows(tmp_path / "q.jsonl")) == sorted(f"f{k}:{i}" for k in range(3) for i in range(50))
