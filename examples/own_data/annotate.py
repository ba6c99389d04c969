"""The hand annotations of this example, and how they become ``records.jsonl``.

    python examples/own_data/annotate.py

Boxes and polygons were drawn by looking at the pictures, in pixels of the original; times are in seconds of the clip, read off the
frames. A polygon becomes a run-length mask here, which is all that pycocotools is needed for: write your own records as you like.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pycocotools import mask as coco

HERE = Path(__file__).resolve().parent

OUTLINES: dict[str, dict[str, list[list[float]]]] = json.loads((HERE / "outlines.json").read_text(encoding="utf-8"))
"""Thing -> frame of its medium -> polygons (x, y, x, y, ...) in pixels. A frame without a polygon: the thing is not in it."""

SIZES: dict[str, tuple[int, int]] = {
    "astronaut.png": (512, 512),
    "camera.png": (512, 512),
    "chelsea.png": (451, 300),
    "coffee.png": (600, 400),
    "coins.png": (384, 303),
    "motorcycle.png": (741, 500),
    "rocket.jpg": (640, 427),
    "china.jpg": (640, 427),
    "flower.jpg": (640, 427),
    "bikes.mp4": (640, 272),
    "carphone.mp4": (176, 144),
    "bigbuckbunny.mp4": (1280, 720),
}

DURATIONS = {"bikes.mp4": 10.0, "carphone.mp4": 4.004, "bigbuckbunny.mp4": 5.28}

Box = list[float]

BOXES: dict[str, list[tuple[str, list[Box]]]] = {
    "astronaut.png": [
        ("Where is the woman's head?", [[153, 15, 302, 184]]),
        ("Where is the round patch on her chest?", [[132, 347, 208, 424]]),
        ("Find the model of the space shuttle.", [[354, 0, 473, 291]]),
        ("Where is the helmet?", [[277, 343, 512, 512]]),
        ("Where is the name tag?", [[278, 339, 330, 378]]),
        ("Find the flag.", [[0, 0, 99, 512]]),
    ],
    "camera.png": [
        ("Where is the man?", [[0, 62, 332, 512]]),
        ("Find the video camera.", [[253, 138, 326, 187]]),
        ("Where is the tripod?", [[230, 186, 405, 512]]),
    ],
    "chelsea.png": [
        ("Where are the cat's eyes?", [[135, 85, 207, 147], [295, 110, 344, 164]]),
        ("Find the nose of the cat.", [[231, 225, 291, 266]]),
        ("Where is the dog?", []),
    ],
    "coffee.png": [
        ("Where is the cup?", [[173, 18, 408, 308]]),
        ("Find the spoon.", [[326, 67, 425, 326]]),
        ("Where is the saucer?", [[76, 69, 480, 390]]),
        ("Find the coffee in the cup.", [[203, 95, 370, 193]]),
    ],
    "coins.png": [
        (
            "Find the coins of the top row, from left to right.",
            [[22, 34, 67, 74], [81, 38, 120, 74], [132, 28, 179, 74], [191, 29, 240, 73], [255, 33, 297, 72], [305, 15, 364, 72]],
        ),
        ("Where is the coin on the right of the third row?", [[315, 156, 379, 218]]),
    ],
    "motorcycle.png": [
        ("Where is the motorcycle?", [[91, 17, 684, 451]]),
        ("Find the front wheel.", [[512, 297, 684, 451]]),
        ("Find the rear wheel.", [[121, 236, 281, 402]]),
        ("Where is the headlight?", [[507, 124, 561, 189]]),
        ("Where is the wooden bench?", [[41, 105, 282, 309]]),
        ("Find the red tub on the shelf.", [[522, 181, 617, 251]]),
        ("Find the yellow bottle.", [[400, 51, 419, 92]]),
        ("Where is the child?", []),
    ],
    "rocket.jpg": [
        ("Where is the rocket?", [[309, 126, 336, 406]]),
        ("Find the thin tower on the right of the rocket.", [[439, 122, 479, 427]]),
    ],
    "china.jpg": [
        ("Where is the temple?", [[62, 29, 373, 427]]),
        ("Find the knob on top of the roof.", [[195, 29, 217, 64]]),
        ("Where is the tall tree on the right?", [[546, 135, 640, 427]]),
        ("Find the island in the lake.", [[423, 227, 500, 243]]),
    ],
    "flower.jpg": [
        ("Where is the whole flower?", [[169, 85, 446, 361]]),
        ("Find the flower that is cut off by the edge.", [[288, 374, 471, 427]]),
        ("Where is the green bud?", [[580, 393, 621, 427]]),
    ],
}

MOMENTS: dict[str, list[tuple[str, list[list[float]]]]] = {
    "bikes.mp4": [
        ("When do we look down on a white roof?", [[0.0, 1.2]]),
        ("When can the man in a suit be seen?", [[1.2, 1.96]]),
        ("When is the taxi sign in view?", [[2.24, 3.04]]),
        ("When can the cyclist with the helmet be seen?", [[3.04, 3.32], [4.12, 5.48]]),
        ("When do cars drive past the green fence?", [[5.48, 7.48]]),
        ("When does somebody walk past the parked bicycle?", [[7.48, 8.6]]),
    ],
    "carphone.mp4": [("When is the man's mouth wide open?", [[1.86, 2.1], [3.47, 3.9]])],
    "bigbuckbunny.mp4": [
        ("When does the rabbit come out of its burrow?", [[0.0, 1.64]]),
        ("When does the rabbit stretch both arms?", [[1.8, 4.2]]),
        ("When does the rabbit hold a paw to its head?", [[4.44, 5.28]]),
    ],
}

MASKS: list[tuple[str, str, str]] = [
    ("flower.jpg", "whole-flower", "Segment the whole flower."),
    ("rocket.jpg", "rocket", "Segment the rocket."),
    ("coins.png", "coin", "Segment the coin on the right of the third row."),
    ("astronaut.png", "helmet", "Segment the helmet."),
    ("coffee.png", "cup", "Segment the cup."),
    ("bigbuckbunny.mp4", "rabbit", "Segment the rabbit."),
    ("carphone.mp4", "bow-tie", "Segment the red bow tie."),
    ("bikes.mp4", "taxi-sign", "Segment the light plate of the taxi sign."),
]

TALK: list[tuple[str, str, str]] = [
    ("astronaut.png", "What colour is her suit?", "Orange."),
    ("camera.png", "What is the man looking through?", "A video camera on a tripod."),
    ("chelsea.png", "What colour are the eyes of the cat?", "Green."),
    ("coffee.png", "What lies on the saucer beside the cup?", "A spoon."),
    ("coins.png", "How many coins are in each row?", "Six."),
    ("motorcycle.png", "What colour is the motorcycle?", "Red and black."),
    ("rocket.jpg", "Is it a sunny day?", "No, the sky is dark and the lamps are lit."),
    ("bikes.mp4", "What is written on the sign of the black car?", "Taxi."),
    ("carphone.mp4", "What does the man wear at his neck?", "A red bow tie."),
    ("bigbuckbunny.mp4", "What animal is it?", "A big grey rabbit."),
]

CHOICES: list[tuple[str, str, list[str], int]] = [
    ("flower.jpg", "What colour is the flower?", ["Blue.", "Orange.", "White."], 1),
    ("china.jpg", "What is behind the temple?", ["A lake.", "A desert.", "A road."], 0),
    ("bigbuckbunny.mp4", "What does the rabbit do first?", ["It stretches.", "It holds its head.", "It comes out of its burrow."], 2),
    ("bikes.mp4", "What is seen last?", ["A bicycle.", "A taxi.", "A man in a suit."], 0),
]


def records() -> list[dict[str, Any]]:
    """Return all records, in the order of the file."""
    rows = [_box_record(name, number, *entry) for name, entries in BOXES.items() for number, entry in enumerate(entries)]
    rows += [_moment_record(name, number, *entry) for name, entries in MOMENTS.items() for number, entry in enumerate(entries)]
    rows += [_mask_record(*entry) for entry in MASKS]
    rows += [_talk_record(number, *entry) for number, entry in enumerate(TALK)]
    rows += [_choice_record(number, *entry) for number, entry in enumerate(CHOICES)]
    return [*rows, _described_coffee(), _cut_walker(), _tracked_tie()]


def rle(name: str, polygons: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Return the union of polygons (x, y, x, y, ...) as a COCO run-length mask; no polygon is an empty mask."""
    width, height = SIZES[name]
    empty = [[0.0, 0.0, 0.0, 0.0, 0.0, 0.0]]
    packed = coco.merge(coco.frPyObjects([list(polygon) for polygon in polygons] or empty, height, width))
    return {"size": [height, width], "counts": packed["counts"].decode("ascii")}


