"""Expressions fit one thing alone, answers are true, held-out phrasings stay held out, and the tokenizer knows the words."""

from __future__ import annotations

import json
from importlib import resources

import numpy as np
import pytest

from tpo_heads.playground import phrases
from tpo_heads.playground.language import Ask, Speaker, template_of
from tpo_heads.playground.records import lesson
from tpo_heads.playground.render import render
from tpo_heads.playground.scenes import ACTIONS, COLOURS, SHAPES, SIZES, Kind, Scene, make_scene
from tpo_heads.playground.talk import OFFERED, TALKERS, TAUGHT
from tpo_heads.playground.tokenizer import train_tokenizer


def speakers(kind: Kind, count: int, level: int = 1, *, held_out: bool = False) -> list[Speaker]:
    scenes = [make_scene(seed=5, split="train", kind=kind, level=level, index=i) for i in range(count)]
    return [Speaker(scene, render(scene), scene.rng(2), held_out=held_out) for scene in scenes]


def fitting(scene: Scene, words: str) -> list[int]:
    """Things that an attribute expression fits, read off its words alone."""
    asked = set(words.split())
    known = set(COLOURS) | set(SHAPES) | set(SIZES) | {"object"}
    assert asked <= known, words
    return [i for i, t in enumerate(scene.things) if asked - {"object"} <= {t.colour, t.shape, t.size}]


@pytest.mark.parametrize("level", [1, 2, 3])
def test_attribute_expressions_fit_one_thing_alone(level: int) -> None:
    checked = 0
    for speaker in speakers("image", 40, level):
        for i in range(len(speaker.scene.things)):
            for name in speaker.names(i):
                assert fitting(speaker.scene, name) == [i]
                checked += 1
            for hidden in ("colour", "shape", "size"):
                name = speaker.name(i, without=hidden)
                assert name is None or getattr(speaker.scene.things[i], hidden) not in name.split()
    assert checked > 200


def test_relational_expressions_are_true_of_one_thing() -> None:
    checked = 0
    for speaker in speakers("image", 80, 2):
        centres = [t.centre_T2[0] for t in speaker.scene.things]
        for i in range(len(centres)):
            text = speaker.relation(i)
            if text is None:
                continue
            checked += 1
            axis = 0 if any(word in text for word in ("left", "right")) else 1
            low = any(word in text for word in ("left", "above", "top"))
            others = [c[axis] for j, c in enumerate(centres) if j != i]
            if text.endswith("object") and " the " not in text:
                assert centres[i][axis] == (min if low else max)([*others, centres[i][axis]])
            else:
                (anchor,) = fitting(speaker.scene, text.split(" the ")[1])
                assert (centres[i][axis] < centres[anchor][axis]) == low
                assert text.split()[0] == speaker.scene.things[i].shape
    assert checked > 60


def test_absent_names_are_absent() -> None:
    for speaker in speakers("image", 60):
        assert fitting(speaker.scene, speaker.absent_name()) == []


def test_temporal_questions_name_the_event_they_mean() -> None:
    for speaker in speakers("clip", 60):
        for number, event in enumerate(speaker.scene.events):
            ask = speaker.temporal(event=number)
            assert ask.span == (event.start, event.end)
            assert ask.thing == event.thing
            assert event.action in ask.question or phrases.THIRD_PERSON[event.action] in ask.question
        absent = speaker.temporal(absent=True)
        assert absent.span is None
        words = "".join(c if c.isalnum() else " " for c in absent.question).split()
        (action,) = [a for a in ACTIONS if a in words or phrases.THIRD_PERSON[a] in words]
        meant = fitting(speaker.scene, _expression(absent))
        assert not [e for e in speaker.scene.events if e.action == action and [e.thing] == meant]


def test_answers_in_words_are_true() -> None:
    asked: dict[str, int] = {}
    for kind in ("image", "clip", "track"):
        for speaker in speakers(kind, 60):
            for template in OFFERED[kind]:
                ask = speaker.chat(template)
                if ask is not None and template in CHECKS:
                    assert CHECKS[template](speaker.scene, ask), ask
                    asked[template] = asked.get(template, 0) + 1
    assert set(asked) == set(CHECKS)
    assert min(asked.values()) >= 20


def _count_by(scene: Scene, ask: Ask) -> bool:
    words = template_of(ask.question), ask.question.replace("?", "").replace(".", "").replace(",", "").split()
    singular = {**{f"{s}s": s for s in SHAPES}, "crosses": "cross"}
    wanted = next(w for w in words[1] if w in COLOURS or w in singular)
    return phrases.NUMBERS.index(ask.answer) == sum(singular.get(wanted, wanted) in (t.colour, t.shape) for t in scene.things)


def _expression(ask: Ask) -> str:
    words = ask.question.replace("?", "").replace(".", "").replace(",", "").split()
    known = [w for w in words if w in {*COLOURS, *SHAPES, *SIZES, "object"}]
    return " ".join(known)


