"""Between annotated windows (seconds) and the tensors of the temporal head.

Legend: T time steps, X annotated windows, S annotated saliency clips, W words, Q predicted windows.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from typing import Annotated, ClassVar, Self

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from tpo_core.head import Codec
from tpo_core.types import Answer, Chunk, ClipView, MediaInfo, Target, Tensors
from tpo_heads.temporal.config import TemporalConfig
from tpo_heads.temporal.files import read_clips, read_words, words_are_per_question
from tpo_heads.temporal.labels import DRAWS
from tpo_heads.temporal.timeline import cxw_to_xx
from tpo_heads.temporal.windows import Scored, frames_of_piece, merge_highlights, pieces, rank, suppress

FULL_SCORE = 12.0
"""What a clip's saliency amounts to when every rater gives the most, 4: the losses' levels count three raters."""
SURE = 0.5
"""From this score on, a window says that the moment is there."""
SLACK = 1e-3
"""Seconds that do not matter: containers round times to a millisecond."""

Span = tuple[float, float]


class Saliency(BaseModel):
    """Highlight scores as QVHighlights gives them: for some clips of equal length, one score 0-4 of each rater."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    clip_len: float = Field(gt=0, description="length of a clip in seconds")
    num_clips: int = Field(ge=1, description="clips of the video")
    clip_ids: list[Annotated[int, Field(ge=0)]] = Field(description="which clips were rated; the others count 0")
    scores: list[list[Annotated[float, Field(ge=0, le=4)]]] = Field(description="for each of them, one score of each rater")

    @model_validator(mode="after")
    def _scores_fit_the_clips(self) -> Self:
        if len(self.scores) != len(self.clip_ids):
            raise ValueError(f"{len(self.scores)} rows of scores for {len(self.clip_ids)} clip_ids; give one row for each clip")
        if len({len(row) for row in self.scores}) > 1 or [] in self.scores:
            raise ValueError("rows of scores differ in length or are empty; give one score of each rater for every clip")
        if self.clip_ids and max(self.clip_ids) >= self.num_clips:
            raise ValueError(f"clip_ids names clip {max(self.clip_ids)}, but there are {self.num_clips} clips, counted from 0")
        if len(set(self.clip_ids)) != len(self.clip_ids):
            raise ValueError("clip_ids names a clip twice; give each clip once")
        return self


