"""What a row of an ablation learns from: turns of other heads go, answers are written as text, test questions are those it can answer."""

from __future__ import annotations

import pytest
from toy_data import image, record, target, text, video

from tpo_core.jobs.ablate_records import Keep, has_text, keeps_test, reshape
from tpo_core.plugins import load_plugins
from tpo_core.types import BackboneView

VIEW = BackboneView("toy", 4, 1, 8, 8)


@pytest.fixture(scope="module")
def codecs():
    plugins = load_plugins()
    found = {}
    for name in ("region", "temporal", "mask"):
        head = plugins.load_head(name)
        found[name] = head.codec(head.config(), VIEW)
    return found


def box(id, boxes=((8, 12, 40, 24),), media=0):
    return {"id": id, "head": "region", "media": media, "size": [80, 48], "boxes": [list(b) for b in boxes]}


def span(id, media=1):
    return {"id": id, "head": "temporal", "media": media, "duration": 3.0, "spans": [[0.5, 1.5]]}


def lesson():
    """A picture with a box turn, then a clip with a moment and a chat turn, then a turn that needs both heads."""
    turns = [
        ([image(), text("where?")], [text("Here: "), target("t0"), text(".")]),
        ([video(), text("when?")], [target("t1")]),
        ([text("how many?")], [text("two")]),
        ([text("both?")], [target("t2"), target("t3")]),
    ]
    messages = [m for asked, answer in turns for m in ({"role": "user", "content": asked}, {"role": "assistant", "content": answer})]
    from tpo_core.data import Record

    targets = [box("t0"), span("t1"), box("t2", boxes=()), span("t3")]
    return Record.model_validate({"id": "lesson", "messages": messages, "targets": targets})


def shown(record):
    """Turns as text: pictures and clips in brackets, targets by id."""
    parts = {"image": "[image]", "video": "[video]"}
    return [" ".join(parts.get(p.type) or p.text or f"<{p.id}>" for p in m.content) for m in record.messages]


def test_turns_of_other_heads_go_and_leave_their_media(codecs):
    kept = reshape(lesson(), Keep(frozenset({"temporal"}), conversation=False), codecs)
    assert shown(kept) == ["[image] [video] when?", "<t1>"]
    assert [(t.id, t.media) for t in kept.targets] == [("t1", 1)]
    kept = reshape(lesson(), Keep(frozenset({"region"})), codecs)
    assert shown(kept) == ["[image] where?", "Here:  <t0> .", "[video] how many?", "two"]
    assert shown(reshape(lesson(), Keep(frozenset()), codecs)) == ["[image] [video] how many?", "two"]
    assert reshape(lesson(), Keep(frozenset({"mask"}), conversation=False), codecs) is None
    whole = reshape(lesson(), Keep(frozenset({"region", "temporal"})), codecs)
    assert shown(whole) == shown(lesson())
    assert whole.targets == lesson().targets


def test_answers_are_written_as_text(codecs):
    kept = reshape(lesson(), Keep(frozenset({"temporal"}), frozenset({"region"})), codecs)
    assert shown(kept)[1] == "Here:  box 10 25 50 50 ."
    assert shown(kept)[-1] == "It is not there. <t3>"
    assert [t.id for t in kept.targets] == ["t1", "t3"]
    everything = reshape(lesson(), Keep(frozenset(), frozenset({"region", "temporal"}), conversation=False), codecs)
    assert shown(everything)[3] == "from 0.5 to 1.5 seconds"
    assert everything.targets == ()


def test_what_was_reshaped_is_still_a_record(codecs):
    from tpo_core.data import Record

    for keep in (Keep(frozenset({"region"})), Keep(frozenset(), frozenset({"region", "temporal"})), Keep(frozenset({"temporal"}))):
        kept = reshape(lesson(), keep, codecs)
        assert Record.from_json(kept.to_json(), where="x") == kept


def test_a_question_with_a_spatial_prompt_has_no_form_in_text(codecs):
    prompt = {"id": "p0", "role": "prompt", "kind": "box", "for": "t0", "media": 0, "size": [80, 48], "boxes": [[1, 1, 20, 20]]}
    asked = record([image(), target("p0"), text("this one")], [target("t0")], [prompt, box("t0")])
    assert reshape(asked, Keep(frozenset(), frozenset({"region"})), codecs) is None
    assert reshape(asked, Keep(frozenset({"region"})), codecs).targets == asked.targets


def test_test_records_are_asked_where_the_row_can_answer():
    ask_box = record([image(), text("where?")], [target("t0")], [box("t0")])
    chat = record([image(), text("what?")], "a cat")
    assert keeps_test(ask_box, Keep(frozenset({"region"})))
    assert keeps_test(ask_box, Keep(frozenset(), frozenset({"region"})))
    assert not keeps_test(ask_box, Keep(frozenset({"temporal"})))
    assert keeps_test(chat, Keep(frozenset({"region"}), conversation=False))


def test_codecs_say_whether_they_can_write(codecs):
    assert has_text(codecs["region"])
    assert has_text(codecs["temporal"])
    assert not has_text(codecs["mask"])
