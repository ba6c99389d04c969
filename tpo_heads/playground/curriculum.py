"""What the base model is taught, as batches: captions and questions that are answered in words, on scenes of the split ``base``.

It holds no target of any head, and no scene of another split. A batch is a function of (seed, step), so that teaching can be resumed.

Legend: B scenes of a batch, L token positions, F frames of all scenes in order, P tokens of a frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from tpo_heads.playground.language import Ask, Speaker
from tpo_heads.playground.phrases import COLUMNS, ROWS
from tpo_heads.playground.records import conversation, mixed
from tpo_heads.playground.render import Picture, render
from tpo_heads.playground.scenes import Kind, Scene, make_scene, pick
from tpo_heads.playground.talk import CHOSEN, OFFERED, TAUGHT

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PATCH, MERGE, SIDE = 8, 2, 64
TOKENS = (SIDE // PATCH // MERGE) ** 2


@dataclass
class Lesson:
    """A batch for the language model.

    Attributes:
        ids_BL, labels_BL: tokens; labels are -100 where nothing is learnt, and stand on the token itself.
        place_3BL: M-RoPE positions. allowed_B1LL: who may look at whom. seen_BL: where the vision tokens stand.
        pixels_FP: patches of all frames, as the processor cuts them.
    """

    ids_BL: Tensor
    labels_BL: Tensor
    place_3BL: Tensor
    allowed_B1LL: Tensor
    seen_BL: Tensor
    pixels_FP: Tensor


def patches(frames_FHW3: np.ndarray) -> Tensor:
    """Return uint8 frames (F, 64, 64, 3) as the stock processors cut them: (F * 64, 192), in merge order, -1 to 1."""
    cells, block = SIDE // PATCH // MERGE, PATCH
    pixels = torch.from_numpy(frames_FHW3.astype(np.float32) / 127.5 - 1.0)
    parts = pixels.reshape(-1, cells, MERGE, block, cells, MERGE, block, 3)
    return parts.permute(0, 1, 4, 2, 5, 7, 3, 6).reshape(-1, 3 * block * block)


def base_scene(seed: int, kind: Kind, index: int, *, split: str = "base", level: int = 1) -> tuple[Scene, Picture, Speaker]:
    """Return a scene of the base split with its pixels and a speaker."""
    scene = make_scene(seed=seed, split=split, kind=kind, level=level, index=index)
    picture = render(scene)
    return scene, picture, Speaker(scene, picture, scene.rng(2))


def turns_of(speaker: Speaker) -> list[Ask]:
    """Draw many independent turns of a scene: captions in several orders, every kind of question, some of them several times."""
    kind, rng = speaker.scene.kind, speaker.rng
    more = {
        "image": ("place", "refer", "refer", "colour", "shape", "exists"),
        "clip": ("moment",),
        "track": ("place", "end"),
    }
    asks = [speaker.chat(name) for name in (*OFFERED[kind], *TAUGHT[kind], *more[kind])]
    asks += [speaker.choice(pick(rng, CHOSEN[kind]))]
    asks += [speaker.caption() for _ in range(2)]
    return [ask for ask in asks if ask is not None]


QUESTIONS = {"image": 3, "clip": 2, "track": 1}
"""Questions of a chat, besides the caption. The shipped base was taught with these: another number is another base."""


def chat_of(speaker: Speaker) -> list[Ask]:
    """Draw the turns of a chat about a scene: a few questions and a caption, one after another."""
    scene = speaker.scene
    # A draw whose result nobody needs. The course of the shipped base had it, and must not change.
    speaker.rng.permutation(len(scene.events if scene.kind == "clip" else speaker.seen()))
    return mixed(speaker, conversation(speaker, QUESTIONS[scene.kind]))


def make_lesson(
    tokenizer: PreTrainedTokenizerFast, *, seed: int, kind: Kind, first: int, size: int, chained: bool, level: int = 1
) -> Lesson:
    """Return the batch of the scenes first ... first + size - 1.

    Args:
        chained: the turns follow one another as in a chat; else every turn sees the picture alone, as a first turn does.
    """
    rows, frames = [], []
    for index in range(first, first + size):
        _, picture, speaker = base_scene(seed, kind, index, level=level)
        asks = chat_of(speaker) if chained else turns_of(speaker)
        rows.append(write_row(tokenizer, speaker.scene, asks, chained=chained))
        frames.append(picture.frames_THW3)
    return stack_rows(rows, np.concatenate(frames), tokenizer.pad_token_id)


@dataclass
class Row:
    """One scene's tokens, before padding; `turn_L` is 0 on the picture and counts the turns from 1."""

    ids: list[int]
    labels: list[int]
    turn: list[int]
    place: list[tuple[int, int, int]]
    seen: list[bool]


