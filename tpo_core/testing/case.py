"""One head under test: its classes, its example targets on media in memory, and small batches of queries made from them.

Legend: see `tpo_core.types`; a *pick* is the number of a query of the case.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from tpo_core.contract import HeadConfig, HeadSpec, examples_of, prompts_of
from tpo_core.head import Codec, Head
from tpo_core.media import frame_ends, sample_frames
from tpo_core.plugins import LoadedHead, resolve_head
from tpo_core.stack import stack_rows
from tpo_core.testing.media import clip_for, is_of_clip, picture_for
from tpo_core.testing.report import CheckFailed
from tpo_core.types import BackboneView, ClipView, FrameFeatures, Media, Queries, Target, Tensors, Widths

VIEW = BackboneView(model_type="toy", frames=6, temporal_patch=1, feature_dim=40, hidden=48)
"""A backbone for the checks. Language width and feature width differ, so that a head that confuses them is seen."""

PATCHES = (3, 5)
"""(rows, columns) of the vision tokens of a frame: not square."""

MediaOf = Callable[[Target], Media]


@dataclass(frozen=True)
class Row:
    """One query: the example it comes from, and what the codec encoded."""

    example: int
    encoded: Tensors


@dataclass(frozen=True)
class Small:
    """A batch of a few queries, with their targets stacked. `clips` are the queries' views, for decoding."""

    queries: Queries
    targets: Tensors
    clips: tuple[ClipView, ...]

    def __len__(self) -> int:
        return len(self.queries)


