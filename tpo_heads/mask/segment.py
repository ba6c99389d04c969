"""Queries -> masks: who is asked about which frames, prompted how and where, in as few passes as the clips' shapes allow.

Rows whose clips have equally many frames and the same prompt frame and kind of prompt form a group, and a group is one batch of SAM2:
its memory attention knows no padding, so that rows of other shapes would change each other. With the prompt on the first frame, which is
usual, all objects of all clips of one length are one group.

Legend: N queries, K media, T frames, G rows of a group, P prompt tokens, C their width, M candidates, h w mask logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from tpo_core.types import Queries, Tensors
from tpo_heads.mask.config import MaskConfig
from tpo_heads.mask.track import (
    SamFeatures,
    Tracker,
    choose,
    corner_tokens,
    decode_first,
    point_tokens,
    propagate,
    stack_steps,
)

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base

EMBEDDING, BOX, POINT = 0, 1, 2
"""Kinds of prompts; they differ in the number of tokens."""
LOOK_AT_ONCE = 32
"""Rows of the mask decoder in one call while the prompt frame is looked for."""


@dataclass(frozen=True)
class Asked:
    """Plain values of a batch of queries; read from the device in one go.

    Args:
        tokens: kind of prompt -> SAM2 prompt tokens of all N queries (rows of another kind are not read).
        media: medium of each query. lengths_K: frames of each medium. frames_K: their indices into the medium.
        kind: of each query's prompt.
        start: position of each query's prompt frame, or None where it must be looked for.
    """

    tokens: Mapping[int, Tensor]
    media: Sequence[int]
    lengths_K: Sequence[int]
    frames_K: Sequence[Sequence[int]]
    kind: Sequence[int]
    start: Sequence[int | None]


def ask(queries: Queries, tokens_NPC: Tensor, sam: SAM2Base, config: MaskConfig, targets: Tensors | None) -> Asked:
    """Read a batch's plain values and make every query's prompt tokens.

    Args:
        targets: in training; they name the prompt frames.
    """
    inputs, count = queries.inputs, len(queries)
    frames_KT = inputs["frame_index"]
    valid_KT = inputs.get("frame_index_valid", torch.ones_like(frames_KT, dtype=torch.bool))
    given = given_prompts(queries) or [None] * count
    positions_N = targets["prompt_position"] if targets is not None else torch.full((count,), -1, device=frames_KT.device)
    media, positions, lengths, flat = _to_host([queries.media_N, positions_N, valid_KT.sum(1), frames_KT.flatten()])
    width = frames_KT.shape[1]
    frames = [flat[k * width : k * width + length] for k, length in enumerate(lengths)]
    kind, start = [], []
    for row in range(count):
        own = frames[media[row]]
        box_frame, is_box = given[row] or (None, False)
        place = own.index(box_frame) if box_frame in own else None
        # A box holds on its own frame alone: where that frame was not drawn, the embedding prompts.
        usable = place is not None and config.path != "embedding"
        kind.append((BOX if is_box else POINT) if usable else EMBEDDING)
        if place is None and positions[row] >= 0:
            place = positions[row]
        start.append(0 if place is None and (len(own) == 1 or config.prompt_frame == "first") else place)
    tokens = prompt_tokens(queries, tokens_NPC, sam, config, kind)
    return Asked(tokens, media, lengths, frames, kind, start)


def given_prompts(queries: Queries) -> list[tuple[int, bool] | None] | None:
    """Return each query's (frame, whether it is a box) where the question gave a prompt, or None where no query has one."""
    if queries.prompted_N is None or not queries.prompts:
        return None
    prompted, frame, is_box = _to_host([queries.prompted_N, queries.prompts["frame"], queries.prompts["is_box"]])
    return [(frame[row], bool(is_box[row])) if prompted[row] else None for row in range(len(queries))]


def prompt_tokens(queries: Queries, tokens_NPC: Tensor, sam: SAM2Base, config: MaskConfig, kind: Sequence[int]) -> dict[int, Tensor]:
    """Return the prompt tokens by kind: the adapter's, SAM2's own of the box or point, or with ``path: both`` the two in a row."""
    tokens = {EMBEDDING: tokens_NPC}
    for name, make, key in ((BOX, corner_tokens, "box"), (POINT, point_tokens, "point")):
        if name in kind:
            own = make(sam, queries.prompts[key])
            tokens[name] = torch.cat([tokens_NPC.to(own.dtype), own], dim=1) if config.path == "both" else own
    return tokens


