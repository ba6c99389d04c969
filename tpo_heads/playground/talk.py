"""The answers in words: one small function for each kind of question, from a speaker to (answer, words of the question).

A function returns None where the scene does not offer such a question. Yes and no are drawn equally often.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tpo_heads.playground.phrases import NOT_THERE, NUMBERS, RELATIONS, THIRD_PERSON
from tpo_heads.playground.scenes import ACTIONS, pick

if TYPE_CHECKING:
    from tpo_heads.playground.language import Speaker

Talk = tuple[str, dict[str, str]] | None


def count(speaker: Speaker) -> Talk:
    """How many things there are in all."""
    return NUMBERS[len(speaker.scene.things)], {}


def count_by(speaker: Speaker) -> Talk:
    """How many things of a colour or of a shape there are."""
    if speaker.rng.random() < 0.5:
        colour = pick(speaker.rng, speaker.colours)
        return NUMBERS[sum(t.colour == colour for t in speaker.scene.things)], {"group": f"{colour} objects"}
    shape = pick(speaker.rng, speaker.shapes)
    plural = "crosses" if shape == "cross" else f"{shape}s"
    return NUMBERS[sum(t.shape == shape for t in speaker.scene.things)], {"group": plural}


def _attribute(speaker: Speaker, what: str) -> Talk:
    index = int(speaker.rng.integers(len(speaker.scene.things)))
    name = speaker.name(index, without=what)
    return None if name is None else (getattr(speaker.scene.things[index], what), {"e": name})


def colour(speaker: Speaker) -> Talk:
    """The colour of a thing that is named without it."""
    return _attribute(speaker, "colour")


def shape(speaker: Speaker) -> Talk:
    """The shape of a thing that is named without it."""
    return _attribute(speaker, "shape")


def size(speaker: Speaker) -> Talk:
    """The size of a thing that is named without it."""
    return _attribute(speaker, "size")


def exists(speaker: Speaker) -> Talk:
    """Whether a thing of this colour and shape is there."""
    if speaker.rng.random() < 0.5:
        return "no", {"e": speaker.absent_name()}
    thing = pick(speaker.rng, speaker.scene.things)
    return "yes", {"e": f"{thing.colour} {thing.shape}"}


def relation(speaker: Speaker) -> Talk:
    """Whether one thing is left of, right of, above or below another, where that is clear."""
    order = [int(i) for i in speaker.rng.permutation(len(speaker.scene.things))[:2]]
    word = pick(speaker.rng, RELATIONS)
    yes, no = speaker.holds(word, *order), speaker.holds(word, order[1], order[0])
    first, second = speaker.name(order[0]), speaker.name(order[1])
    if not (yes or no) or first is None or second is None:
        return None
    return "yes" if yes else "no", {"e": first, "relation": word, "f": second}


def place(speaker: Speaker) -> Talk:
    """Where a thing is, in words."""
    index = int(speaker.rng.integers(len(speaker.scene.things)))
    name = speaker.name(index)
    return None if name is None else (speaker.place(index), {"e": name})


def refer(speaker: Speaker) -> Talk:
    """Which thing is meant, and where it is, in words; the only question in words that may be relational, or about what is not there."""
    if speaker.rng.random() < 0.15:
        return NOT_THERE, {"e": speaker.absent_name()}
    seen = speaker.seen()
    if not seen:
        return None
    index = pick(speaker.rng, seen)
    thing = speaker.scene.things[index]
    return f"{thing.size} {thing.colour} {thing.shape} {speaker.place(index)}", {"e": speaker.refer(index)}


def cell(speaker: Speaker) -> Talk:
    """In which cell of an 8 by 8 grid the centre of a thing is: where it is, in one word."""
    seen = speaker.seen()
    if not seen:
        return None
    index = pick(speaker.rng, seen)
    return speaker.cell(index), {"e": speaker.refer(index)}


def end(speaker: Speaker) -> Talk:
    """Where a thing is in the last frame, in words."""
    index = int(speaker.rng.integers(len(speaker.scene.things)))
    name = speaker.name(index)
    return None if name is None else (speaker.place(index, frame=speaker.scene.frames - 1), {"e": name})


def inhabitant(speaker: Speaker) -> Talk:
    """What is at a place that only one thing has."""
    places = [speaker.place(i) for i in range(len(speaker.scene.things))]
    index = int(speaker.rng.integers(len(places)))
    thing = speaker.scene.things[index]
    return None if places.count(places[index]) > 1 else (f"{thing.size} {thing.colour} {thing.shape}", {"place": places[index]})


def does(speaker: Speaker) -> Talk:
    """What a thing does that has an event."""
    if not speaker.scene.events:
        return None
    event = pick(speaker.rng, speaker.scene.events)
    name = speaker.name(event.thing)
    return None if name is None else (f"it {THIRD_PERSON[event.action]}", {"e": name})


def who(speaker: Speaker) -> Talk:
    """Which thing does something that only one thing does."""
    actions = [event.action for event in speaker.scene.events]
    if not actions:
        return None
    event = pick(speaker.rng, speaker.scene.events)
    thing = speaker.scene.things[event.thing]
    return None if actions.count(event.action) > 1 else (f"{thing.colour} {thing.shape}", {"does": THIRD_PERSON[event.action]})


def whether(speaker: Speaker) -> Talk:
    """Whether a thing that has an event does this."""
    if not speaker.scene.events:
        return None
    event = pick(speaker.rng, speaker.scene.events)
    yes = speaker.rng.random() < 0.5
    action = event.action if yes else pick(speaker.rng, [a for a in ACTIONS if a != event.action])
    name = speaker.name(event.thing)
    return None if name is None else ("yes" if yes else "no", {"e": name, "do": action, "does": THIRD_PERSON[action]})


def early(speaker: Speaker) -> Talk:
    """Whether an event lies in the first or in the second half."""
    if not speaker.scene.events:
        return None
    event = pick(speaker.rng, speaker.scene.events)
    name = speaker.name(event.thing)
    words = {"do": event.action, "does": THIRD_PERSON[event.action]}
    return None if name is None else (speaker.early(event.start, event.end), {"e": name, **words})


def moment(speaker: Speaker) -> Talk:
    """When in the clip an event lies, in one of five words."""
    if not speaker.scene.events:
        return None
    event = pick(speaker.rng, speaker.scene.events)
    name = speaker.name(event.thing)
    words = {"do": event.action, "does": THIRD_PERSON[event.action]}
    return None if name is None else (speaker.moment(event.start, event.end), {"e": name, **words})


def first(speaker: Speaker) -> Talk:
    """Which of the two events' things is first to change."""
    if len(speaker.scene.events) != 2 or speaker.scene.events[0].start == speaker.scene.events[1].start:
        return None
    order = [speaker.scene.events[int(i)] for i in speaker.rng.permutation(2)]
    names = [f"{speaker.scene.things[e.thing].colour} {speaker.scene.things[e.thing].shape}" for e in order]
    return names[int(order[1].start < order[0].start)], {"e": names[0], "f": names[1]}