class Case:
    """What the checks of one head share; every piece is made when first used.

    Args:
        spec: the card.
        config: default: the config class without arguments.
        media_of: the medium of an example target; default: in memory, sized by the target.
        module: the module that announces the card; default: found among the installed plugins.
    """

    def __init__(
        self, spec: HeadSpec, *, config: HeadConfig | None = None, media_of: MediaOf | None = None, module: str | None = None
    ) -> None:
        self.spec = spec
        self.module = module
        self._config = config
        self._media_of = media_of
        self._rows: dict[bool, list[Row]] = {}

    @cached_property
    def loaded(self) -> LoadedHead:
        return resolve_head(self.spec, self.spec.head.split(".")[0], "under test")

    @cached_property
    def config(self) -> HeadConfig:
        return self.loaded.config() if self._config is None else self._config

    @cached_property
    def codec(self) -> Codec[Any]:
        return self.loaded.codec(self.config, VIEW)

    @cached_property
    def examples(self) -> list[Target]:
        return examples_of(self.spec)

    @cached_property
    def prompts(self) -> list[Target]:
        return prompts_of(self.spec)

    @cached_property
    def media(self) -> list[Media]:
        """One medium per example."""
        return [self._medium(target, seed) for seed, target in enumerate(self.examples)]

    @cached_property
    def prompt_media(self) -> list[Media]:
        """One medium per example prompt."""
        return [self._medium(prompt, 50 + number) for number, prompt in enumerate(self.prompts)]

    def clip(self, example: int, *, training: bool, annotated: bool = True) -> ClipView:
        """Return an example's medium as the codec sees it in training, in evaluation, or (not annotated) at prediction."""
        medium = self.media[example]
        frames = sample_frames(medium, VIEW.frames if medium.kind == "video" else 1)
        targets = (self.examples[example],) if annotated else ()
        return ClipView(medium, targets, training=training, seed=(11, example), frame_indices=frames)

    def prompt_clip(self, prompt: int) -> ClipView:
        """Return the medium of an example prompt as the codec sees it, at prediction."""
        medium = self.prompt_media[prompt]
        return ClipView(medium, seed=(12, prompt), frame_indices=sample_frames(medium, VIEW.frames if medium.kind == "video" else 1))

    def rows(self, *, training: bool) -> list[Row]:
        """Return at least three queries, those of different examples first; examples without a query are left out.

        Raises:
            CheckFailed: no example gives a query.
        """
        if training in self._rows:
            return self._rows[training]
        by_example = [self.codec.encode(t, self.clip(i, training=training)) for i, t in enumerate(self.examples)]
        longest = max((len(encoded) for encoded in by_example), default=0)
        rows = [Row(i, encoded[k]) for k in range(longest) for i, encoded in enumerate(by_example) if k < len(encoded)]
        if not rows:
            raise CheckFailed(
                "Codec.encode gave no query for any example; give the card at least one example target that has something to find"
            )
        self._rows[training] = (rows * 3)[: max(len(rows), 3)]
        return self._rows[training]

    def head(self, seed: int = 0) -> Head[Any]:
        """Return a fresh head; the global generator is left as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.loaded.head(self.config, Widths(hidden=VIEW.hidden, features=VIEW.feature_dim, words=VIEW.hidden))

    def small(
        self,
        picks: Sequence[int],
        *,
        training: bool = False,
        shift: Mapping[int, int] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Small:
        """Return a batch of these queries, as core would hand them to the head.

        Args:
            picks: numbers of queries.
            training: whether the codec sees a training view.
            shift: place in the batch -> another query whose target and random states stand there instead (its medium stays).
        """
        rows = self.rows(training=training)
        chosen = [rows[pick % len(rows)] for pick in picks]
        sources = [(shift or {}).get(place, pick) for place, pick in enumerate(picks)]
        media = sorted({row.example for row in chosen})
        clips = {example: self.clip(example, training=training) for example in media}
        inputs = stack_rows([self.codec.inputs(clips[example]) for example in media], self.codec.ragged)
        words_NWD, valid_NW = _pad_words([_words(source) for source in sources])
        queries = Queries(
            states_NSD=torch.stack([_noise((self.config.slots, VIEW.hidden), 100 + source) for source in sources]).to(dtype),
            media_N=torch.tensor([media.index(row.example) for row in chosen]),
            words_NWD=words_NWD.to(dtype),
            words_valid_NW=valid_NW,
            features=self._features(media, dtype) if self.codec.needs_features else None,
            inputs=inputs,
            prompts={},
            prompted_N=torch.zeros(len(picks), dtype=torch.bool),
        )
        targets = stack_rows([rows[source % len(rows)].encoded for source in sources], self.codec.ragged)
        return Small(queries, targets, tuple(clips[row.example] for row in chosen))

    def features(self, example: int, frames: Sequence[int], dtype: torch.dtype = torch.float32) -> FrameFeatures:
        """Return vision features of these frames of one example's medium, (1, T, P, V)."""
        medium = self.media[example]
        ends = frame_ends(medium)
        time_T2 = torch.tensor([[float(medium.times[i]), float(ends[i])] for i in frames])
        rows, columns = PATCHES
        frames_TPV = torch.stack([_noise((rows * columns, VIEW.feature_dim), 1000 * (example + 1) + index) for index in frames])
        valid = torch.ones(1, len(frames), rows * columns, dtype=torch.bool)
        return FrameFeatures(frames_TPV[None].to(dtype), valid, time_T2[None], torch.tensor([PATCHES]))

    def _features(self, media: Sequence[int], dtype: torch.dtype) -> FrameFeatures:
        """Stack the features of some examples' media, shorter ones padded with zeros."""
        parts = [self.features(example, self.clip(example, training=False).frame_indices, dtype) for example in media]
        steps = max(part.frames_MTPV.shape[1] for part in parts)
        return FrameFeatures(
            torch.cat([_pad_steps(part.frames_MTPV, steps) for part in parts]),
            torch.cat([_pad_steps(part.valid_MTP, steps) for part in parts]),
            torch.cat([_pad_steps(part.time_MT2, steps) for part in parts]),
            torch.cat([part.grid_M2 for part in parts]),
        )

    def _medium(self, target: Target, seed: int) -> Media:
        """Return a medium that the codec works on: a clip for what only a clip has, else a picture unless it is refused."""
        if self._media_of is not None:
            return self._media_of(target)
        kinds = self.codec.kinds
        if "image" not in kinds or (is_of_clip(target) and "video" in kinds):
            return clip_for(target, seed)
        picture = picture_for(target, seed)
        if "video" not in kinds:
            return picture
        try:
            self.codec.check(target, picture)
        except ValueError:
            return clip_for(target, seed)
        return picture


def _noise(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _words(source: int) -> Tensor:
    return _noise((3 + source % 3, VIEW.hidden), 500 + source)


def _pad_words(words: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    stacked = stack_rows([{"words": word} for word in words], frozenset({"words"}))
    return stacked["words"], stacked["words_valid"]


def _pad_steps(tensor_MT: Tensor, steps: int) -> Tensor:
    missing = tensor_MT.new_zeros((tensor_MT.shape[0], steps - tensor_MT.shape[1], *tensor_MT.shape[2:]))
    return torch.cat([tensor_MT, missing], dim=1)