CHECKS = {
    "count": lambda scene, ask: phrases.NUMBERS.index(ask.answer) == len(scene.things),
    "count_by": _count_by,
    "colour": lambda scene, ask: [scene.things[i].colour for i in fitting(scene, _expression(ask))] == [ask.answer],
    "shape": lambda scene, ask: [scene.things[i].shape for i in fitting(scene, _expression(ask))] == [ask.answer],
    "exists": lambda scene, ask: (ask.answer == "yes") == bool(fitting(scene, _expression(ask))),
    "does": lambda scene, ask: (
        [e.action for e in scene.events if [e.thing] == fitting(scene, _expression(ask))]
        == [next(a for a in ACTIONS if phrases.THIRD_PERSON[a] == ask.answer.removeprefix("it "))]
    ),
    "who": lambda scene, ask: len(fitting(scene, ask.answer)) == 1,
    "end": lambda scene, ask: ask.answer.split()[0] in phrases.ROWS,
}


def test_yes_and_no_are_even() -> None:
    answers = [ask.answer for s in speakers("image", 300) for name in ("exists", "relation") if (ask := s.chat(name))]
    assert 0.42 < np.mean([answer == "yes" for answer in answers]) < 0.58


def _words(way: str) -> str:
    return template_of(way.replace("{", " ").replace("}", " "))


def test_held_out_phrasings_are_never_trained_on() -> None:
    tables = (phrases.ASK, phrases.ASK_IN_LESSONS, phrases.TALK, phrases.TALK_IN_LESSONS)
    trained = {way for table in tables for ways in table.values() for way in ways}
    held = {way for table in (phrases.HELD_OUT, phrases.TALK_HELD_OUT) for ways in table.values() for way in ways}
    inside = [(seen, new) for seen in trained for new in held if f" {_words(new)} " in f" {_words(seen)} "]
    assert not inside, "neither as they are nor as part of another, whatever the punctuation"
    assert set(phrases.HELD_OUT) == set(phrases.ASK)
    assert set(phrases.TALK_HELD_OUT) <= set(phrases.TALK)
    known = {w for way in trained for w in _words(way).split()}
    unknown = {w for way in held for w in _words(way).split()} - known
    assert unknown <= {"it"}, "held-out phrasings use words that training knows"


def test_every_lesson_about_a_clip_asks_in_words_what_is_nearest_to_the_heads_question() -> None:
    for speaker in speakers("clip", 40):
        assert "whether" in {ask.template for ask in lesson(speaker, ("region", "temporal", "mask"))}


def test_tasks_share_their_verbs() -> None:
    first_words = {task: {way.split()[0] for way in ways} for task, ways in phrases.ASK.items()}
    for verb in ("find", "show", "locate", "point", "mark", "can", "please"):
        assert sum(verb in words for words in first_words.values()) >= 2, verb
    assert all("find" in words for words in first_words.values())


def test_every_kind_of_question_has_its_function() -> None:
    assert set(TALKERS) == set(phrases.TALK)
    assert {name for table in (OFFERED, TAUGHT) for names in table.values() for name in names} == set(TALKERS)
    assert not {name for names in OFFERED.values() for name in names} & {name for names in TAUGHT.values() for name in names}


def test_a_cell_is_where_the_centre_is() -> None:
    """a1 is top left, h1 top right, h8 bottom right; the answer is one token, and no record of the playground asks for it."""
    assert (phrases.CELLS[0], phrases.CELLS[7], phrases.CELLS[63]) == ("a1", "h1", "h8")
    tokenizer = train_tokenizer()
    assert all(len(tokenizer.tokenize(name)) == 1 for name in phrases.CELLS)
    for speaker in speakers("image", 20, 1, held_out=False):
        ask = speaker.chat("cell")
        assert ask is not None
        column, row = "abcdefgh".index((ask.answer or "")[0]), int((ask.answer or "")[1]) - 1
        centres = [thing.centre_T2[0] / 64 for thing in speaker.scene.things]
        assert any(int(8 * x) == column and int(8 * y) == row for x, y in centres)


def test_no_question_is_spelt() -> None:
    tokenizer = train_tokenizer()
    for kind in ("image", "clip", "track"):
        for level in (1, 3):
            for held_out in (False, True):
                for speaker in speakers(kind, 8, level, held_out=held_out):
                    asks = [speaker.region(), speaker.mask(), speaker.temporal(), speaker.caption()]
                    asks += [speaker.chat(name) for name in (*OFFERED[kind], *(TAUGHT[kind] if not held_out else ()))]
                    for ask in filter(None, asks):
                        pieces = tokenizer.tokenize(f"{ask.question} {ask.answer or ''}")
                        assert all(p.startswith("▁") or p in (".", ",", "?") for p in pieces), pieces


def test_template_of_hides_attributes_only() -> None:
    assert template_of("What colour is the large red ring?") == "what colour is the SIZE COLOUR SHAPE"
    assert template_of("count the crosses.") == template_of("count the rings.")


def test_choices_hold_the_answer() -> None:
    made = [ask for s in speakers("image", 60) if (ask := s.choice("colour"))]
    assert len(made) > 30
    for ask in made:
        assert ask.answer in ask.choices
        assert len(set(ask.choices)) == 3
        assert all(option in ask.question for option in ask.choices)
    places = [ask.choices.index(ask.answer) for ask in made]
    assert set(places) == {0, 1, 2}


def test_the_shipped_tokenizer_is_the_one_that_the_command_makes() -> None:
    """Its pieces are weighed by how often the tables of phrases have them: ways that are added later go into a table of their own."""
    shipped = resources.files("tpo_heads.playground") / "assets" / "base" / "tokenizer.json"
    made = json.loads(train_tokenizer().backend_tokenizer.to_str())
    assert made["model"]["vocab"] == json.loads(shipped.read_text("utf-8"))["model"]["vocab"]
