"""LLaVA's and VideoChat2-IT's conversations become records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tpo_core.data import RecordFile, convert
from tpo_core.data.chat_formats import read_llava, read_videochat2_it
from tpo_core.data.readers import Reader
from tpo_core.errors import DataError


def converted(reader: Reader, path: Path, rows: list[Any]) -> RecordFile:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows))
    return convert(reader, path, name="x", version="1", cache=path.parent / "cache")


def turns(file: RecordFile, row: int) -> list[tuple[str, list[str]]]:
    return [(message.role, [part.text or f"{part.type}:{part.path}" for part in message.content]) for message in file[row].messages]


def test_llava_tags_become_media_parts_in_order(tmp_path: Path) -> None:
    def say(speaker: str, words: str) -> dict[str, str]:
        return {"from": speaker, "value": words}

    rows = [
        {"id": "1", "image": "a.jpg", "conversations": [say("human", "<image>\nWhat is it?"), say("gpt", "A cat.")], "data_source": "demo"},
        {"id": 2, "video": "v.mp4", "conversations": [say("human", "<image>\nDescribe."), say("gpt", "ok")]},
        {"image": ["a.jpg", "b.jpg"], "conversations": [say("human", "Is <image> like <image>?"), say("gpt", "No.")]},
        {"id": "4", "conversations": [say("system", "Be kind."), say("human", "Hi"), say("gpt", "Hello.")]},
        {"id": "5", "image": "a.jpg", "conversations": [say("human", "No tag?"), say("gpt", "Then it stands first.")]},
    ]
    file = converted(read_llava, tmp_path / "llava.json", rows)
    assert turns(file, 0) == [("user", ["image:a.jpg", "What is it?"]), ("assistant", ["A cat."])]
    assert turns(file, 1)[0] == ("user", ["video:v.mp4", "Describe."])
    assert turns(file, 2)[0] == ("user", ["Is ", "image:a.jpg", " like ", "image:b.jpg", "?"])
    assert turns(file, 3)[0] == ("system", ["Be kind."])
    assert turns(file, 4)[0] == ("user", ["image:a.jpg", "No tag?"])
    assert [(file[i].id, file[i].source) for i in range(3)] == [("1", "demo"), ("2", "llava"), ("llava-3", "llava")]


def test_videochat2_pairs_become_turns(tmp_path: Path) -> None:
    rows = [
        {"video": "v1.mp4", "QA": [{"i": "Watch.", "q": "What does he do?", "a": "He runs."}, {"i": "", "q": "Where?", "a": "In a park."}]},
        {"video": "v2.mp4", "start": 3.0, "end": 9.5, "QA": [{"i": "Describe.", "q": "", "a": "A caption."}]},
        {"image": "c.jpg", "QA": [{"q": "Who?", "a": "A man."}]},
    ]
    file = converted(read_videochat2_it, tmp_path / "conversation" / "train.json", rows)
    assert turns(file, 0) == [
        ("system", ["Watch."]),
        ("user", ["video:v1.mp4", "What does he do?"]),
        ("assistant", ["He runs."]),
        ("user", ["Where?"]),
        ("assistant", ["In a park."]),
    ]
    assert turns(file, 1) == [("user", ["video:v2.mp4", "Describe."]), ("assistant", ["A caption."])]
    part = file[1].media_parts()[0]
    assert (part.start, part.end) == (3.0, 9.5)
    assert turns(file, 2)[0] == ("user", ["image:c.jpg", "Who?"])
    assert file[0].source == "videochat2_it/conversation"


@pytest.mark.parametrize(
    ("reader", "row", "words"),
    [
        (read_llava, {"id": "1"}, "conversations: found NoneType"),
        (read_llava, {"conversations": [{"from": "human", "value": "<image>?"}]}, "1 tags stand for 0 media"),
        (read_llava, {"conversations": [{"from": "cat", "value": "?"}]}, "expected from"),
        (read_llava, 5, "conversations: found NoneType"),
        (read_videochat2_it, {"QA": [{"q": "a", "a": "b"}]}, "without media"),
        (read_videochat2_it, {"video": "a.mp4", "QA": []}, "QA with at least one pair"),
        (read_videochat2_it, {"video": "a.mp4", "QA": [{"q": "a"}]}, "expected i, q and a"),
    ],
)
def test_a_row_of_another_shape_is_named_and_the_others_are_read(tmp_path: Path, reader: Reader, row: Any, words: str) -> None:
    good = {
        "video": "a.mp4",
        "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}],
        "QA": [{"q": "a", "a": "b"}],
    }
    file = converted(reader, tmp_path / "train.json", [row, good])
    with pytest.raises(DataError, match=rf"train\.json:1: .*{words}"):
        file[0]
    assert file[1].messages[-1].text == "b"


def test_lines_are_read_too_and_other_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    row = {"id": "1", "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}
    path.write_text(json.dumps(row) + "\n" + json.dumps(row))
    assert [line for line, _ in read_llava(path)] == [1, 2]
    path.write_text("nothing")
    with pytest.raises(DataError, match="not JSON"):
        list(read_llava(path))
