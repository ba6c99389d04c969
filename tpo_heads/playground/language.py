"""Questions and answers about a scene: referring expressions, events, conversation, captions.

Everything here reads the scene's truth and draws from a generator; nothing knows of heads' tensors or of files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tpo_heads.playground.phrases import (
    ASK,
    ASK_IN_LESSONS,
    CELLS,
    COLUMNS,
    DESCRIBE,
    DIRECTIONS,
    HELD_OUT,
    MOVING,
    NOT_THERE,
    NUMBERS,
    OPTIONS,
    RELATIONS,
    ROWS,
    TALK,
    TALK_HELD_OUT,
    TALK_IN_LESSONS,
    THIRD_PERSON,
    TIMES,
)
from tpo_heads.playground.render import Picture
from tpo_heads.playground.scenes import ACTIONS, COLOURS, LEVELS, SHAPES, SIZES, Scene, pick
from tpo_heads.playground.talk import TALKERS


@dataclass(frozen=True)
class Ask:
    """One question about a scene.

    Attributes:
        task: ``region``, ``temporal``, ``mask`` (a head answers), ``qa`` or ``caption`` (words answer).
        template: name of the kind of question, for the blind row.
        answer: the words, or None where a head answers.
        thing: index of the object that is meant, None where it is not there or several are meant.
        span: [start, end) in frames of the event that is meant, None where there is none. other: the span of the scene's other event.
        choices: options of a multiple-choice question, the answer among them.
    """

    task: str
    template: str
    question: str
    answer: str | None = None
    thing: int | None = None
    span: tuple[int, int] | None = None
    other: tuple[int, int] | None = None
    choices: tuple[str, ...] = ()


class Speaker:
    """Draws questions about one scene.

    Args:
        scene, picture: the truth and what is visible of it.
        rng: where the draws come from.
        held_out: use the phrasings that training never uses.
    """

    def __init__(self, scene: Scene, picture: Picture, rng: np.random.Generator, *, held_out: bool = False) -> None:
        self.scene = scene
        self.picture = picture
        self.rng = rng
        self.world = LEVELS[scene.level]
        ask, talk = ASK, TALK
        if scene.split == "train":
            # Twice: what clips are tested on must not drown among its neighbours ("does the ring jump?", "when does the ring jump?").
            twice = {"temporal": 2}
            ask = {task: (*ways * twice.get(task, 1), *ASK_IN_LESSONS[task]) for task, ways in ask.items()}
            talk = {name: (*ways, *ways, *TALK_IN_LESSONS.get(name, ())) for name, ways in talk.items()}
        self.ask: Mapping[str, Sequence[str]] = HELD_OUT if held_out else ask
        self.talk: Mapping[str, Sequence[str]] = TALK_HELD_OUT if held_out else talk
        self.colours = tuple(COLOURS)[: self.world.colours]
        self.shapes = SHAPES[: self.world.shapes]

    # Referring expressions

    def names(self, index: int) -> list[str]:
        """Return the attribute expressions that fit this thing alone, the shortest first."""
        thing, others = self.scene.things[index], [t for i, t in enumerate(self.scene.things) if i != index]
        fitting = []
        for use_size, use_colour, use_shape in ((0, 0, 1), (0, 1, 0), (0, 1, 1), (1, 0, 1), (1, 1, 0), (1, 1, 1)):
            same = [
                other
                for other in others
                if (not use_size or other.size == thing.size)
                and (not use_colour or other.colour == thing.colour)
                and (not use_shape or other.shape == thing.shape)
            ]
            if not same:
                words = [thing.size] * use_size + [thing.colour] * use_colour + [thing.shape if use_shape else "object"]
                fitting.append(" ".join(words))
        return fitting

    def name(self, index: int, *, without: str = "") -> str | None:
        """Draw an attribute expression, by preference with colour and shape; `without` = ``colour``, ``shape`` or ``size`` is left out."""
        thing = self.scene.things[index]
        hidden = {"colour": thing.colour, "shape": thing.shape, "size": thing.size, "": ""}[without]
        options = [text for text in self.names(index) if hidden not in text.split()]
        if not options:
            return None
        plain = f"{thing.colour} {thing.shape}"
        if plain in options and self.rng.random() < 0.5:
            return plain
        return pick(self.rng, options)

    def relation(self, index: int) -> str | None:
        """Draw a relational or superlative expression that fits this thing alone, or None."""
        x, y = (self.scene.things[index].centre_T2[0] / min(self.scene.size)).tolist()
        others = {i: t.centre_T2[0] / min(self.scene.size) for i, t in enumerate(self.scene.things) if i != index}
        gaps = {
            "leftmost": min(c[0] - x for c in others.values()),
            "rightmost": min(x - c[0] for c in others.values()),
            "top": min(c[1] - y for c in others.values()),
            "bottom": min(y - c[1] for c in others.values()),
        }
        fitting = [f"{word} object" for word, gap in gaps.items() if gap > 0.12]
        shape = self.scene.things[index].shape
        rivals = [i for i in others if self.scene.things[i].shape == shape]
        for anchor in others:
            if anchor in rivals:
                continue
            for relation in RELATIONS:
                clear = self.holds(relation, index, anchor) and not any(self.holds(relation, i, anchor, margin=0.0) for i in rivals)
                if clear and (names := self.names(anchor)):
                    fitting.append(f"{shape} {relation} the {names[min(2, len(names) - 1)]}")
        return pick(self.rng, fitting) if fitting else None

    def holds(self, relation: str, a: int, b: int, *, margin: float = 0.1) -> bool:
        """Return whether thing a is ``relation`` thing b in the first frame, by a clear margin (a share of the shorter side)."""
        delta = (self.scene.things[a].centre_T2[0] - self.scene.things[b].centre_T2[0]) / min(self.scene.size)
        value = {"left of": -delta[0], "right of": delta[0], "above": -delta[1], "below": delta[1]}[relation]
        return bool(value > margin)

    def motion(self, index: int) -> str | None:
        """Draw a motion expression ("object moving left") that fits this thing alone, or None."""
        direction = self.direction(index)
        if direction is None or sum(self.direction(i) == direction for i in range(len(self.scene.things))) > 1:
            return None
        return f"object moving {direction}"

    def direction(self, index: int) -> str | None:
        """Return the word for the way a thing moves, None where it is not clear."""
        track = self.scene.things[index].centre_T2
        delta = (track[-1] - track[0]) / min(self.scene.size)
        if max(abs(delta)) < 0.06 or min(abs(delta)) > 0.6 * max(abs(delta)):
            return None
        axis = int(abs(delta[1]) > abs(delta[0]))
        return DIRECTIONS[2 * axis + int(delta[axis] > 0)]

    def refer(self, index: int) -> str:
        """Draw an expression of any kind for a thing; every thing has at least its full name."""
        relational = self.scene.kind != "clip" and self.rng.random() < self.world.relational
        if relational and self.scene.kind == "track" and self.world.motion_words and (text := self.motion(index)):
            return text
        if relational and (text := self.relation(index)):
            return text
        return self.name(index) or f"{self.scene.things[index].colour} {self.scene.things[index].shape}"

    def absent_name(self) -> str:
        """Draw a colour and shape that no thing of the scene has together; often one half of it is there."""
        taken = {(t.colour, t.shape) for t in self.scene.things}
        while True:
            colour, shape = pick(self.rng, self.colours), pick(self.rng, self.shapes)
            if self.rng.random() < 0.7:
                thing = pick(self.rng, self.scene.things)
                colour, shape = (thing.colour, shape) if self.rng.random() < 0.5 else (colour, thing.shape)
            if (colour, shape) not in taken:
                return f"{colour} {shape}"

    def seen(self, *, share: float = 0.4) -> list[int]:
        """Return the things of which at least this share (of their own area in the first frame) is visible in the first frame."""
        areas = {"ring": 2.53, "square": 3.1, "cross": 2.15, "triangle": 1.44}
        return [
            i
            for i, t in enumerate(self.scene.things)
            if self.picture.mask(i, 0).sum() >= share * areas[t.shape] * t.radius_T[0] ** 2 and t.shown_T[0]
        ]

    # Questions for the heads

    def region(self, *, absent: bool = False, thing: int | None = None) -> Ask | None:
        """Draw a question for a box; with `absent` it is answered in words that the thing is not there."""
        question = pick(self.rng, self.ask["region"])
        if absent:
            return Ask("region", "absent", question.format(e=self.absent_name()), NOT_THERE)
        seen = self.seen()
        if not seen:
            return None
        index = thing if thing is not None else pick(self.rng, seen)
        return Ask("region", "region", question.format(e=self.refer(index)), thing=index)

    def mask(self, *, absent: bool = False, thing: int | None = None) -> Ask | None:
        """Draw a question for masks; with `absent` all its masks are empty."""
        ways = [q for q in self.ask["mask"] if self.scene.kind != "image" or not any(word in q for word in MOVING)]
        question = pick(self.rng, ways)
        if absent:
            return Ask("mask", "absent", question.format(e=self.absent_name()))
        seen = self.seen()
        if not seen:
            return None
        index = thing if thing is not None else pick(self.rng, seen)
        return Ask("mask", "mask", question.format(e=self.refer(index)), thing=index)

    def temporal(self, *, absent: bool = False, event: int | None = None) -> Ask | None:
        """Draw a question for a span; with `absent` the thing never does it, or is not there, and there is no span."""
        question = pick(self.rng, self.ask["temporal"])
        if absent or not self.scene.events:
            name, action = self._nothing_done()
            return Ask("temporal", "absent", question.format(e=name, do=action, does=THIRD_PERSON[action]))
        index = event if event is not None else int(self.rng.integers(len(self.scene.events)))
        e = self.scene.events[index]
        other = self.scene.events[1 - index]
        text = question.format(e=self.refer(e.thing), do=e.action, does=THIRD_PERSON[e.action])
        return Ask("temporal", "temporal", text, thing=e.thing, span=(e.start, e.end), other=(other.start, other.end))

    def _nothing_done(self) -> tuple[str, str]:
        """Draw an expression and an action that do not go together in this scene."""
        done = {(e.thing, e.action) for e in self.scene.events}
        while True:
            action = pick(self.rng, ACTIONS)
            index = int(self.rng.integers(len(self.scene.things)))
            if self.rng.random() < 0.3:
                return self.absent_name(), action
            if (index, action) not in done:
                return self.refer(index), action

    # Conversation

    def chat(self, template: str) -> Ask | None:
        """Return a question of this kind that is answered in words, or None where the scene does not offer one."""
        if template not in self.talk:
            return None
        question = pick(self.rng, self.talk[template])
        values = TALKERS[template](self)
        if values is None:
            return None
        answer, words = values
        return Ask("qa", template, question.format(**words), answer)

    def choice(self, template: str) -> Ask | None:
        """Return a multiple-choice question: the options stand in the question, the answer is one of them."""
        ask = self.chat(template)
        pool = self._pool(template)
        if ask is None or ask.answer not in pool:
            return None
        wrong = [option for option in pool if option != ask.answer]
        options = [ask.answer] + [wrong[i] for i in self.rng.permutation(len(wrong))[:2]]
        options = [options[i] for i in self.rng.permutation(len(options))]
        listed = ", ".join(options[:-1]) + " or " + options[-1]
        text = OPTIONS.format(question=ask.question, options=listed)
        return Ask("choice", template, text, ask.answer, choices=tuple(options))

    def _pool(self, template: str) -> tuple[str, ...]:
        if template == "colour":
            return self.colours
        if template == "shape":
            return self.shapes
        if template == "does":
            return tuple(f"it {THIRD_PERSON[a]}" for a in ACTIONS)
        return NUMBERS[1:] if template == "count" else ()

    def caption(self) -> Ask:
        """Return a request for a description and its dense answer, things in random order."""
        kind = self.scene.kind
        question = pick(self.rng, DESCRIBE[kind])
        parts = []
        for i in self.rng.permutation(len(self.scene.things)):
            thing = self.scene.things[i]
            text = f"{thing.size} {thing.colour} {thing.shape} {self.place(int(i))}"
            if kind == "clip":
                event = next((e for e in self.scene.events if e.thing == i), None)
                text += f" {THIRD_PERSON[event.action]} {self.moment(event.start, event.end)}" if event else " stays"
            elif kind == "track":
                direction = self.direction(int(i))
                text += f" moving {direction}" if direction else " moving"
            parts.append(text)
        return Ask("caption", f"caption_{kind}", question, ", ".join(parts) + ".")

    def place(self, index: int, *, frame: int = 0) -> str:
        """Say in words where a thing is in a frame: five rows by five columns."""
        x, y = self.scene.things[index].centre_T2[frame] / np.array(self.scene.size)
        row, column = (min(4, max(0, int((v - 0.1) / 0.16))) for v in (y, x))
        return f"{ROWS[row]} {COLUMNS[column]}"

    def cell(self, index: int) -> str:
        """Return the name of the cell of an 8 by 8 grid that a thing's centre is in, in the first frame."""
        column, row = (min(7, max(0, int(8 * v))) for v in self.scene.things[index].centre_T2[0] / np.array(self.scene.size))
        return CELLS[8 * row + column]

    def early(self, start: int, end: int) -> str:
        """Say whether the middle of a span lies in the first or in the second half of the clip."""
        return "early" if (start + end) / 2 < self.scene.frames / 2 else "late"

    def moment(self, start: int, end: int) -> str:
        """Say in one of five words where in the clip the middle of a span lies."""
        return TIMES[min(4, int(5 * (start + end) / 2 / self.scene.frames))]


def template_of(question: str) -> str:
    """Return the question with every attribute replaced by its kind: what a blind reader may key on."""
    kinds = {**dict.fromkeys(COLOURS, "COLOUR"), **dict.fromkeys(SHAPES, "SHAPE"), **dict.fromkeys(SIZES, "SIZE")}
    kinds |= {f"{shape}s": "SHAPES" for shape in SHAPES} | {"crosses": "SHAPES"}
    words = "".join(c if c.isalnum() else " " for c in question.lower()).split()
    return " ".join(kinds.get(word, word) for word in words)
