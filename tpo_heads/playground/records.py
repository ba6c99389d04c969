"""Scene -> records in the project's own annotation format, and scene -> its full truth as JSON.

Each head's targets come from the truth by one small function (`region_target`, `temporal_target`, `mask_target`); a stranger's head takes
the same truth from ``scenes-<split>.jsonl`` (see `tpo_heads.playground.reader`).

Legend: T frames, H W pixels. Boxes xyxy in pixels, exclusive; spans in seconds of the clip; masks as COCO run lengths.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco

from tpo_heads.playground.language import Ask, Speaker
from tpo_heads.playground.render import FAR, NEAR, Picture
from tpo_heads.playground.scenes import Scene, pick
from tpo_heads.playground.talk import CHOSEN, OFFERED

Record = dict[str, Any]
Row = dict[str, Any]


def rle(mask_HW: np.ndarray) -> Row:
    """Return a mask as COCO run lengths: {"size": [H, W], "counts": str}."""
    code = coco.encode(np.asfortranarray(mask_HW.astype(np.uint8)))
    return {"size": [int(side) for side in code["size"]], "counts": code["counts"].decode("ascii")}


def truth(scene: Scene, picture: Picture, media: str) -> Row:
    """Return everything that is known of a scene, JSON-ready.

    Per object and frame: visible mask, box around it (null where nothing is seen), centre, and whether it is shown; per object its depth
    (the background's depth runs linearly from the upper to the lower edge, so that the dense map follows) and its own velocity in pixels
    per frame; per event its object, its action and its time in frames and seconds.
    """
    objects = []
    for i, thing in enumerate(scene.things):
        boxes = [picture.box(i, t) for t in range(scene.frames)]
        objects.append(
            {
                "colour": thing.colour,
                "shape": thing.shape,
                "size": thing.size,
                "depth": round(thing.depth, 4),
                "velocity": [round(v, 4) for v in thing.velocity],
                "centres": np.round(thing.centre_T2, 3).tolist(),
                "radii": np.round(thing.radius_T, 3).tolist(),
                "shown": thing.shown_T.astype(int).tolist(),
                "boxes": [None if box is None else list(box) for box in boxes],
                "masks": [rle(picture.mask(i, t)) for t in range(scene.frames)],
            }
        )
    events = [
        {"object": e.thing, "action": e.action, "frames": [e.start, e.end], "span": [e.start / scene.fps, e.end / scene.fps]}
        for e in scene.events
    ]
    return {
        "id": scene.key,
        "split": scene.split,
        "kind": scene.kind,
        "level": scene.level,
        "media": media,
        "size": list(scene.size),
        "frames": scene.frames,
        "fps": scene.fps,
        "duration": scene.duration,
        "background_depth": [FAR, NEAR],
        "objects": objects,
        "events": events,
    }


# Targets: one small function for each head


def region_target(scene: Scene, picture: Picture, ask: Ask, name: str) -> Row:
    """Return the box of the thing that is meant, in the first frame; no box where it is not there."""
    box = None if ask.thing is None else picture.box(ask.thing, 0)
    return {"id": name, "head": "region", "media": 0, "size": list(scene.size), "boxes": [] if box is None else [[float(v) for v in box]]}


def temporal_target(scene: Scene, picture: Picture, ask: Ask, name: str) -> Row:
    """Return the span of the event that is meant; no span where it does not happen. ``distractors``: the clip's other event."""
    spans = [] if ask.span is None else [[frame / scene.fps for frame in ask.span]]
    others = [] if ask.other is None else [[frame / scene.fps for frame in ask.other]]
    row: Row = {"id": name, "head": "temporal", "media": 0, "duration": scene.duration, "spans": spans}
    return row | ({"distractors": others} if others else {})


def mask_target(scene: Scene, picture: Picture, ask: Ask, name: str) -> Row:
    """Return the visible masks of the thing that is meant, in all frames; empty masks where it is not there."""
    nothing = np.zeros(scene.size[::-1], bool)
    masks = [nothing if ask.thing is None else picture.mask(ask.thing, t) for t in range(scene.frames)]
    row: Row = {"id": name, "head": "mask", "media": 0, "size": list(scene.size), "frames": list(range(scene.frames))}
    return row | {"rle": [rle(mask_HW) for mask_HW in masks]}


TARGETS: dict[str, Callable[[Scene, Picture, Ask, str], Row]] = {
    "region": region_target,
    "temporal": temporal_target,
    "mask": mask_target,
}


def record(scene: Scene, picture: Picture, asks: Sequence[Ask], *, media: str, name: str, source: str, heads: Sequence[str]) -> Record:
    """Return one record: the medium, then every question with its answer.

    An answer is words or a target part. A region question about what is not there keeps its target (with no box), so that it is scored.
    """
    part = {"type": "image" if scene.kind == "image" else "video", "path": media}
    messages: list[Row] = []
    targets: list[Row] = []
    for ask in asks:
        content: list[Row] = [{"type": "text", "text": ask.question}]
        messages.append({"role": "user", "content": [part, *content] if not messages else content})
        answer: list[Row]
        if ask.task in heads:
            target = TARGETS[ask.task](scene, picture, ask, f"t{len(targets)}")
            targets.append(target)
            answer = [{"type": "target", "id": target["id"]}]
        else:
            answer = [{"type": "text", "text": ask.answer or ""}]
        messages.append({"role": "assistant", "content": answer})
    row: Record = {
        "id": name,
        "source": source,
        "task": asks[0].task if len(asks) == 1 else "mixed",
        "messages": messages,
        "targets": targets,
    }
    if len(asks) == 1 and asks[0].choices:
        row |= {"choices": list(asks[0].choices), "answer": asks[0].choices.index(asks[0].answer or "")}
    return row


# What is asked of a scene


def lesson(speaker: Speaker, heads: Sequence[str]) -> list[Ask]:
    """Draw the turns of a training record: several questions for the heads, conversation, and a caption (first in a third of them)."""
    kind, rng = speaker.scene.kind, speaker.rng
    asks: list[Ask | None] = []
    if kind == "image":
        seen = speaker.seen()
        order = [seen[int(i)] for i in rng.permutation(len(seen))]
        asks += [speaker.region(absent=rng.random() < 0.1, thing=i) for i in (order * 2)[:4] if "region" in heads]
        asks += [speaker.mask(absent=rng.random() < 0.15, thing=i) for i in order[:2] if "mask" in heads and rng.random() < 0.5]
        asks += conversation(speaker, 3)
    elif kind == "clip":
        happened = [int(i) for i in rng.permutation(len(speaker.scene.events))]
        absent = rng.random() < 0.5
        asks += [speaker.temporal(event=i) for i in (happened * 2)[: 3 if absent else 4] if "temporal" in heads]
        asks += [speaker.temporal(absent=True)] if "temporal" in heads and absent else []
        asks += conversation(speaker, 3)
        # The nearest sentence to a question of when something happens: too few of them, and the temporal head answers them.
        asks += [speaker.chat("whether")] if "temporal" in heads else []
    else:
        seen = speaker.seen()
        order = [seen[int(i)] for i in rng.permutation(len(seen))]
        asks += [speaker.mask(thing=i) for i in order[:2] if "mask" in heads]
        asks += [speaker.mask(absent=True)] if "mask" in heads and rng.random() < 0.4 else []
        asks += conversation(speaker, 1)
    return mixed(speaker, asks)


def mixed(speaker: Speaker, asks: Sequence[Ask | None]) -> list[Ask]:
    """Put turns in a drawn order, with a caption among them (first in a third of all records)."""
    rng = speaker.rng
    turns = [ask for ask in asks if ask is not None]
    turns = [turns[int(i)] for i in rng.permutation(len(turns))]
    caption = speaker.caption()
    place = 0 if rng.random() < 1 / 3 else int(rng.integers(len(turns) + 1))
    return [*turns[:place], caption, *turns[place:]]


def conversation(speaker: Speaker, wanted: int) -> list[Ask | None]:
    """Draw so many questions that are answered in words, each of another kind; a quarter of the time the last is multiple choice."""
    kind, rng = speaker.scene.kind, speaker.rng
    kinds = OFFERED[kind]
    order = [kinds[int(i)] for i in rng.permutation(len(kinds))]
    asks = [ask for ask in (speaker.chat(name) for name in order) if ask is not None][:wanted]
    if rng.random() < 0.25 and (choice := speaker.choice(pick(rng, CHOSEN[kind]))) is not None:
        asks[-1:] = [choice]
    return list(asks)


def exam(speaker: Speaker, heads: Sequence[str]) -> dict[str, Ask]:
    """Draw the single questions of a test scene: source name -> question."""
    kind, rng = speaker.scene.kind, speaker.rng
    asks: dict[str, Ask | None] = {}
    head = {"image": "region", "clip": "temporal", "track": "mask"}[kind]
    if head in heads:
        asks[head] = _ask_head(speaker, head, absent=rng.random() < 0.1)
    talk: list[Ask | None] = conversation(speaker, 1)
    if kind != "track":
        asks[f"{'image' if kind == 'image' else 'video'}_qa"] = talk[0] if talk else None
    return {name: ask for name, ask in asks.items() if ask is not None}


def paraphrase(speaker: Speaker, heads: Sequence[str]) -> Ask | None:
    """Draw one question in words that training never uses: which head answers it, or that none does, is the test of assignment."""
    kind, rng = speaker.scene.kind, speaker.rng
    if rng.random() < 0.4:
        templates = [name for name in dict.fromkeys(OFFERED[kind]) if name in speaker.talk]
        return speaker.chat(pick(rng, templates))
    head = {"image": "region", "clip": "temporal", "track": "mask"}[kind]
    if kind == "image" and "mask" in heads and rng.random() < 0.3:
        head = "mask"
    if head not in heads:
        return None
    return _ask_head(speaker, head, absent=False)


def _ask_head(speaker: Speaker, head: str, *, absent: bool) -> Ask | None:
    if head == "temporal":
        return speaker.temporal(absent=absent)
    return speaker.region(absent=absent) if head == "region" else speaker.mask(absent=absent)
