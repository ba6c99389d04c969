"""One record -> one prepared sample (in a data worker): media decoded once, ids, labels, and what each head's codec encodes.

Legend: S slots of a query, L positions, M media of the sample in reading order.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tpo_core.backbone.layout import Layout, LoadedMedium, MediumRows
from tpo_core.data.records import Part, Record
from tpo_core.errors import DataError
from tpo_core.head import Codec
from tpo_core.media import frame_ends, open_media, sample_frames
from tpo_core.prepare.chat import ChatReader, Tokenised, mark_answer, mark_words
from tpo_core.prepare.kept import KeptSample, read_note, write_note
from tpo_core.router.vocabulary import RESERVED, TaskVocabulary
from tpo_core.types import ClipView, Media, Target, Tensors


@dataclass(frozen=True)
class PreparedQuery:
    """One token group: where it stands and what the codec encoded for it."""

    head: str
    target: str
    media: int
    start: int
    slots: tuple[int, ...]
    words: tuple[int, ...]
    encoded: Tensors
    counts: Mapping[str, float]
    prompt: Tensors | None = None


@dataclass(frozen=True)
class Prepared:
    """A sample ready for collation; plain tensors and lists, so that it travels between processes."""

    id: str
    ids: list[int]
    extra: dict[str, list[int]]
    learn: list[int]
    labels: list[int]
    visual: Tensors
    rows: list[MediumRows]
    keys: list[str]
    queries: list[PreparedQuery] = field(default_factory=list)
    inputs: dict[str, dict[int, Tensors]] = field(default_factory=dict)
    prompts: list[tuple[int, str, Tensors]] = field(default_factory=list)
    opens: list[int] = field(default_factory=list)
    words: list[int] = field(default_factory=list)
    name: str = ""
    note: str = ""
    kept: KeptSample | None = None


@dataclass(frozen=True)
class _Processed:
    """A sample as processor and reader left it."""

    read: Tokenised
    rows: list[MediumRows]
    visual: Tensors


@dataclass(frozen=True)
class Loaded:
    """The media of one record, opened, and how each head's codec sees them."""

    media: list[Media]
    indices: list[tuple[int, ...]]
    medium: list[LoadedMedium]


