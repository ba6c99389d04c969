"""Prepared samples -> one `Batch`: text padded, vision rows numbered, every head's queries stacked with their flat positions.

Legend: see `tpo_core.types`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from tpo_core.backbone.layout import Layout, MediumRows
from tpo_core.head import Codec
from tpo_core.prepare.sample import Prepared, PreparedQuery
from tpo_core.router.vocabulary import TaskVocabulary
from tpo_core.stack import stack_rows
from tpo_core.types import Batch, HeadBatch, KeptStates, Tensors, VisualBatch


class Collator:
    """Joins prepared samples for one backbone and a set of heads.

    Args:
        layout, vocabulary, codecs: as for `SamplePreparer`.
        pad_id: id that pads text.
        side: ``right`` for training, ``left`` for generation.
        every_answer: mark (and count in L_assign) where an answer opens in words.
    """

    def __init__(
        self,
        *,
        layout: Layout,
        vocabulary: TaskVocabulary,
        codecs: Mapping[str, Codec[Any]],
        pad_id: int,
        side: Literal["left", "right"] = "right",
        every_answer: bool = False,
    ) -> None:
        self.layout = layout
        self.vocabulary = vocabulary
        self.codecs = dict(codecs)
        self.pad_id = pad_id
        self.side = side
        self.every_answer = every_answer

    def __call__(self, samples: Sequence[Prepared]) -> Batch:
        """Return the batch of these samples."""
        if not any(sample.name for sample in samples):
            return self._plain(samples)
        fresh_B = [row for row, sample in enumerate(samples) if sample.kept is None]
        owner_M = [row for row, sample in enumerate(samples) for _ in sample.rows]
        fresh = self._plain([samples[row] for row in fresh_B]) if fresh_B else None
        frames = [frames for sample in samples if sample.kept is not None for frames in sample.kept.frames_TPV]
        held_M = [medium for medium, row in enumerate(owner_M) if row not in fresh_B]
        batch = self._plain([replace(sample, visual={}) for sample in samples])
        batch.kept = KeptStates(
            fresh=None if fresh is None else replace(fresh, heads={}, learn_K=fresh.learn_K[:0]),
            fresh_B=fresh_B,
            owner_M=owner_M,
            shape_M=[(rows.rows_TP.shape[0], rows.rows_TP.shape[1]) for sample in samples for rows in sample.rows],
            hidden={row: sample.kept.hidden_LD for row, sample in enumerate(samples) if sample.kept is not None},
            frames=dict(zip(held_M, frames, strict=True)),
            names=[sample.name for sample in samples],
            notes=[sample.note for sample in samples],
        )
        if batch.visual is not None:
            batch.visual = replace(batch.visual, tensors={}, positions={}, rows_MTP=_in_turn(batch.visual.rows_MTP, samples))
        return batch

    def _plain(self, samples: Sequence[Prepared]) -> Batch:
        length = max(len(s.ids) for s in samples)
        offsets = [length - len(s.ids) if self.side == "left" else 0 for s in samples]
        flat = [row * length + offset for row, offset in enumerate(offsets)]
        ids, prompts = self._number_prompts(samples)
        starts = {self.vocabulary.start_id(name) for name in self.vocabulary.names}
        labels = [label for s in samples for label in s.labels]
        is_start = [label in starts for label in labels]
        heads = self._heads(samples, flat)
        words, words_valid = pad_positions([[flat[row] + p for p in s.words] for row, s in enumerate(samples)])
        opens = [position in opened for s in samples for opened in (set(s.opens),) for position in s.learn] if self.every_answer else []
        counts = {"lm": float(len(labels) - sum(is_start)), "assign": float(sum(is_start) + sum(opens))}
        for name in self.vocabulary.names:
            for term in self.codecs[name].terms:
                counts[f"{name}/{term}"] = heads[name].counts[term] if name in heads else 0.0
        return Batch(
            ids_BL=self._pad(ids, self.pad_id, length),
            mask_BL=self._pad([[1] * len(s.ids) for s in samples], 0, length),
            learn_K=torch.tensor([flat[row] + p for row, s in enumerate(samples) for p in s.learn], dtype=torch.long),
            label_K=torch.tensor(labels, dtype=torch.long),
            start_K=torch.tensor(is_start, dtype=torch.bool),
            open_K=torch.tensor(opens, dtype=torch.bool) if self.every_answer else None,
            extra=self._extra(samples, length),
            visual=self._visual(samples, ids, flat),
            heads=heads,
            prompts=prompts,
            counts=counts,
            sample_ids=[s.id for s in samples],
            words_BW=words,
            words_valid_BW=words_valid,
        )

    def _pad(self, rows: Sequence[Sequence[int]], value: int, length: int) -> Tensor:
        padded = torch.full((len(rows), length), value, dtype=torch.long)
        for i, row in enumerate(rows):
            start = length - len(row) if self.side == "left" else 0
            padded[i, start : start + len(row)] = torch.tensor(row, dtype=torch.long)
        return padded

    def _extra(self, samples: Sequence[Prepared], length: int) -> Tensors:
        keys = sorted({key for s in samples for key in s.extra})
        return {key: self._pad([s.extra.get(key, [0] * len(s.ids)) for s in samples], 0, length) for key in keys}

    def _number_prompts(self, samples: Sequence[Prepared]) -> tuple[list[list[int]], dict[str, Tensors]]:
        """Give every spatial prompt of the batch an id behind the vocabulary, heads in order of name."""
        ids = [list(s.ids) for s in samples]
        number = self.vocabulary.prompt_base
        stacked: dict[str, Tensors] = {}
        for name in self.vocabulary.names:
            tensors = []
            for row, sample in enumerate(samples):
                for position, head, prompt in sample.prompts:
                    if head == name:
                        ids[row][position] = number
                        number += 1
                        tensors.append(prompt)
            if tensors:
                stacked[name] = stack_rows(tensors, self.codecs[name].ragged)
        return ids, stacked

    def _visual(self, samples: Sequence[Prepared], ids: Sequence[Sequence[int]], flat: Sequence[int]) -> VisualBatch | None:
        media = [(rows, key) for s in samples for rows, key in zip(s.rows, s.keys, strict=True)]
        if not media:
            return None
        positions = self._token_positions(ids, flat)
        visual = [s.visual for s in samples if s.visual]
        images = sum(rows.count for rows, _ in media if not rows.video)
        index, offset = [], {False: 0, True: images}
        for rows, _ in media:
            index.append(rows.rows_TP + offset[rows.video])
            offset[rows.video] += rows.count
        self._check_counts(positions, images, offset[True] - images)
        return VisualBatch(
            tensors=self.layout.join(visual) if visual else {},
            rows_MTP=_pad_rows(index),
            positions=positions,
            time_MT2=_pad_times([rows for rows, _ in media]),
            grid_M2=torch.tensor([rows.grid for rows, _ in media]),
            keys=[key for _, key in media],
        )

    def _token_positions(self, ids: Sequence[Sequence[int]], flat: Sequence[int]) -> Tensors:
        positions: Tensors = {}
        for name, token in (("image", self.layout.image_id), ("video", self.layout.video_id)):
            found = [flat[row] + p for row, sample in enumerate(ids) for p, value in enumerate(sample) if value == token]
            if found:
                positions[name] = torch.tensor(found, dtype=torch.long)
        return positions

    def _check_counts(self, positions: Tensors, images: int, videos: int) -> None:
        found = tuple(len(positions[key]) if key in positions else 0 for key in ("image", "video"))
        assert found == (images, videos), f"layout {self.layout.name} counts {(images, videos)} vision tokens, the text holds {found}"

    def _heads(self, samples: Sequence[Prepared], flat: Sequence[int]) -> dict[str, HeadBatch]:
        first_medium = np.cumsum([0, *(len(s.rows) for s in samples)])
        heads = {}
        for name in self.vocabulary.names:
            found = [(row, query) for row, s in enumerate(samples) for query in s.queries if query.head == name]
            if found:
                heads[name] = self._head(name, found, samples, flat, first_medium)
        return heads

    def _head(
        self,
        name: str,
        found: Sequence[tuple[int, PreparedQuery]],
        samples: Sequence[Prepared],
        flat: Sequence[int],
        first_medium: np.ndarray,
    ) -> HeadBatch:
        codec = self.codecs[name]
        media = sorted({(row, query.media) for row, query in found})
        where = {pair: i for i, pair in enumerate(media)}
        words, words_valid = pad_positions([[flat[row] + p for p in query.words] for row, query in found])
        prompts, prompted = _stack_prompts([query.prompt for _, query in found], codec.ragged)
        return HeadBatch(
            position_NS=torch.tensor([[flat[row] + p for p in query.slots] for row, query in found], dtype=torch.long),
            media_N=torch.tensor([where[row, query.media] for row, query in found], dtype=torch.long),
            media_K=torch.tensor([int(first_medium[row]) + index for row, index in media], dtype=torch.long),
            words_NW=words,
            words_valid_NW=words_valid,
            sample_N=[row for row, _ in found],
            inputs=stack_rows([samples[row].inputs[name][index] for row, index in media], codec.ragged),
            targets=stack_rows([query.encoded for _, query in found], codec.ragged),
            counts={term: float(sum(query.counts[term] for _, query in found)) for term in codec.terms},
            prompts=prompts,
            prompted_N=prompted,
        )


def pad_positions(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Return positions (N, longest) padded with 0, and which of them are real; at least one column."""
    longest = max([1, *(len(row) for row in rows)])
    positions = torch.zeros(len(rows), longest, dtype=torch.long)
    valid = torch.zeros(len(rows), longest, dtype=torch.bool)
    for i, row in enumerate(rows):
        positions[i, : len(row)] = torch.tensor(row, dtype=torch.long)
        valid[i, : len(row)] = True
    return positions, valid