def _medium(name: str, **cut: float) -> dict[str, Any]:
    return {"type": "video" if name.endswith(".mp4") else "image", "path": f"media/{name}", **cut}


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _place(target: str) -> dict[str, Any]:
    return {"type": "target", "id": target}


def _record(
    key: str, task: str, question: Sequence[Mapping[str, Any]], answer: Sequence[Mapping[str, Any]], targets: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    messages = [{"role": "user", "content": list(question)}, {"role": "assistant", "content": list(answer)}]
    return {"id": key, "source": "own_data", "task": task, "messages": messages, "targets": list(targets)}


def _key(name: str, *parts: object) -> str:
    return "-".join([name.split(".")[0], *map(str, parts)])


def _region(target: str, name: str, boxes: Sequence[Box]) -> dict[str, Any]:
    return {"id": target, "head": "region", "media": 0, "size": list(SIZES[name]), "boxes": list(boxes)}


def _mask(target: str, name: str, outlines: Mapping[str, Sequence[Sequence[float]]]) -> dict[str, Any]:
    shapes = [rle(name, polygons) for polygons in outlines.values()]
    return {"id": target, "head": "mask", "media": 0, "size": list(SIZES[name]), "frames": [int(key) for key in outlines], "rle": shapes}


def _box_record(name: str, number: int, question: str, boxes: Sequence[Box]) -> dict[str, Any]:
    return _record(_key(name, "box", number), "region", [_medium(name), _text(question)], [_place("t0")], [_region("t0", name, boxes)])


def _moment_record(name: str, number: int, question: str, spans: Sequence[Sequence[float]]) -> dict[str, Any]:
    target = {"id": "t0", "head": "temporal", "media": 0, "duration": DURATIONS[name], "spans": list(spans)}
    return _record(_key(name, "moment", number), "temporal", [_medium(name), _text(question)], [_place("t0")], [target])


def _mask_record(name: str, thing: str, question: str) -> dict[str, Any]:
    target = _mask("t0", name, OUTLINES[thing])
    return _record(_key(name, "mask", thing), "mask", [_medium(name), _text(question)], [_place("t0")], [target])


def _talk_record(number: int, name: str, question: str, answer: str) -> dict[str, Any]:
    return _record(_key(name, "talk", number), "chat", [_medium(name), _text(question)], [_text(answer)], [])


def _choice_record(number: int, name: str, question: str, choices: Sequence[str], answer: int) -> dict[str, Any]:
    messages = [{"role": "user", "content": [_medium(name), _text(question)]}]
    key = _key(name, "choice", number)
    return {"id": key, "source": "own_data", "task": "choice", "messages": messages, "choices": list(choices), "answer": answer}


def _described_coffee() -> dict[str, Any]:
    """Two heads' places in one answer."""
    name = "coffee.png"
    (_, cup), (_, spoon), (_, saucer), _ = BOXES[name]
    answer = [_text("A cup "), _place("t0"), _text(" and a spoon "), _place("t1"), _text(" stand on a saucer "), _place("t2"), _text(".")]
    targets = [_region("t0", name, cup), _region("t1", name, spoon), _region("t2", name, saucer)]
    return _record(_key(name, "described"), "region", [_medium(name), _text("Describe the picture with boxes.")], answer, targets)


def _cut_walker() -> dict[str, Any]:
    """A clip that is cut first: times count from the cut."""
    name, start = "bikes.mp4", 5.48
    question = [_medium(name, start=start, end=DURATIONS[name]), _text("When does somebody walk past the parked bicycle?")]
    target = {"id": "t0", "head": "temporal", "media": 0, "duration": 4.52, "spans": [[2.0, 3.12]]}
    return _record(_key(name, "cut"), "temporal", question, [_place("t0")], [target])


def _tracked_tie() -> dict[str, Any]:
    """A box in the question, and the thing's masks as the answer."""
    name = "carphone.mp4"
    box = [80, 103, 126, 122]
    prompt = {"id": "p0", "role": "prompt", "kind": "box", "for": "t0", "media": 0, "frame": 0, "size": list(SIZES[name]), "boxes": [box]}
    question = [_medium(name), _text("Follow the thing in this box: "), _place("p0")]
    return _record(_key(name, "tracked"), "mask", question, [_place("t0")], [prompt, _mask("t0", name, OUTLINES["bow-tie"])])


def main() -> None:
    """Write ``records.jsonl``."""
    lines = [json.dumps(record, ensure_ascii=False) for record in records()]
    (HERE / "records.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
