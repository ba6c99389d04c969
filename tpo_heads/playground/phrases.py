"""The words of the playground: how questions are put, for training and (other ways) for the test of task assignment.

Several tasks share their verbs, so that the task has to be read from the whole question: "find the red ring" asks for a box, "find the
moment the red ring jumps" for a span, "find the red ring in every frame" for masks, "find out what colour the ring is" for words.
``{e}`` is a referring expression, ``{does}`` a verb in the third person, ``{do}`` its plain form.
"""

from __future__ import annotations

ASK: dict[str, tuple[str, ...]] = {
    "region": (
        "find the {e}.",
        "where is the {e}?",
        "show me the {e}.",
        "point to the {e}.",
        "locate the {e}.",
        "please find the {e}.",
        "can you show me the {e}?",
        "show me where the {e} is.",
        "draw a box around the {e}.",
        "i want to see the {e}.",
        "mark the {e}.",
        "can you locate the {e}?",
    ),
    "temporal": (
        "find the moment the {e} {does}.",
        "when does the {e} {do}?",
        "show me when the {e} {does}.",
        "locate the moment when the {e} {does}.",
        "please find when the {e} {does}.",
        "at what time does the {e} {do}?",
        "mark the time when the {e} {does}.",
        "can you find the moment the {e} {does}?",
        "i want to see when the {e} {does}.",
        "point to the time the {e} {does}.",
    ),
    "mask": (
        "find the {e} in every frame.",
        "where is the {e} in every frame?",
        "show me the {e} all the time.",
        "follow the {e}.",
        "cut out the {e}.",
        "mark every pixel of the {e}.",
        "please outline the {e}.",
        "can you follow the {e} in every frame?",
        "i want to see the {e} cut out.",
        "locate every pixel of the {e}.",
        "outline the {e} in each frame.",
        "point to the {e} in each frame.",
    ),
}
"""Questions of the three heads, by task."""

ASK_IN_LESSONS: dict[str, tuple[str, ...]] = {
    "region": (
        "the {e}, can you show me where?",
        "the {e}, find it.",
        "the {e}, point to it.",
        "the {e}, show me where it is.",
        "can you point to the {e}?",
        "can you draw a box around the {e}?",
        "i want you to find the {e}.",
        "can you please find the {e}?",
        "can you find where the {e} is?",
    ),
    "temporal": (
        "the {e}, when does it {do}?",
        "the {e}, find the moment it {does}.",
        "the {e} {does}, show me when.",
        "when is the time the {e} {does}?",
        "when is it that the {e} {does}?",
        "where is the moment the {e} {does}?",
        "which is the moment the {e} {does}?",
        "what is the time the {e} {does}?",
        "when is the moment that the {e} {does}?",
        "the {e} {does}, at what time?",
        "can you show me when the {e} {does}?",
        "i want you to locate the time the {e} {does}.",
    ),
    "mask": (
        "the {e}, cut it out.",
        "the {e}, follow it.",
        "the {e}, mark every pixel of it.",
        "the {e}, can you outline it?",
        "the {e}, outline every pixel of it.",
        "outline every pixel of the {e}.",
        "can you outline the {e}?",
        "i want you to cut out the {e}.",
        "i want you to follow the {e}.",
        "can you follow the {e}?",
        "the {e}, can you follow it?",
    ),
}
"""Further ways that training records use; not among the sentences of which the base model's tokenizer is made."""

HELD_OUT: dict[str, tuple[str, ...]] = {
    "region": (
        "please show me the {e}.",
        "can you find the {e}?",
        "i want you to point to the {e}.",
        "please draw a box around the {e}.",
        "can you mark where the {e} is?",
        "the {e}, where is it?",
        "i want to find the {e}.",
    ),
    "temporal": (
        "please show me when the {e} {does}.",
        "when is the moment the {e} {does}?",
        "can you locate the time the {e} {does}?",
        "i want to find the moment when the {e} {does}.",
        "the {e} {does}, when?",
        "please point to the moment the {e} {does}.",
    ),
    "mask": (
        "please follow the {e} all the time.",
        "can you cut out the {e}?",
        "i want you to outline the {e}.",
        "please mark every pixel of the {e}.",
        "show me the {e} in every frame.",
        "can you point to every pixel of the {e}?",
        "the {e}, outline it.",
    ),
}
"""Ways that no training record uses (a test holds this)."""