def write_row(tokenizer: PreTrainedTokenizerFast, scene: Scene, asks: list[Ask], *, chained: bool) -> Row:
    """Return the tokens of a scene's turns with labels and positions; the same tokens that the chat template gives for one turn."""
    row = Row([], [], [], [], [])
    grid = SIDE // PATCH // MERGE
    position = 0

    def add(ids: list[int], labels: list[int], turn: int) -> None:
        nonlocal position
        row.ids += ids
        row.labels += labels
        row.turn += [turn] * len(ids)
        row.seen += [False] * len(ids)
        row.place += [(position + i,) * 3 for i in range(len(ids))]
        position += len(ids)

    def ids_of(text: str) -> list[int]:
        ids: list[int] = tokenizer(text)["input_ids"]
        return ids

    add(head := ids_of("<|user|>"), [-100] * len(head), 0)
    pad = tokenizer.convert_tokens_to_ids("<|image_pad|>" if scene.kind == "image" else "<|video_pad|>")
    for frame in range(scene.frames):
        stamp = "" if scene.kind == "image" else f"<{frame / scene.fps:.1f} seconds>"
        add(head := ids_of(f"{stamp}<|vision_start|>"), [-100] * len(head), 0)
        row.ids += [pad] * TOKENS
        row.labels += [-100] * TOKENS
        row.turn += [0] * TOKENS
        row.seen += [True] * TOKENS
        row.place += [(position, position + i // grid, position + i % grid) for i in range(TOKENS)]
        position += grid
        add(head := ids_of("<|vision_end|>"), [-100] * len(head), 0)
    start = position
    for number, ask in enumerate(asks, 1):
        position = position if chained else start
        lead = "<|user|>" if chained and number > 1 else ""
        question, answer = ids_of(f"{lead}{ask.question}<|end|><|assistant|>"), ids_of(f"{ask.answer}<|end|>")
        add(question, [-100] * len(question), 0 if chained else number)
        add(answer, answer, 0 if chained else number)
    return row


def stack_rows(rows: list[Row], frames_FHW3: np.ndarray, pad_id: int) -> Lesson:
    """Return rows of different length as one batch, padded on the right."""
    longest = max(len(row.ids) for row in rows)
    shape = (len(rows), longest)
    ids_BL, labels_BL = torch.full(shape, pad_id), torch.full(shape, -100)
    turn_BL, seen_BL = torch.full(shape, -1), torch.zeros(shape, dtype=torch.bool)
    place_3BL = torch.zeros((3, *shape), dtype=torch.long)
    for b, row in enumerate(rows):
        n = len(row.ids)
        ids_BL[b, :n], labels_BL[b, :n] = torch.tensor(row.ids), torch.tensor(row.labels)
        turn_BL[b, :n], seen_BL[b, :n] = torch.tensor(row.turn), torch.tensor(row.seen)
        place_3BL[:, b, :n] = torch.tensor(row.place).T
    same = (turn_BL[:, :, None] == turn_BL[:, None, :]) | (turn_BL[:, None, :] == 0)
    allowed = same & torch.ones(longest, longest, dtype=torch.bool).tril()
    return Lesson(ids_BL, labels_BL, place_3BL, allowed[:, None], seen_BL, patches(frames_FHW3))


@dataclass
class Cells:
    """A batch for the alignment of tower and connector: F frames, P tokens of a frame.

    Attributes:
        pixels: patches of the frames. owner_FP: row of `words` and `boxes` for the thing that a token shows, -1 for the background.
        words: token ids that describe each thing (size, colour, shape, row, column), padded with -1. boxes: cxcywh in 0-1.
    """

    pixels: Tensor
    owner_FP: Tensor
    words: Tensor
    boxes: Tensor


def make_cells(tokenizer: PreTrainedTokenizerFast, *, seed: int, first: int, size: int, level: int = 1) -> Cells:
    """Return `size` frames, two thirds pictures and the rest frames of clips, with what each vision token shows."""
    frames: list[np.ndarray] = []
    owners: list[np.ndarray] = []
    words: list[list[int]] = []
    boxes: list[list[float]] = []
    for index in range(first, first + size):
        kind: Kind = "image" if index % 3 else "clip"
        scene, picture, _ = base_scene(seed, kind, index, level=level)
        t = index % scene.frames
        frames.append(picture.frames_THW3[t])
        cell = SIDE // PATCH // MERGE
        owner_HW = picture.owner_THW[t].reshape(cell, SIDE // cell, cell, SIDE // cell).transpose(0, 2, 1, 3).reshape(TOKENS, -1)
        area = np.stack([(owner_HW == i).sum(1) for i in range(len(scene.things))], 1)
        best = np.where(area.max(1) >= 24, area.argmax(1), -1)
        row = np.full(TOKENS, -1)
        for i, thing in enumerate(scene.things):
            x, y = thing.centre_T2[t] / SIDE
            here, line = (min(4, max(0, int((v - 0.1) / 0.16))) for v in (x, y))
            text = f"{thing.size} {thing.colour} {thing.shape} {ROWS[line]} {COLUMNS[here]}"
            ids: list[int] = tokenizer(text)["input_ids"]
            row[best == i] = len(words)
            words.append(ids + [-1] * (6 - len(ids)))
            boxes.append([x, y, 2 * thing.radius_T[t] / SIDE, 2 * thing.radius_T[t] / SIDE])
        owners.append(row)
    return Cells(
        patches(np.stack(frames)), torch.from_numpy(np.stack(owners)), torch.tensor(words), torch.tensor(boxes, dtype=torch.float32)
    )