def segment(sam: SAM2Base, features: SamFeatures, index_KT: Tensor, asked: Asked, config: MaskConfig, *, learning: bool) -> Tensors:
    """Return the head's output for clips that are there as a whole; see `MaskHead.forward`."""
    start = look_for_start(sam, features, index_KT, asked, config)
    groups: dict[tuple[int, int, int], list[int]] = {}
    for row, medium in enumerate(asked.media):
        groups.setdefault((asked.lengths_K[medium], start[row], asked.kind[row]), []).append(row)
    longest = index_KT.shape[1]
    order: list[int] = []
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for (length, frame, kind), rows in sorted(groups.items()):
        media = torch.tensor([asked.media[row] for row in rows], device=index_KT.device)
        tokens_GPC = asked.tokens[kind][torch.tensor(rows, device=index_KT.device)]
        tracker = Tracker(sam, num_frames=length, prompt_frame=frame, learning=learning)
        steps = propagate(tracker, features, index_KT[media, :length], tokens_GPC, multimask=config.multimask)
        masks_GTMhw, iou_GTM, object_GT = stack_steps(steps)
        pad = longest - length
        parts.append((_pad(masks_GTMhw, pad), _pad(iou_GTM, pad), _pad(object_GT, pad)))
        order += rows
    back = torch.tensor(order, device=index_KT.device).argsort()
    most = max(iou_GTM.shape[2] for _, iou_GTM, _ in parts)
    masks_NTMhw = torch.cat([masks if masks.shape[2] == most else masks.expand(-1, -1, most, -1, -1) for masks, _, _ in parts])[back]
    iou_NTM = torch.cat([iou if iou.shape[2] == most else iou.expand(-1, -1, most) for _, iou, _ in parts])[back]
    masks_NThw, iou_NT = choose(masks_NTMhw, iou_NTM)
    output = {"masks": masks_NThw, "iou": iou_NT, "object": torch.cat([scores for _, _, scores in parts])[back]}
    output |= _frame_tensors(asked, longest, index_KT.device)
    return output | ({"candidates": masks_NTMhw, "candidate_iou": iou_NTM} if learning else {})


def add_presence(object_NT: Tensor, presence_N: Tensor, kind: Sequence[int]) -> Tensor:
    """Return object scores with what the embedding says of the object's presence; a box or point of the question asks SAM2 alone."""
    by_words_N = torch.tensor([own == EMBEDDING for own in kind], device=object_NT.device)
    return object_NT + (presence_N.to(object_NT.dtype) * by_words_N)[:, None]


def look_for_start(sam: SAM2Base, features: SamFeatures, index_KT: Tensor, asked: Asked, config: MaskConfig) -> list[int]:
    """Return every query's prompt position: the given one, else the one that the object's score on each frame (no memory) chooses."""
    open_rows = [row for row, place in enumerate(asked.start) if place is None]
    found = {row: place for row, place in enumerate(asked.start) if place is not None}
    if open_rows:
        pairs = [(row, t) for row in open_rows for t in range(asked.lengths_K[asked.media[row]])]
        places = torch.tensor([(asked.media[row], t) for row, t in pairs], device=index_KT.device)
        rows = torch.tensor([row for row, _ in pairs], device=index_KT.device)
        index = index_KT[places[:, 0], places[:, 1]]
        scores = score_frames(sam, features, index, asked.tokens[EMBEDDING], rows, multimask=config.multimask)
        by_row: dict[int, list[float]] = {}
        for (row, _), score in zip(pairs, scores):
            by_row.setdefault(row, []).append(score)
        found |= {row: pick_frame(values, config) for row, values in by_row.items()}
    return [found[row] for row in range(len(asked.start))]


@torch.no_grad()
def score_frames(
    sam: SAM2Base, features: SamFeatures, index_F: Tensor, tokens_NPC: Tensor, rows_F: Tensor, *, multimask: bool
) -> list[float]:
    """Return the object's score (logit) of pairs of a frame and a query."""
    scores: list[float] = []
    for index, rows in zip(torch.split(index_F, LOOK_AT_ONCE), torch.split(rows_F, LOOK_AT_ONCE)):
        step = decode_first(sam, features.take(index), tokens_NPC[rows], multimask=multimask)
        scores += step.object_B.tolist()
    return scores


def pick_frame(scores: Sequence[float], config: MaskConfig) -> int:
    """Return the position of the first frame where the object is seen (``seen``), or of the best score (``best``, or seen nowhere)."""
    if config.prompt_frame == "seen":
        for position, score in enumerate(scores):
            if score > 0:
                return position
    return max(range(len(scores)), key=lambda position: (scores[position], -position))


def _frame_tensors(asked: Asked, longest: int, device: torch.device) -> Tensors:
    frames = [[*asked.frames_K[medium], *[0] * (longest - asked.lengths_K[medium])] for medium in asked.media]
    valid = [[t < asked.lengths_K[medium] for t in range(longest)] for medium in asked.media]
    return {"frame_index": torch.tensor(frames, device=device), "valid": torch.tensor(valid, device=device)}


def _pad(values_GT: Tensor, count: int) -> Tensor:
    if not count:
        return values_GT
    return functional.pad(values_GT, (*(0, 0) * (values_GT.ndim - 2), 0, count))


def _to_host(tensors: Sequence[Tensor]) -> list[list[int]]:
    """Return one-dimensional integer tensors as lists, by one copy from the device."""
    joined = torch.cat([tensor.long().reshape(-1) for tensor in tensors]).tolist()
    lists, place = [], 0
    for tensor in tensors:
        lists.append(joined[place : place + tensor.numel()])
        place += tensor.numel()
    return lists