def direction(speaker: Speaker) -> Talk:
    """Which way a thing moves, where that is clear."""
    if speaker.scene.kind != "track":
        return None
    index = int(speaker.rng.integers(len(speaker.scene.things)))
    word, name = speaker.direction(index), speaker.name(index)
    return None if word is None or name is None else (word, {"e": name})


TALKERS: dict[str, Callable[[Speaker], Talk]] = {
    f.__name__: f
    for f in (
        *(count, count_by, colour, shape, size, exists, relation, place, refer, cell, end, inhabitant),
        *(does, who, whether, early, moment, first, direction),
    )
}
OFFERED: dict[str, tuple[str, ...]] = {
    "image": ("count", "count_by", "colour", "shape", "size", "exists", "relation", "place", "refer", "inhabitant"),
    "clip": ("does", "does", "who", "who", "whether", "early", "moment", "first", "count", "colour", "exists"),
    "track": ("direction", "colour", "shape", "count", "exists", "place", "end"),
}
"""Which kinds of question a kind of scene offers; one that stands twice is drawn twice as often."""
TAUGHT: dict[str, tuple[str, ...]] = {"image": ("cell", "cell", "cell"), "clip": (), "track": ("cell", "cell")}
"""Which more the base model is taught on them: where things are, in one word (published models are taught grounding in words too)."""
CHOSEN: dict[str, tuple[str, ...]] = {"image": ("colour", "shape"), "clip": ("does", "colour"), "track": ("colour", "shape")}
"""Which of them are put as multiple choice too."""