class SamplePreparer:
    """Records -> prepared samples, for one backbone and a set of heads. Picklable; opens files lazily.

    Args:
        processor, layout: of the backbone.
        vocabulary: ids and strings of the task tokens.
        codecs: head name -> codec.
        frames: how many frames of a video the language model sees.
        max_length: longest sample in tokens; a longer one is refused (never cut).
        closing: ids that close an assistant turn.
        seed: of the run, for the codecs' draws.
        allow_outside_root: whether media may lie outside the data's folder.
    """

    def __init__(
        self,
        *,
        processor: Any,
        layout: Layout,
        vocabulary: TaskVocabulary,
        codecs: Mapping[str, Codec[Any]],
        frames: int,
        max_length: int,
        closing: frozenset[int],
        seed: int = 0,
        allow_outside_root: bool = False,
    ) -> None:
        self.processor = processor
        self.layout = layout
        self.vocabulary = vocabulary
        self.codecs = dict(codecs)
        self.frames = frames
        self.max_length = max_length
        self.seed = seed
        self.allow_outside_root = allow_outside_root
        self.reader = ChatReader(processor, vocabulary, closing)
        added = processor.tokenizer.added_tokens_decoder.values()
        self._reserved = sorted(token.content for token in added if token.special and not token.content.startswith(RESERVED))

    def training(self, record: Record, *, root: Path, seed: tuple[int, ...], name: str = "", kept: KeptSample | None = None) -> Prepared:
        """Prepare a whole conversation with its targets.

        Args:
            record: the conversation.
            root: folder that media paths are relative to.
            seed: drawn from (sample, epoch), for random draws of codecs.
            name: under which its states are to be kept, if they are.
            kept: its states, from an earlier epoch; then no medium is decoded for the language model.

        Raises:
            DataError: one sentence: what is wrong with the record, its media or its targets.
        """
        loaded = self.load_media(record, root, decode=kept is None)
        views = self._views(record, loaded, seed, training=True)
        encoded = {t.id: self._encode(t, loaded, views) for t in record.targets if t.role == "answer"}
        groups = {key: len(value) for key, value in encoded.items()}
        keys = [medium.key for medium in loaded.media]
        if kept is not None:
            note = read_note(kept.note)
            if (note.groups, note.keys) != (groups, keys):
                # The codec drew another number of tokens this time, or the file has changed.
                return self.training(record, root=root, seed=seed)
            whole = self._assemble(record, _Processed(note.read, note.rows, {}), keys, views, encoded)
            return replace(whole, name=name, note=kept.note, kept=kept)
        processed = self._process(self.render(record, loaded, groups, generation=False), loaded)
        whole = self._assemble(record, processed, keys, views, encoded)
        return replace(whole, name=name, note=write_note(processed.read, processed.rows, keys, groups)) if name else whole

    def question(self, record: Record, *, root: Path) -> tuple[Prepared, Loaded]:
        """Prepare a conversation that ends with the user's turn, for generation; targets in its history are filled, not answered again."""
        loaded = self.load_media(record, root)
        views = self._views(record, loaded, (0,), training=False)
        groups = {t.id: self._history_groups(t) for t in record.targets if t.role == "answer"}
        text = self.render(record, loaded, groups, generation=True)
        keys = [medium.key for medium in loaded.media]
        return self._assemble(record, self._process(text, loaded), keys, views, {}), loaded

    def load_media(self, record: Record, root: Path, *, decode: bool = True) -> Loaded:
        """Open every medium of a record and decode the frames that the language model sees (or none)."""
        media, indices, loaded = [], [], []
        for part in record.media_parts():
            medium = self._open(part, root)
            chosen = sample_frames(medium, self.frames if medium.kind == "video" else 1)
            ends = frame_ends(medium)
            media.append(medium)
            indices.append(chosen)
            loaded.append(
                LoadedMedium(
                    kind=medium.kind,
                    frames=medium.frames(chosen if decode else ()),
                    starts=tuple(float(medium.times[i]) for i in chosen),
                    ends=tuple(float(ends[i]) for i in chosen),
                    duration=medium.duration,
                )
            )
        return Loaded(media, indices, loaded)

    def view(self, head: str, loaded: Loaded, index: int, *, targets: Sequence[Target] = (), seed: tuple[int, ...] = (0,)) -> ClipView:
        """Return how a head's codec sees one medium; with targets it is a training view."""
        return ClipView(
            media=loaded.media[index],
            targets=tuple(targets),
            training=bool(targets),
            seed=(self.seed, *seed, index, zlib.crc32(head.encode())),
            frame_indices=loaded.indices[index],
        )

    def render(self, record: Record, loaded: Loaded, groups: Mapping[str, int], *, generation: bool) -> str:
        """Return the chat text with media placeholders, task strings and markers.

        Args:
            groups: target id -> token groups that stand for it; 0 is answered in words.
            generation: whether the assistant's next turn is opened at the end.
        """
        targets = {t.id: t for t in record.targets}
        queue = [self.layout.message_parts(medium) for medium in loaded.medium]
        messages = []
        for message in record.messages:
            parts: list[dict[str, str]] = []
            for part in message.content:
                if part.type in ("image", "video"):
                    parts += queue.pop(0)
                elif part.type == "text":
                    parts.append({"type": "text", "text": self._plain(part.text or "", message.role)})
                else:
                    parts.append({"type": "text", "text": self._target_text(targets[part.id or ""], targets, groups)})
            messages.append({"role": message.role, "content": _merge_text(parts, message.role)})
        text: str = self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation)
        return text

    def _open(self, part: Part, root: Path) -> Media:
        if part.path is None:
            raise DataError(f"the {part.type} part has no path; name the file relative to the data's folder")
        return open_media(
            path=part.path,
            kind="image" if part.type == "image" else "video",
            root=root,
            start=part.start,
            end=part.end,
            frames=part.frames,
            fps=part.fps,
            allow_outside_root=self.allow_outside_root,
        )

    def _plain(self, text: str, role: str) -> str:
        found = next((token for token in (RESERVED, *self._reserved) if token in text), None)
        if found is not None:
            raise DataError(f"the {role}'s text holds {found!r}, which is a token of the model; write media and targets as content parts")
        return mark_words(text) if role == "user" and text else text

    def _target_text(self, target: Target, targets: Mapping[str, Target], groups: Mapping[str, int]) -> str:
        if target.role == "prompt":
            return self.vocabulary.prompt_text(self._prompt_head(target, targets))
        head = target.head or ""
        count = groups[target.id]
        return self.vocabulary.group_text(head) * count if count else self.codecs[head].absent

    def _prompt_head(self, prompt: Target, targets: Mapping[str, Target]) -> str:
        served = targets.get(prompt.serves or "")
        head = prompt.head or (served.head if served else None)
        if head not in self.codecs:
            raise DataError(f"prompt {prompt.id!r} serves head {head!r}, which this run has not; it has {', '.join(sorted(self.codecs))}")
        return head

    def _history_groups(self, target: Target) -> int:
        self._known_head(target)
        return 1

    def _known_head(self, target: Target) -> str:
        if target.head not in self.codecs:
            known = ", ".join(sorted(self.codecs))
            raise DataError(
                f"target {target.id!r} is for head {target.head!r}; this run has {known}: install or name the head, or leave the row out"
            )
        return target.head

    def _views(self, record: Record, loaded: Loaded, seed: tuple[int, ...], *, training: bool) -> dict[tuple[str, int], ClipView]:
        views: dict[tuple[str, int], ClipView] = {}
        wanted: dict[tuple[str, int], list[Target]] = {}
        by_id = {t.id: t for t in record.targets}
        for target in record.targets:
            if target.media >= len(loaded.media):
                raise DataError(f"target {target.id!r} is on medium {target.media}, but the record has {len(loaded.media)}")
            head = self._prompt_head(target, by_id) if target.role == "prompt" else self._known_head(target)
            group = wanted.setdefault((head, target.media), [])
            if target.role == "answer" and training:
                group.append(target)
        for (head, index), targets in wanted.items():
            views[head, index] = self.view(head, loaded, index, targets=targets, seed=(*seed, zlib.crc32(record.id.encode())))
        return views

    def _encode(self, target: Target, loaded: Loaded, views: Mapping[tuple[str, int], ClipView]) -> list[Tensors]:
        head = self._known_head(target)
        codec = self.codecs[head]
        medium = loaded.media[target.media]
        if medium.kind not in codec.kinds:
            raise DataError(
                f"target {target.id!r} ({head}) is on a medium of kind {medium.kind!r}; it works on {', '.join(sorted(codec.kinds))}"
            )
        try:
            if codec.schema is not None:
                codec.schema.model_validate(target.fields())
            codec.check(target, medium)
            return codec.encode(target, views[head, target.media])
        except ValueError as error:
            raise DataError(f"target {target.id!r} ({head}): {_sentence(error)}") from error

    def _process(self, text: str, loaded: Loaded) -> _Processed:
        raw = self.layout.process(text, loaded.medium)
        read = self.reader.read(raw.ids, raw.extra)
        if len(read.ids) > self.max_length:
            raise DataError(
                f"the sample has {len(read.ids)} tokens, more than model.max_length = {self.max_length}; "
                "raise it, or use fewer frames or turns"
            )
        return _Processed(read, self.layout.rows(raw, loaded.medium), raw.visual)

    def _assemble(
        self,
        record: Record,
        processed: _Processed,
        keys: list[str],
        views: Mapping[tuple[str, int], ClipView],
        encoded: Mapping[str, list[Tensors]],
    ) -> Prepared:
        read = processed.read
        prompts = self._encode_prompts(record, views, read.prompts)
        queries = self._place_queries(record, encoded, read, {p[3]: p[2] for p in prompts})
        used = {(q.head, q.media) for q in queries}
        inputs: dict[str, dict[int, Tensors]] = {}
        for head, index in sorted(used):
            inputs.setdefault(head, {})[index] = self.codecs[head].inputs(views[head, index])
        return Prepared(
            id=record.id,
            ids=read.ids,
            extra=read.extra,
            learn=read.learn,
            labels=read.labels,
            visual=processed.visual,
            rows=processed.rows,
            keys=keys,
            queries=queries,
            inputs=inputs,
            prompts=[(position, head, tensors) for position, head, tensors, _ in prompts],
            opens=read.opens,
            words=read.words[-1] if read.words else [],
        )

    def _encode_prompts(
        self, record: Record, views: Mapping[tuple[str, int], ClipView], positions: Sequence[int]
    ) -> list[tuple[int, str, Tensors, str]]:
        by_id = {t.id: t for t in record.targets}
        order = [by_id[p.id or ""] for _, p in record.parts() if p.type == "target" and by_id[p.id or ""].role == "prompt"]
        out = []
        for position, prompt in zip(positions, order, strict=True):
            head = self._prompt_head(prompt, by_id)
            try:
                tensors = self.codecs[head].encode_prompt(prompt, views[head, prompt.media])
            except ValueError as error:
                raise DataError(f"prompt {prompt.id!r} ({head}): {_sentence(error)}") from error
            out.append((position, head, tensors, prompt.serves or ""))
        return out

    def _place_queries(
        self, record: Record, encoded: Mapping[str, list[Tensors]], read: Any, prompts: Mapping[str, Tensors]
    ) -> list[PreparedQuery]:
        if not encoded:
            return []
        by_id = {t.id: t for t in record.targets}
        order = [p.id or "" for _, p in record.parts() if p.type == "target" and by_id[p.id or ""].role == "answer"]
        starts = iter(read.starts)
        queries = []
        for target_id in order:
            target = by_id[target_id]
            head = self._known_head(target)
            for tensors in encoded[target_id]:
                start = next(starts)
                turn = read.turns[start]
                queries.append(
                    PreparedQuery(
                        head=head,
                        target=target_id,
                        media=target.media,
                        start=start,
                        slots=tuple(range(start + 1, start + 1 + self.vocabulary.slots[head])),
                        words=tuple(read.words[turn]) if turn >= 0 else (),
                        encoded=tensors,
                        counts=self.codecs[head].counts(tensors),
                        prompt=prompts.get(target_id),
                    )
                )
        return queries


def _merge_text(parts: Sequence[dict[str, str]], role: str) -> list[dict[str, str]]:
    merged: list[dict[str, str]] = []
    for part in parts:
        if part["type"] == "text" and merged and merged[-1]["type"] == "text":
            merged[-1] = {"type": "text", "text": merged[-1]["text"] + part["text"]}
        else:
            merged.append(dict(part))
    if role == "assistant":
        text = "".join(part.get("text", "") for part in merged)
        return [{"type": "text", "text": mark_answer(text)}]
    return merged


def _sentence(error: ValueError) -> str:
    errors = getattr(error, "errors", None)
    if errors is None:
        return str(error)
    first = errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}: {first['msg']}, found {str(first.get('input'))[:80]!r}"
