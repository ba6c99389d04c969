"""Files of records: random access, places in errors, and the conversion of other formats."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tpo_core.data import RecordFile, convert
from tpo_core.errors import DataError


def talk(name: str, words: str = "Hi") -> dict[str, Any]:
    return {"id": name, "messages": [{"role": "user", "content": words}, {"role": "assistant", "content": "Yes."}]}


def write(path: Path, *lines: dict[str, Any] | str) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line, ensure_ascii=False)) + "\n" for line in lines), "utf-8")
    return path


def test_rows_are_read_in_any_order(tmp_path: Path) -> None:
    file = RecordFile(write(tmp_path / "a.jsonl", *(talk(f"r{i}", "ü" * (i % 7)) for i in range(500))))
    assert len(file) == 500
    assert [file[i].id for i in (499, 0, 250, -1, -500)] == ["r499", "r0", "r250", "r499", "r0"]
    assert file[6].prompt_text() == "üüüüüü"
    assert [record.id for record in file][:3] == ["r0", "r1", "r2"]
    assert file.root == tmp_path
    for row in (500, -501):
        with pytest.raises(IndexError):
            file[row]


def test_blank_lines_count_as_lines_but_not_as_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    text = "\ufeff" + json.dumps(talk("a")) + "\r\n\n   \n" + json.dumps(talk("b")) + "\n\t\n" + json.dumps(talk("c"))
    path.write_bytes(text.encode("utf-8"))
    file = RecordFile(path)
    assert [(file[i].id, file.line(i), file.where(i)) for i in range(len(file))] == [
        ("a", 1, f"{path}:1"),
        ("b", 4, f"{path}:4"),
        ("c", 6, f"{path}:6"),
    ]


def test_errors_name_file_and_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", talk("a"), "", "{bad", talk("c"), {**talk("d"), "extra": 1})
    file = RecordFile(path)
    with pytest.raises(DataError, match=r"a\.jsonl:3: not JSON at character 2"):
        file[1]
    assert file[2].id == "c"
    assert [(row, name, str(error).split(": ")[0]) for row, name, error in file.faults()] == [
        (1, None, f"{path}:3"),
        (3, None, f"{path}:5"),
    ]


def test_doubled_ids_are_faults(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", talk("a"), talk("b"), talk("a"), talk("a"))
    faults = list(RecordFile(path).faults())
    assert [(row, name) for row, name, _ in faults] == [(2, "a"), (3, "a")]
    assert str(faults[0][2]) == f"{path}:3: id: 'a' is the id of line 1, too; give each record its own"


@pytest.mark.parametrize("content", [b"", b"\n\n  \n", b"\xef\xbb\xbf\n"])
def test_a_file_without_records_is_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(DataError, match="the file holds no record"):
        RecordFile(tmp_path / "a.jsonl")


def test_what_is_no_file_is_an_error(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, words in (("absent", "no such file"), ("pipe", "not a regular file"), (".", "not a regular file")):
        with pytest.raises(DataError, match=words):
            RecordFile(tmp_path / name)


def test_a_json_array_is_named_as_such(tmp_path: Path) -> None:
    file = RecordFile(write(tmp_path / "a.json", json.dumps([talk("a")])))
    with pytest.raises(DataError, match="found a list of 1; expected one JSON object per line"):
        file[0]


def test_the_fingerprint_is_that_of_the_content(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", talk("a"), talk("b"))
    content = path.read_bytes()
    assert RecordFile(path).fingerprint == {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content), "records": 2}


def test_a_file_that_changes_under_a_run_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", talk("a"), talk("b"))
    file = RecordFile(path)
    write(path, talk("longer name"), talk("b"))
    with pytest.raises(DataError, match="changed while in use"):
        file[0]
    path.unlink()
    with pytest.raises(DataError, match="cannot be read any more"):
        file[0]


def _send_ids(file: RecordFile, rows: list[int], results: Any) -> None:
    results.put([file[row].id for row in rows])


def test_processes_share_an_opened_file(tmp_path: Path) -> None:
    file = RecordFile(write(tmp_path / "a.jsonl", *(talk(f"r{i}") for i in range(200))))
    assert file[0].id == "r0"
    copy = pickle.loads(pickle.dumps(file))
    assert copy[199].id == "r199"
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    workers = [context.Process(target=_send_ids, args=(file, list(range(k, 200, 2)), results)) for k in range(2)]
    for worker in workers:
        worker.start()
    here = [file[row].id for row in range(200)]
    there = sorted(results.get(timeout=60) + results.get(timeout=60))
    for worker in workers:
        worker.join(60)
    assert here == [f"r{i}" for i in range(200)]
    assert there == sorted(here)


class Reader:
    """Reads lines of ``name<tab>words``; counts how often it was called."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
        self.calls += 1
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if line.startswith("#"):
                continue
            name, words = line.split("\t")
            yield number, talk(name, words) if words != "bad" else {"id": name}


def test_another_format_is_converted_once(tmp_path: Path) -> None:
    source, cache, reader = tmp_path / "a.tsv", tmp_path / "cache", Reader()
    source.write_text("# names and words\na\tone\nb\tbad\n# more\nc\ttwo\n")
    file = convert(reader, source, name="tsv", version="1.0", cache=cache)
    assert [file[0].id, file[2].prompt_text()] == ["a", "two"]
    assert file.root == tmp_path
    with pytest.raises(DataError, match=r"a\.tsv:3: messages: is missing"):
        file[1]
    again = convert(reader, source, name="tsv", version="1.0", cache=cache)
    assert (again.path, again.line(2), reader.calls) == (file.path, 5, 1)
    convert(reader, source, name="tsv", version="1.1", cache=cache)
    assert reader.calls == 2
    source.write_text("a\tchanged words\n")
    assert convert(reader, source, name="tsv", version="1.1", cache=cache)[0].prompt_text() == "changed words"
    assert not [path for path in cache.iterdir() if ".tmp-" in path.name]


def test_a_folder_can_be_a_source(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "x.txt").write_text("x")

    def read(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
        return ((i, talk(entry.name)) for i, entry in enumerate(sorted(path.iterdir()), 1))

    file = convert(read, tmp_path / "set", name="list", version="1", cache=tmp_path / "cache")
    assert file[0].id == "x.txt"
    assert file.root == tmp_path / "set"


def test_a_reader_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    source = tmp_path / "a.tsv"
    source.write_text("a\tone\nno tab here\n")
    with pytest.raises(DataError, match=r"the reader 'tsv' failed after line 1 \(ValueError: not enough values") as caught:
        convert(Reader(), source, name="tsv", version="1", cache=tmp_path / "cache")
    assert isinstance(caught.value.__cause__, ValueError)
    assert list((tmp_path / "cache").iterdir()) == []
    source.write_text("# nothing\n")
    with pytest.raises(DataError, match="found no record in it"):
        convert(Reader(), source, name="tsv", version="1", cache=tmp_path / "cache")
    with pytest.raises(DataError, match="no such file; the reader 'tsv' needs it"):
        convert(Reader(), tmp_path / "absent", name="tsv", version="1", cache=tmp_path / "cache")

    def odd(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
        yield 7, {"id": float("nan")}

    with pytest.raises(DataError, match=r"a\.tsv:7: the reader 'odd' gave a record that is not JSON"):
        convert(odd, source, name="odd", version="1", cache=tmp_path / "cache")
