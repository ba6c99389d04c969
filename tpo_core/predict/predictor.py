"""Questions -> predictions: the way of a training sample, with generation in place of the teacher-forced pass.

Legend: N queries, S slots, D width, W words, K media, R vision rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tpo_core.backbone import LoadedMedium, merged_rows
from tpo_core.data.records import Record
from tpo_core.errors import TPOError
from tpo_core.media import frame_ends
from tpo_core.model import EmittedQuery, GeneratedRow, GenerationOptions, gather_features, generate
from tpo_core.model.build import Assembly
from tpo_core.predict.answers import HeadAnswer, Prediction
from tpo_core.prepare.sample import Loaded, Prepared
from tpo_core.stack import stack_rows
from tpo_core.types import Batch, Chunk, FrameFeatures, Media, Queries, Tensors, VisualBatch


@dataclass(frozen=True)
class _Asked:
    """One question on its way: prepared, its media, and the number of its first medium in the batch."""

    prepared: Prepared
    loaded: Loaded
    first_medium: int


class Predictor:
    """Answers questions with a built model.

    Args:
        assembly: from `build_model` or a loaded run.
    """

    def __init__(self, assembly: Assembly) -> None:
        self.assembly = assembly
        self.model = assembly.model

    @torch.no_grad()
    def predict(self, questions: Sequence[Record], *, root: Path, options: GenerationOptions | None = None) -> list[Prediction]:
        """Answer a batch of questions (records that end with the user's turn), each independently of the others.

        Args:
            questions: see `tpo_core.prepare.question`.
            root: folder that media paths are relative to.
            options: of the generation.

        Raises:
            DataError: a medium or a prompt is wrong; nothing was generated.
        """
        self.model.eval()
        prepared = [self.assembly.preparer.question(record, root=root) for record in questions]
        firsts = [sum(len(p.rows) for p, _ in prepared[:i]) for i in range(len(prepared))]
        asked = [_Asked(p, loaded, first) for (p, loaded), first in zip(prepared, firsts, strict=True)]
        batch = self.assembly.collator("left")([a.prepared for a in asked]).to(self.model.backbone.device)
        able = [self._able(a.loaded) for a in asked]
        out = generate(self.model, batch, options or GenerationOptions(), able=able)
        return [self._answer(one, row, batch, out.vision_RV) for one, row in zip(asked, out.rows, strict=True)]

    def _answer(self, asked: _Asked, row: GeneratedRow, batch: Batch, vision_RV: Tensor | None) -> Prediction:
        groups = _groups(row, {name: self.model.vocabulary.slots[name] for name in self.model.vocabulary.names})
        answers: list[HeadAnswer | None] = [None] * len(groups)
        for head in sorted({group[0].head for group in groups}):
            mine = [i for i, group in enumerate(groups) if group[0].head == head]
            index = self._medium_of(head, asked.loaded)
            queries = [query for i in mine for query in groups[i]]
            decoded = iter(self._run_head(head, queries, asked, index, row, batch, vision_RV))
            for i in mine:
                found = tuple(next(decoded) for _ in groups[i])
                with self.assembly.heads[head].blame():
                    answers[i] = HeadAnswer(head, index, found, self.assembly.codecs[head].describe(found))
        done = tuple(answer for answer in answers if answer is not None)
        text, words = self._text(row, groups, done)
        frames = dict(enumerate(asked.loaded.indices))
        return Prediction(text=text, words=words, heads=done, ids=tuple(row.ids), frames=frames)

    def _able(self, loaded: Loaded) -> frozenset[str]:
        """Return the heads that work on some medium of the question: only those may be called."""
        kinds = {medium.kind for medium in loaded.media}
        return frozenset(name for name, codec in self.assembly.codecs.items() if kinds & codec.kinds)

    def _medium_of(self, head: str, loaded: Loaded) -> int:
        """Return the last medium that the head works on."""
        kinds = self.assembly.codecs[head].kinds
        return max(i for i, medium in enumerate(loaded.media) if medium.kind in kinds)

    def _run_head(
        self,
        head: str,
        emitted: Sequence[EmittedQuery],
        asked: _Asked,
        index: int,
        row: GeneratedRow,
        batch: Batch,
        vision_RV: Tensor | None,
    ) -> list[dict[str, Any]]:
        codec = self.assembly.codecs[head]
        slot = self.model.slot(head)
        clip = self.assembly.preparer.view(head, asked.loaded, index)
        features = None
        if head in self.model.needs_features and batch.visual is not None and vision_RV is not None:
            medium = torch.tensor([asked.first_medium + index], device=vision_RV.device)
            features = gather_features(vision_RV, batch.visual, medium)
        queries = self._queries(head, emitted, asked.prepared, row.words_WD, features)
        chunks = self._chunks(head, codec.chunks(clip), asked.loaded.media[index])
        answers: list[list[dict[str, Any]]] = [[] for _ in emitted]
        with slot.blame():
            for output in slot.head.stream(queries, chunks):
                for i in range(len(emitted)):
                    answers[i].append(codec.decode({key: value[i].cpu() for key, value in output.items()}, clip))
            return [codec.merge(pieces, clip) for pieces in answers]

    def _queries(
        self, head: str, emitted: Sequence[EmittedQuery], prepared: Prepared, words_WD: Tensor, features: FrameFeatures | None
    ) -> Queries:
        n, device = len(emitted), words_WD.device
        width = max(1, words_WD.shape[0])
        words = words_WD.new_zeros(n, width, words_WD.shape[1])
        words[:, : words_WD.shape[0]] = words_WD
        valid = torch.zeros(n, width, dtype=torch.bool, device=device)
        valid[:, : words_WD.shape[0]] = True
        given = [tensors for _, name, tensors in prepared.prompts if name == head]
        prompts, prompted = self._prompts(head, given, n, device)
        return Queries(
            states_NSD=torch.stack([query.states_SD for query in emitted]),
            media_N=torch.zeros(n, dtype=torch.long, device=device),
            words_NWD=words,
            words_valid_NW=valid,
            features=features,
            prompts=prompts,
            prompted_N=prompted,
        )

    def _prompts(self, head: str, given: Sequence[Tensors], n: int, device: torch.device) -> tuple[Tensors, Tensor]:
        """The question's spatial prompts belong to the head's queries in their order; queries beyond them have none."""
        prompted = torch.tensor([i < len(given) for i in range(n)], device=device)
        if not given:
            return {}, prompted
        empty = {key: torch.zeros_like(value) for key, value in given[0].items()}
        rows = [given[i] if i < len(given) else empty for i in range(n)]
        stacked = stack_rows(rows, self.assembly.codecs[head].ragged)
        return {key: value.to(device) for key, value in stacked.items()}, prompted

    def _chunks(self, head: str, chunks: Iterator[Chunk], media: Media) -> Iterator[Chunk]:
        """Put a batch dimension of one medium on each chunk, move it, and encode the frames that it asks for."""
        device = self.model.backbone.device
        ragged = self.assembly.codecs[head].ragged
        for chunk in chunks:
            inputs = stack_rows([chunk.inputs], ragged) if chunk.inputs else {}
            features = chunk.features
            if chunk.frame_indices:
                features = self.encode_frames(media, chunk.frame_indices)
            yield Chunk({key: value.to(device) for key, value in inputs.items()}, chunk.frame_indices, features)

    def encode_frames(self, media: Media, indices: Sequence[int]) -> FrameFeatures:
        """Decode and encode some frames of a medium, as the language model would see them: features (1, T, P, V)."""
        layout, backbone = self.assembly.preparer.layout, self.model.backbone
        ends = frame_ends(media)
        medium = LoadedMedium(
            kind=media.kind,
            frames=media.frames(indices),
            starts=tuple(float(media.times[i]) for i in indices),
            ends=tuple(float(ends[i]) for i in indices),
            duration=media.duration,
        )
        message = {"role": "user", "content": [*layout.message_parts(medium), {"type": "text", "text": "."}]}
        text = layout.processor.apply_chat_template([message], tokenize=False)
        encoded = layout.process(text, [medium])
        (rows,) = layout.rows(encoded, [medium])
        tensors = {key: value.to(backbone.device) for key, value in layout.join([encoded.visual]).items()}
        flat = merged_rows(backbone.encode(tensors))
        if flat is None:
            raise TPOError(
                f"layout {layout.name!r} cannot encode frames apart from a prompt, which long videos need; "
                "announce a layout for this family (hook tpo_backbones), or use a shorter clip"
            )
        visual = VisualBatch(
            tensors={},
            rows_MTP=torch.from_numpy(rows.rows_TP)[None].to(flat.device),
            positions={},
            time_MT2=torch.from_numpy(rows.time_T2)[None].to(flat.device),
            grid_M2=torch.tensor([rows.grid]),
        )
        return gather_features(flat, visual, torch.zeros(1, dtype=torch.long, device=flat.device))

    def _text(self, row: GeneratedRow, groups: Sequence[Sequence[EmittedQuery]], answers: Sequence[HeadAnswer]) -> tuple[str, str]:
        """Return the text with the answers in their places, and the words alone."""
        rows, tokenizer = self.model.vocabulary.rows, self.assembly.preparer.processor.tokenizer
        places = {group[0].position: answer for group, answer in zip(groups, answers, strict=True)}
        full: list[str] = []
        plain: list[str] = []
        run: list[int] = []

        def flush() -> None:
            if run:
                words = tokenizer.decode(run, skip_special_tokens=True)
                full.append(words)
                plain.append(words)
                run.clear()

        for position, token in enumerate(row.ids):
            if token < rows:
                run.append(token)
            elif position in places:
                flush()
                full.append(f"[{places[position].head}: {places[position].text}]")
        flush()
        return "".join(full).strip(), "".join(plain).strip()


def _groups(row: GeneratedRow, slots: dict[str, int]) -> list[list[EmittedQuery]]:
    """Queries of one head that follow each other without a word between them answer one target."""
    groups: list[list[EmittedQuery]] = []
    for query in row.queries:
        previous = groups[-1][-1] if groups else None
        if previous is not None and previous.head == query.head and previous.position + 1 + slots[query.head] == query.position:
            groups[-1].append(query)
        else:
            groups.append([query])
    return groups