def _stack_prompts(prompts: Sequence[Tensors | None], ragged: frozenset[str]) -> tuple[Tensors, Tensor]:
    given = torch.tensor([prompt is not None for prompt in prompts])
    example = next((prompt for prompt in prompts if prompt is not None), None)
    if example is None:
        return {}, given
    empty = {key: torch.zeros_like(value) for key, value in example.items()}
    return stack_rows([prompt if prompt is not None else empty for prompt in prompts], ragged), given


def _pad_rows(index: Sequence[np.ndarray]) -> Tensor:
    steps, tokens = max(i.shape[0] for i in index), max(i.shape[1] for i in index)
    rows = torch.full((len(index), steps, tokens), -1, dtype=torch.long)
    for m, one in enumerate(index):
        rows[m, : one.shape[0], : one.shape[1]] = torch.from_numpy(one)
    return rows


def _in_turn(rows_MTP: Tensor, samples: Sequence[Prepared]) -> Tensor:
    """Number frames and tokens of all media one after the other, -1 on padding."""
    out, offset = torch.full_like(rows_MTP, -1), 0
    for medium, one in enumerate(rows for sample in samples for rows in sample.rows):
        steps, tokens = one.rows_TP.shape
        index = torch.arange(offset, offset + steps * tokens).view(steps, tokens)
        out[medium, :steps, :tokens] = torch.where(torch.from_numpy(one.rows_TP) >= 0, index, -1)
        offset += steps * tokens
    return out


def _pad_times(media: Sequence[MediumRows]) -> Tensor:
    times = torch.zeros(len(media), max(m.rows_TP.shape[0] for m in media), 2)
    for i, medium in enumerate(media):
        times[i, : len(medium.time_T2)] = torch.from_numpy(medium.time_T2)
    return times
