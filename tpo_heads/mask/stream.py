"""A long clip in pieces: frames come, are encoded, answered and dropped.

Pieces arrive in the order look, forth, back (`MaskCodec.chunks`). Queries that share a prompt frame share a tracker. A frame is encoded
once for all of them on the way forth, and once more on the way back if some must go back over it.

Legend: N queries, F frames of a piece that somebody needs, G rows of a tracker, h w mask logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tpo_core.types import Chunk, Queries, Tensors
from tpo_heads.mask.codec import BACK, FORTH, LOOK, WHOLE
from tpo_heads.mask.config import MaskConfig
from tpo_heads.mask.features import FeatureSource
from tpo_heads.mask.segment import BOX, EMBEDDING, POINT, add_presence, given_prompts, pick_frame, prompt_tokens, score_frames
from tpo_heads.mask.track import SamFeatures, Step, Tracker

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base


@torch.no_grad()
def stream_clip(
    sam: SAM2Base,
    source: FeatureSource,
    queries: Queries,
    tokens_NPC: Tensor,
    chunks: Iterable[Chunk],
    config: MaskConfig,
    *,
    whole: Callable[[Chunk], Tensors],
    presence_N: Tensor | None = None,
) -> Iterator[Tensors]:
    """Yield the head's output for each piece; T is the number of its frames that somebody needed, 0 for a look.

    Args:
        whole: answers a piece that is the whole clip.
        presence_N: what the embedding adds to the object's score, if anything.
    """
    stream: _Stream | None = None
    for chunk in chunks:
        stage = int(chunk.inputs["stage"][0])
        if stage == WHOLE:
            yield whole(chunk)
            continue
        if stage == LOOK:
            stream = _Stream(sam, source, queries, tokens_NPC, config, total=int(chunk.inputs["total"][0]), presence_N=presence_N)
            stream.look(chunk.inputs)
        assert stream is not None, "a long clip begins with the frames to look at"
        yield stream.answer(chunk.inputs, stage)
        if stream.done:
            return


class _Stream:
    """All queries on one long clip, and how far they are."""

    def __init__(
        self,
        sam: SAM2Base,
        source: FeatureSource,
        queries: Queries,
        tokens_NPC: Tensor,
        config: MaskConfig,
        *,
        total: int,
        presence_N: Tensor | None,
    ) -> None:
        self.sam, self.source, self.config, self.total, self.presence_N = sam, source, config, total, presence_N
        self.count, self.device = len(queries), tokens_NPC.device
        given = given_prompts(queries) or [None] * self.count
        own = config.path != "embedding"
        self.kind = [EMBEDDING if prompt is None or not own else BOX if prompt[1] else POINT for prompt in given]
        self.tokens = prompt_tokens(queries, tokens_NPC, sam, config, self.kind)
        self.start: list[int | None] = [None if prompt is None else prompt[0] for prompt in given]
        self.trackers: dict[tuple[int, int], tuple[Tracker, list[int]]] = {}
        self.kept: dict[int, SamFeatures] = {}
        self.frontier = -1
        self.returning = False

    @property
    def done(self) -> bool:
        """Return whether every query has every frame it needs."""
        if not self.returning:
            return self.frontier == self.total - 1 and self._last_start == 0
        return self.frontier == 0

    @property
    def _last_start(self) -> int:
        return max(start for _, start in self.trackers)

    def look(self, inputs: Tensors) -> None:
        """Choose the prompt frames, and set up one tracker for each."""
        frames = inputs["frame_index"][0].tolist()
        open_rows = [row for row, start in enumerate(self.start) if start is None]
        if open_rows and self.config.prompt_frame == "first":
            self.start = [0 if start is None else start for start in self.start]
        elif open_rows:
            features, index_KT = self.source.of_batch(inputs, [len(frames)], keep=False)
            rows = torch.tensor(open_rows, device=self.device).repeat_interleave(len(frames))
            index = index_KT[0].repeat(len(open_rows))
            scores = score_frames(self.sam, features, index, self.tokens[EMBEDDING], rows, multimask=self.config.multimask)
            for position, row in enumerate(open_rows):
                own = scores[position * len(frames) : (position + 1) * len(frames)]
                self.start[row] = frames[pick_frame(own, self.config)]
            self.kept = {frame: features.take(index_KT[0, t : t + 1]) for t, frame in enumerate(frames)}
        for row, start in enumerate(self.start):
            assert start is not None
            key = (self.kind[row], start)
            if key not in self.trackers:
                tracker = Tracker(self.sam, num_frames=self.total, prompt_frame=start, learning=False)
                self.trackers[key] = (tracker, [])
            self.trackers[key][1].append(row)

    def answer(self, inputs: Tensors, stage: int) -> Tensors:
        """Return the output of one piece."""
        frames = inputs["frame_index"][0].tolist() if stage != LOOK else []
        if stage == BACK:
            self.returning = True
            frames = frames[::-1]
        needed = [frame for frame in frames if any(_needs(start, frame, stage) for _, start in self.trackers)]
        features = self._features(inputs, needed)
        columns = [self._column(frame, features[frame], stage) for frame in needed]
        if frames:
            self.frontier = frames[-1]
        return self._output(needed, columns)

    def _features(self, inputs: Tensors, needed: Sequence[int]) -> dict[int, SamFeatures]:
        kept = {frame: self.kept.pop(frame) for frame in needed if frame in self.kept}
        fresh = [frame for frame in needed if frame not in kept]
        if not fresh:
            return kept
        where = torch.tensor([inputs["frame_index"][0].tolist().index(frame) for frame in fresh], device=inputs["frame_index"].device)
        part = dict(inputs) | {name: inputs[name][:, where] for name in ("frame_index", "frame_name", "pixel_of")}
        features, index_KT = self.source.of_batch(part, [len(fresh)], keep=False)
        return kept | {frame: features.take(index_KT[0, t : t + 1]) for t, frame in enumerate(fresh)}

    def _column(self, frame: int, features: SamFeatures, stage: int) -> list[tuple[list[int], Step]]:
        column = []
        for (kind, start), (tracker, rows) in self.trackers.items():
            if not _needs(start, frame, stage):
                continue
            index = torch.zeros(len(rows), dtype=torch.long, device=self.device)
            if frame == start:
                tokens_GPC = self.tokens[kind][torch.tensor(rows, device=self.device)]
                step = tracker.prompt(features.take(index), tokens_GPC, multimask=self.config.multimask)
            else:
                step = tracker.follow(frame, features.take(index))
            column.append((rows, step))
        return column

    def _output(self, frames: Sequence[int], columns: Sequence[list[tuple[list[int], Step]]]) -> Tensors:
        side = self.sam.image_size // 4
        count = len(frames)
        masks_NThw = torch.zeros(self.count, count, side, side, device=self.device)
        iou_NT = torch.zeros(self.count, count, device=self.device)
        object_NT = torch.zeros(self.count, count, device=self.device)
        valid_NT = torch.zeros(self.count, count, dtype=torch.bool, device=self.device)
        for t, column in enumerate(columns):
            for rows, step in column:
                own = torch.arange(len(rows), device=self.device)
                masks_NThw[rows, t] = step.masks_BMhw[own, step.best]
                iou_NT[rows, t] = step.iou_BM[own, step.best]
                object_NT[rows, t] = step.object_B
                valid_NT[rows, t] = True
        if self.presence_N is not None:
            object_NT = add_presence(object_NT, self.presence_N, self.kind)
        frame_index = torch.tensor(list(frames), dtype=torch.long, device=self.device).expand(self.count, count)
        return {"masks": masks_NThw, "iou": iou_NT, "object": object_NT, "frame_index": frame_index, "valid": valid_NT}


def _needs(start: int, frame: int, stage: int) -> bool:
    return frame >= start if stage == FORTH else frame < start