class TemporalTarget(BaseModel):
    """The temporal head's fields of a target; further ones (``qid``, ...) may serve as parts of feature file names."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    spans: list[Span] = Field(description="[start, end] in seconds of the clip as cut; [] = it does not happen")
    duration: float | None = Field(None, gt=0, description="seconds of the clip as annotated")
    saliency: Saliency | None = Field(None, description="highlight scores of clips")
    distractors: list[Span] | None = Field(None, description="windows of other events, for the metric alone")


class TemporalCodec(Codec[TemporalConfig]):
    """One query per target; a target without a window is a query whose right answer is that nothing is there."""

    schema = TemporalTarget
    ragged = frozenset({"spans", "saliency", "clips", "clip_times", "words", "word_target"})
    kinds: ClassVar[frozenset[str]] = frozenset({"video"})

    @property
    def terms(self) -> tuple[str, ...]:
        return tuple(self.config.factors)

    def check(self, target: Target, media: MediaInfo) -> None:
        """Raise `ValueError` where the annotation does not fit the clip."""
        fields = TemporalTarget.model_validate(target.fields())
        if media.kind != "video":
            raise ValueError(f"a temporal target needs a video, but the medium is an {media.kind}; point `media` at a video")
        longest = max(media.duration, fields.duration or 0.0)
        slack = self.config.overrun * longest + SLACK
        if fields.duration is not None and abs(fields.duration - media.duration) > max(1.0, 0.1 * media.duration):
            raise ValueError(
                f"the annotated duration is {fields.duration:g} s, but the clip lasts {media.duration:g} s; "
                "correct `duration`, or the clip's start and end"
            )
        for index, (start, end) in enumerate(fields.spans):
            if end <= start:
                raise ValueError(f"window {index} [{start:g}, {end:g}] is empty or reversed; write [start, end] with start < end")
            if start < -SLACK or start >= media.duration or end > longest + slack:
                raise ValueError(
                    f"window {index} [{start:g}, {end:g}] lies outside the clip of {media.duration:g} s; write seconds of the clip as cut"
                )
        rated = fields.saliency
        if rated is not None and abs(rated.num_clips * rated.clip_len - longest) > max(rated.clip_len, 0.02 * longest):
            raise ValueError(
                f"saliency has {rated.num_clips} clips of {rated.clip_len:g} s, which is {rated.num_clips * rated.clip_len:g} s, "
                f"but the clip lasts {media.duration:g} s; correct num_clips or clip_len"
            )

    def inputs(self, clip: ClipView) -> Tensors:
        """Return ``window`` (2,) seconds, ``video`` () and, from files, ``clips`` (T, V), ``clip_times`` (T, 2) and words.

        Raises:
            ValueError: a feature file is missing or wrong.
        """
        # One file is one video, however it is cut: questions about it are not wrong questions for one another.
        digest = hashlib.blake2b(clip.media.path.encode("utf-8", "surrogateescape"), digest_size=8).digest()
        tensors: Tensors = {
            "window": torch.tensor([0.0, max(clip.media.duration, SLACK)], dtype=torch.float32),
            "video": torch.tensor(int.from_bytes(digest, "little", signed=True)),
        }
        if self.config.files is None or self.config.kind == "mlp":
            return tensors
        clips, times = read_clips(self.config.files, clip.media.path, clip.media.duration)
        return tensors | {"clips": torch.from_numpy(clips), "clip_times": torch.from_numpy(times)} | self._words(clip)

    def encode(self, target: Target, clip: ClipView) -> list[Tensors]:
        """Return one query: ``spans`` (X, 2), ``duration`` (), ``saliency`` (S,), ``clip_seconds`` (), ``draws`` (4,); times in seconds."""
        fields = TemporalTarget.model_validate(target.fields())
        duration = max(clip.media.duration, SLACK)
        rng = clip.rng()
        spans = np.clip(np.asarray(fields.spans, dtype=np.float64).reshape(-1, 2), 0, duration)
        spans = spans[spans[:, 1] > spans[:, 0]]
        if len(spans) > self.config.moment_queries:
            spans = spans[np.sort(rng.choice(len(spans), self.config.moment_queries, replace=False))]
        rated = fields.saliency
        levels = np.zeros(0 if rated is None else rated.num_clips)
        if rated is not None and rated.clip_ids:
            levels[rated.clip_ids] = np.asarray(rated.scores).mean(1) * (FULL_SCORE / 4)
        return [
            {
                "spans": torch.from_numpy(spans).float(),
                "duration": torch.tensor(duration, dtype=torch.float32),
                "saliency": torch.from_numpy(levels).float(),
                "clip_seconds": torch.tensor(0.0 if rated is None else rated.clip_len, dtype=torch.float32),
                "draws": torch.from_numpy(rng.random(DRAWS)).float(),
            }
        ]

    def counts(self, encoded: Tensors) -> dict[str, float]:
        """Return matched windows for ``span`` and ``giou``, 1 for the others; 0 for what a query without a moment cannot teach."""
        windows = float(min(len(encoded["spans"]), self.config.queries))
        moment = 1.0 if windows or bool((encoded["saliency"] > 0).any()) else 0.0
        counts = dict.fromkeys(self.terms, 1.0)
        for name in self.terms:
            if name.split("_")[0] in ("span", "giou"):
                counts[name] = windows
            elif name.startswith("align") or name == "distill":
                counts[name] = moment
        return counts

    def decode(self, output: Tensors, clip: ClipView) -> Answer:
        """Return ``{"windows": [[start, end, score], ..], "highlights": [[start, end, score], ..]}``, windows by falling score, seconds.

        Raises:
            ValueError: the output is not finite (the model has diverged).
        """
        span_Q2, score_Q = output["spans"].double(), output["logits"].double().softmax(-1)[:, 0]
        seconds_Q2 = cxw_to_xx(span_Q2) * output["length"].double() + output["origin"].double()
        if not bool(torch.isfinite(seconds_Q2).all() and torch.isfinite(score_Q).all()):
            raise ValueError("the temporal head gave windows that are not finite; the model has diverged")
        if self.config.saliency_rank > 0 and "saliency" in output:
            contrast_Q = window_contrast(seconds_Q2, output["steps"].double(), output["saliency"].double(), output["valid"].bool())
            score_Q = (torch.logit(score_Q, eps=1e-6) + self.config.saliency_rank * contrast_Q).sigmoid()
        if self.config.round_to > 0:
            seconds_Q2 = (seconds_Q2 / self.config.round_to).round() * self.config.round_to
        seconds_Q2 = seconds_Q2.clamp(0, clip.media.duration)
        scored = [[*window, score] for window, score in zip(seconds_Q2.tolist(), score_Q.tolist())]
        windows = rank([window for window in scored if window[1] > window[0] and window[2] > self.config.min_score])
        if self.config.nms is not None:
            windows = suppress(windows, self.config.nms)
        return {"windows": _rounded(windows), "highlights": self._highlights(output, clip)}

    def chunks(self, clip: ClipView) -> Iterator[Chunk]:
        """Yield the clip whole, or in overlapping windows where it is longer than ``window_seconds``."""
        parts = pieces(clip.media.duration, self.config.window_seconds, self.config.window_overlap)
        whole = self.inputs(clip)
        if len(parts) == 1 or self.config.kind == "mlp":
            yield Chunk(inputs=whole)
            return
        for start, end in parts:
            piece = whole | {"window": torch.tensor([start, end], dtype=torch.float32)}
            frames: tuple[int, ...] = ()
            if "clips" in whole:
                inside_T = (whole["clip_times"][:, 1] > start) & (whole["clip_times"][:, 0] < end)
                piece |= {name: whole[name][inside_T] for name in ("clips", "clip_times")}
            else:
                frames = frames_of_piece(clip.media.times, start, end, self.view.frames)
            yield Chunk(inputs=piece, frame_indices=frames)

    def merge(self, answers: Sequence[Answer], clip: ClipView) -> Answer:
        """Return one answer for the whole clip: the best windows of all pieces, each moment once, and the highlights side by side."""
        if len(answers) == 1:
            return answers[0]
        windows = rank([window for answer in answers for window in answer["windows"]])
        windows = suppress(windows, self.config.merge_nms)[: self.config.moment_queries]
        return {"windows": windows, "highlights": merge_highlights([answer["highlights"] for answer in answers])}

    def describe(self, answers: Sequence[Answer]) -> str:
        """Return the surest window of each answer, as ``3.2-5.0 s (0.91)``, and all others that are sure."""
        return "; ".join(_describe(answer["windows"]) for answer in answers) or "no moment"

    def to_text(self, target: Target) -> str:
        """Return ``from 1.2 to 3.5 seconds, from ..``, or that it is not there."""
        fields = TemporalTarget.model_validate(target.fields())
        return ", ".join(f"from {start:.1f} to {end:.1f} seconds" for start, end in fields.spans) or self.absent

    def from_text(self, text: str, clip: ClipView) -> list[Answer]:
        """Return one answer with the windows that the text names, in its order, each sure; a reversed one is left out."""
        duration = clip.media.duration
        spans = [(min(float(start), duration), min(float(end), duration)) for start, end in _WRITTEN.findall(text)]
        windows = [[start, end, 1.0] for start, end in spans if start < end]
        return [{"windows": _rounded(windows), "highlights": []}] if windows else []

    def _words(self, clip: ClipView) -> Tensors:
        """Return ``words`` (W, U) of all questions on the clip one after the other, and ``word_target`` (W,): whose they are, -1 = all."""
        files = self.config.files
        if files is None or files.words is None:
            return {}
        if not words_are_per_question(files):
            words = [read_words(files, clip.media.path, {})]
            owners = [-1]
        elif clip.targets:
            words = [read_words(files, clip.media.path, {**target.fields(), "id": target.id}) for target in clip.targets]
            owners = list(range(len(words)))
        else:
            raise ValueError(
                f"the word pattern {files.words!r} names fields of a target, but a question of your own has none; "
                "name word files by {stem}, or set files.words to null"
            )
        whose = np.repeat(owners, [len(part) for part in words])
        return {"words": torch.from_numpy(np.concatenate(words)), "word_target": torch.from_numpy(whose)}

    def _highlights(self, output: Tensors, clip: ClipView) -> list[Scored]:
        if "saliency" not in output:
            return []
        valid_T: Tensor = output["valid"].bool()
        steps = output["steps"][valid_T].double().clamp(0, clip.media.duration).tolist()
        return _rounded([[*step, score] for step, score in zip(steps, output["saliency"][valid_T].double().tolist())])


_WRITTEN = re.compile(r"\bfrom\s+(\d+(?:\.\d+)?)\s+to\s+(\d+(?:\.\d+)?)\s+seconds")


def _rounded(windows: Sequence[Scored]) -> list[Scored]:
    return [[round(value, 4) for value in window] for window in windows]


def window_contrast(seconds_Q2: Tensor, steps_T2: Tensor, saliency_T: Tensor, valid_T: Tensor) -> Tensor:
    """Return the mean saliency of the steps whose middle lies in a window, less that of the others, (Q,); 0 where either are none."""
    middle_T = steps_T2.mean(-1)
    inside_QT = (middle_T >= seconds_Q2[:, :1]) & (middle_T < seconds_Q2[:, 1:]) & valid_T
    outside_QT = ~inside_QT & valid_T
    means = [(part.double() @ saliency_T) / part.sum(-1).clamp(min=1) for part in (inside_QT, outside_QT)]
    both_Q = inside_QT.any(-1) & outside_QT.any(-1)
    return (means[0] - means[1]) * both_Q


def _describe(windows: Sequence[Scored]) -> str:
    sure = [window for window in windows if window[2] >= SURE]
    texts = [f"{start:.1f}-{end:.1f} s ({score:.2f})" for start, end, score in sure or windows[:1]]
    if sure:
        return ", ".join(texts)
    return f"probably not there (best guess {texts[0]})" if texts else "not there"
