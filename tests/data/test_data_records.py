"""The record format: the ten examples, and one sentence for everything that does not fit."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpo_core.data import Record
from tpo_core.errors import DataError

EXAMPLES = [json.loads(line) for line in (Path(__file__).parent / "native_examples.jsonl").read_text().splitlines()]
BY_ID = {example["id"]: example for example in EXAMPLES}
Fields = dict[str, Any]


def parse(fields: Fields) -> Record:
    return Record.from_json(json.dumps(fields), where="d.jsonl:3")


def fault(fields: Fields | str | bytes) -> str:
    """The sentence with which a record is refused, without its place."""
    text = fields if isinstance(fields, str | bytes) else json.dumps(fields)
    with pytest.raises(DataError) as caught:
        Record.from_json(text, where="d.jsonl:3")
    message = str(caught.value)
    assert message.startswith("d.jsonl:3: ")
    assert "\n" not in message
    assert len(message) < 400
    return message.removeprefix("d.jsonl:3: ")


def changed(name: str, change: Callable[[Fields], object]) -> Fields:
    fields = copy.deepcopy(BY_ID[name])
    change(fields)
    return fields


@pytest.mark.parametrize("example", EXAMPLES, ids=[example["id"] for example in EXAMPLES])
def test_the_ten_examples_are_read_and_written_unchanged(example: Fields) -> None:
    record = parse(example)
    assert json.loads(record.to_json()) == example
    assert Record.from_json(record.to_json(), where="x:1") == record


def test_what_a_record_tells() -> None:
    flickr = parse(BY_ID["flickr-1001-0"])
    assert [target.id for target in flickr.targets] == ["t0", "t1"]
    assert flickr.target("t1")["boxes"] == [[4, 29, 60, 46]]
    assert flickr.messages[1].text == "A man  sits on a bench ."
    with pytest.raises(KeyError):
        flickr.target("t2")
    sav = parse(BY_ID["sav-000001-1"])
    assert sav.prompt_text() == "Track this object."
    assert [part.path for part in sav.media_parts()] == ["sav/sav_000001.mp4"]
    assert (sav.targets[0].role, sav.targets[0].serves, sav.targets[0].kind) == ("prompt", "t0", "box")
    assert sav.targets[1]["rle"][1] is None
    talk = parse(BY_ID["vc2-1"])
    assert (talk.media_parts()[0].start, talk.media_parts()[0].end) == (3.0, 9.5)
    choice = parse(BY_ID["mvbench-as-0"])
    assert choice.choices is not None
    assert choice.choices[choice.answer or 0] == "Ate it."


def test_media_come_in_reading_order_over_several_turns() -> None:
    first = {
        "role": "user",
        "content": [{"type": "image", "path": "a.png"}, {"type": "video", "path": "b.mp4"}, {"type": "text", "text": "?"}],
    }
    then = {
        "role": "user",
        "content": [{"type": "text", "text": "and "}, {"type": "image", "path": "c.png"}, {"type": "text", "text": "this?"}],
    }
    answer = {"role": "assistant", "content": [{"type": "target", "id": "t0"}]}
    fields = {"id": "x", "messages": [first, {"role": "assistant", "content": "yes"}, then, answer]}
    record = parse({**fields, "targets": [{"id": "t0", "head": "region", "media": 2, "boxes": []}]})
    assert [part.path for part in record.media_parts()] == ["a.png", "b.mp4", "c.png"]
    assert record.prompt_text() == "and this?"
    assert "media 3, but the record holds 3" in fault({**fields, "targets": [{"id": "t0", "head": "region", "media": 3}]})


def test_plain_text_is_a_text_part() -> None:
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi."}]
    record = parse({"id": "a", "messages": messages})
    assert [(message.role, [part.type for part in message.content], message.text) for message in record.messages] == [
        ("user", ["text"], "Hello"),
        ("assistant", ["text"], "Hi."),
    ]
    assert record.targets == ()


@pytest.mark.parametrize("example", EXAMPLES, ids=[example["id"] for example in EXAMPLES])
def test_a_null_key_is_a_missing_key(example: Fields) -> None:
    padded = copy.deepcopy(example)
    for key in ("source", "task", "split", "choices", "answer"):
        padded.setdefault(key, None)
    for message in padded["messages"]:
        for part in message["content"]:
            for key in ("text", "path", "id", "start", "end", "fps", "frames"):
                part.setdefault(key, None)
    for target in padded["targets"]:
        for key in ("role", "kind", "for", "head", "boxes", "spans", "saliency"):
            target.setdefault(key, None)
    assert parse(padded) == parse(example)


REGION, MASK, CHOICE, TALK = "refcoco-0-1", "sav-000001-1", "mvbench-as-0", "vc2-1"


def _set(*path: Any) -> Callable[[Fields], None]:
    *steps, key, value = path

    def change(fields: Fields) -> None:
        owner: Any = fields
        for step in steps:
            owner = owner[step]
        owner[key] = value

    return change


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        (REGION, _set("targts", []), "targts: is no field of the format; drop it, or correct its spelling. Did you mean 'targets'?"),
        (REGION, _set("messages", 0, "content", 0, "pth", "x"), "messages.0.content.0.pth: is no field"),
        (REGION, lambda r: r.pop("id"), "id: is missing; add it"),
        (REGION, _set("id", 5), "id: found 5; it should be a valid string"),
        (REGION, _set("id", ""), "id: found ''"),
        (REGION, _set("id", "\ud800"), "id: found '\\ud800'"),
        (REGION, _set("messages", []), "messages: found a list of 0"),
        (REGION, _set("messages", "hello"), "messages: found 'hello'"),
        (REGION, _set("messages", 0, "role", "human"), "messages.0.role: found 'human'; it should be 'system', 'user' or 'assistant'"),
        (REGION, _set("messages", 0, "content", 1, "text", ["a"]), "messages.0.content.1.text: found a list of 1"),
        (REGION, _set("messages", 0, "content", 0, "type", "audio"), "messages.0.content.0.type: found 'audio'"),
        (REGION, lambda r: r["messages"][0]["content"][0].pop("path"), "messages.0.content.0: a part of type image needs path"),
        (REGION, _set("messages", 0, "content", 0, "path", ""), "the path of a part of type image is empty"),
        (REGION, _set("messages", 0, "content", 0, "fps", 2.0), "a part of type image has no fps; it has path"),
        (REGION, _set("messages", 0, "content", 1, "path", "x"), "a part of type text has no path"),
        (TALK, _set("messages", 1, "content", 0, "end", 2.0), "the cut ends at 2 s but starts at 3 s; give start < end"),
        (TALK, _set("messages", 1, "content", 0, "start", -1.0), "messages.1.content.0.start: found -1.0"),
        (TALK, _set("messages", 1, "content", 0, "start", "3"), "messages.1.content.0.start: found '3'"),
        (TALK, _set("messages", 1, "content", 0, "fps", 0), "messages.1.content.0.fps: found 0"),
        (TALK, _set("messages", 1, "content", 0, "frames", []), "messages.1.content.0.frames: found a list of 0"),
        (TALK, _set("messages", 0, "role", "assistant"), "the assistant speaks before the user"),
        (TALK, lambda r: r["messages"].pop(1), "messages hold no user turn"),
        (TALK, lambda r: r["messages"].append(r["messages"][0]), "a system turn stands behind the first place"),
        (TALK, lambda r: r["messages"].pop(), "messages: there is no assistant turn and no choices"),
        (TALK, lambda r: r["messages"][2]["content"].append({"type": "image", "path": "a.png"}), "stands in a turn of role assistant"),
        (REGION, _set("targets", {"t0": {}}), "targets: found an object"),
        (REGION, _set("targets", []), "a part names the target 't0', which targets do not hold; there: none"),
        (REGION, _set("targets", 0, "id", "t9"), "a part names the target 't0', which targets do not hold; there: t9"),
        (REGION, lambda r: r["messages"][1]["content"].pop(1), "target 't0' stands in no message; add the part"),
        (REGION, lambda r: r["messages"][1]["content"].append({"type": "target", "id": "t0"}), "two parts name the target 't0'"),
        (REGION, lambda r: r["targets"].append(r["targets"][0]), "two targets have the id 't0'"),
        (REGION, _set("targets", 0, "media", 1), "target 't0' is about media 1, but the record holds 1"),
        (REGION, _set("targets", 0, "media", -1), "targets.0.media: found -1"),
        (REGION, lambda r: r["targets"][0].pop("head"), "target 't0' names no head"),
        (REGION, _set("targets", 0, "role", "prompt"), "target 't0' has role prompt and stands in a turn of role assistant; expected user"),
        (REGION, _set("targets", 0, "kind", "box"), "which only prompts have"),
        (REGION, lambda r: r["messages"][0]["content"].append(r["messages"][1]["content"].pop(1)), "turn of role user; expected assistant"),
        (MASK, _set("targets", 0, "head", "mask"), "target 'p0' is a prompt and names a head"),
        (MASK, lambda r: r["targets"][0].pop("kind"), "target 'p0' is a prompt; it needs a kind"),
        (MASK, lambda r: r["targets"][0].pop("for"), "target 'p0' is a prompt; it needs a kind"),
        (MASK, _set("targets", 0, "for", "t5"), "target 'p0' is for 't5', which is no answer target"),
        (MASK, _set("targets", 0, "for", "p0"), "target 'p0' is for 'p0', which is no answer target"),
        (CHOICE, _set("answer", 4), "answer is 4, but there are 4 choices"),
        (CHOICE, _set("answer", -1), "answer: found -1"),
        (CHOICE, _set("answer", True), "answer: found True"),
        (CHOICE, _set("answer", "A"), "answer: found 'A'"),
        (CHOICE, _set("choices", ["one"]), "choices: found a list of 1"),
        (CHOICE, lambda r: r.pop("choices"), "there is an answer but no choices"),
    ],
)
def test_what_does_not_fit_gives_one_sentence(name: str, change: Callable[[Fields], object], words: str) -> None:
    assert words in fault(changed(name, change))


def test_a_target_cannot_be_about_what_comes_later() -> None:
    turns = [
        {"role": "user", "content": "Where?"},
        {"role": "assistant", "content": [{"type": "target", "id": "t0"}]},
        {"role": "user", "content": [{"type": "image", "path": "a.png"}]},
    ]
    assert "comes in a later turn" in fault({"id": "a", "messages": turns, "targets": [{"id": "t0", "head": "region"}]})


def test_a_prompt_stands_before_the_target_it_serves() -> None:
    fields = changed(MASK, lambda r: r["messages"].append({"role": "user", "content": [r["messages"][0]["content"].pop(1)]}))
    assert "stands behind 't0'" in fault(fields)


def test_several_faults_are_counted() -> None:
    assert fault(changed(REGION, lambda r: r.update(id=5, task=3, split=[]))).endswith("(and 2 more faults)")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not JSON at character 1"),
        ("{", "not JSON at character 2"),
        ("[1]", "found a list of 1; expected one JSON object per line"),
        ("null", "found None; expected one JSON object per line"),
        ('{"id": "a"} {"id": "b"}', "not JSON at character 13"),
        ('{"id": "a", "id": "b"}', "the key 'id' stands twice in one object"),
        ('{"id": NaN}', "found NaN; expected finite numbers"),
        ('{"targets": [{"boxes": [[1, 2, -Infinity, 4]]}]}', "found -Infinity"),
        ('{"id": 1e400}', "the number 1e400 is too large"),
        ('{"id": ' + "9" * 5000 + "}", "of 5000 digits is too large"),
        ('{"id": -9223372036854775809}', "of 20 digits is too large"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 5_000 + "1" + "}" * 5_000, "nested too deeply"),
        (b'{"id": "\xff"}', "the line is not UTF-8 (byte 8)"),
        ('{"id": "a\nb"}', "not JSON at character 10"),
    ],
)
def test_text_that_is_no_record(text: str | bytes, words: str) -> None:
    assert words in fault(text)


@given(
    st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3), max_leaves=5),
    st.data(),
)
def test_any_value_at_any_place_is_read_or_gives_one_sentence(value: Any, data: st.DataObject) -> None:
    fields = copy.deepcopy(data.draw(st.sampled_from(EXAMPLES)))
    owner: Any = fields
    while True:
        keys = list(owner) if isinstance(owner, dict) else list(range(len(owner)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(owner[key], dict | list) or not owner[key] or data.draw(st.booleans()):
            break
        owner = owner[key]
    owner[key] = value
    try:
        Record.from_json(json.dumps(fields), where="d.jsonl:3")
    except DataError as error:
        sentence = str(error)
    else:
        return
    assert sentence.startswith("d.jsonl:3: ")
    assert "\n" not in sentence