TALK: dict[str, tuple[str, ...]] = {
    "count": ("how many objects are there?", "count the objects.", "how many things do you see?"),
    "count_by": ("how many {group} are there?", "count the {group}.", "find out how many {group} there are."),
    "colour": ("what colour is the {e}?", "find out what colour the {e} is.", "tell me the colour of the {e}."),
    "shape": ("what shape is the {e}?", "find out what shape the {e} is.", "tell me the shape of the {e}."),
    "size": ("is the {e} small or large?", "what size is the {e}?", "tell me the size of the {e}."),
    "exists": ("is there a {e}?", "do you see a {e}?", "can you see a {e}?"),
    "relation": ("is the {e} {relation} the {f}?", "tell me, is the {e} {relation} the {f}?"),
    "place": ("in which part is the {e}?", "say in words where the {e} is.", "tell me where the {e} is, in words."),
    "refer": ("find the {e}, in words.", "point to the {e} in words.", "describe the {e}.", "please locate the {e} in words."),
    "cell": ("in which cell is the {e}?", "say in which cell the {e} is.", "tell me the cell of the {e}."),
    "end": ("in which part is the {e} at the end?", "say in words where the {e} is at the end."),
    "inhabitant": ("what is at the {place}?", "what do you see at the {place}?", "tell me what is at the {place}."),
    "does": ("what does the {e} do?", "tell me what the {e} does.", "what happens to the {e}?"),
    "who": ("which object {does}?", "what is the object that {does}?", "tell me which object {does}."),
    "whether": ("does the {e} {do}?", "is there a moment when the {e} {does}?", "tell me, does the {e} {do}?"),
    "early": ("does the {e} {do} early or late?", "tell me, is it early or late that the {e} {does}?"),
    "moment": ("in words, when does the {e} {do}?", "find the time the {e} {does}, in words.", "say in words when the {e} {does}."),
    "first": ("which object moves first, the {e} or the {f}?", "what is first to change, the {e} or the {f}?"),
    "direction": ("which way does the {e} move?", "tell me which way the {e} goes."),
}
"""Questions that are answered in words."""

TALK_IN_LESSONS: dict[str, tuple[str, ...]] = {
    "count": ("can you count the objects?",),
    "colour": ("can you tell me the colour of the {e}?", "show me in words what colour the {e} is.", "the {e}, tell me the colour."),
    "shape": ("the {e}, what shape is it?", "the {e}, tell me the shape."),
    "size": (
        "the {e}, what size is it?",
        "the {e}, tell me the size.",
        "the {e}, how large is it?",
        "is the {e} large or small?",
        "tell me, is the {e} large or small?",
    ),
    "exists": ("do you see the {e}?", "the {e}, is it there?"),
    "relation": (
        "can you see the {e} {relation} the {f}?",
        "find out, is the {e} {relation} the {f}?",
        "do you see that the {e} is {relation} the {f}?",
        "the {e}, is it {relation} the {f}?",
    ),
    "place": ("can you tell me where the {e} is, in words?", "the {e}, in which part is it?"),
    "refer": (
        *("describe the {e}.",) * 2,
        "the {e}, describe it.",
        "can you describe the {e}?",
        "can you point to the {e}, in words?",
    ),
    "does": ("can you tell me what the {e} does?", "show me in words what the {e} does.", "the {e}, what does it do?"),
    "whether": (
        "can you see the {e} {do}?",
        "find out, does the {e} {do}?",
        "do you see that the {e} {does}?",
        "the {e}, does it {do}?",
    ),
}
"""Further ways that training records use, with the verbs of the heads' questions; the base model's course does not. What stands in `TALK`
as well differs from a head's question in its verb alone ("describe the ring.", "find the ring."): it is asked more often."""

TALK_HELD_OUT: dict[str, tuple[str, ...]] = {
    "count": ("tell me how many objects there are.",),
    "count_by": ("tell me how many {group} you see.",),
    "colour": ("the {e}, what colour is it?", "say what colour the {e} is."),
    "shape": ("say what shape the {e} is.",),
    "size": ("the {e}, is it small or large?",),
    "exists": ("tell me, is there a {e}?", "please find out, is there a {e}?"),
    "relation": ("do you see the {e} {relation} the {f}?",),
    "place": ("in words, where is the {e}?", "find out in which part the {e} is."),
    "refer": ("please describe the {e}.", "can you find the {e} in words?"),
    "moment": ("please say in words when the {e} {does}.",),
    "does": ("find out what the {e} does.", "say what happens to the {e}."),
    "who": ("find out which object {does}.", "show me in words which object {does}."),
    "whether": ("do you see the {e} {do}?",),
    "early": ("tell me in words, does the {e} {do} early or late?",),
}

DESCRIBE: dict[str, tuple[str, ...]] = {
    "image": ("describe the picture.", "what do you see?", "tell me what is in the picture."),
    "clip": ("describe the clip.", "what happens?", "tell me what happens in the clip."),
    "track": ("describe the clip.", "what moves?", "tell me what is in the clip."),
}

MOVING = ("frame", "follow", "all the time")
"""Words of a mask question that make no sense of a picture."""
THIRD_PERSON = {"jump": "jumps", "flash": "flashes", "grow": "grows", "vanish": "vanishes", "appear": "appears"}
NUMBERS = ("zero", "one", "two", "three", "four")
NOT_THERE = "it is not there."
ROWS = ("top", "upper", "middle", "lower", "bottom")
COLUMNS = ("far left", "left", "centre", "right", "far right")
CELLS = tuple(f"{column}{row}" for row in range(1, 9) for column in "abcdefgh")
"""Names of the cells of an 8 by 8 grid over the picture, row by row: a1 is top left, h1 top right."""
TIMES = ("first", "early", "middle", "late", "last")
RELATIONS = ("left of", "right of", "above", "below")
DIRECTIONS = ("left", "right", "up", "down")
OPTIONS = "{question} choose from {options}."
