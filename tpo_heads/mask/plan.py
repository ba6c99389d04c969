"""Which frames a clip's sample uses, and on which of them each object is prompted. No torch; draws come from the clip's own generator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tpo_core.types import ClipView
from tpo_heads.mask.config import MaskConfig
from tpo_heads.mask.target import FrameTruth, read_truth

Truth = Mapping[int, FrameTruth]


@dataclass(frozen=True)
class Plan:
    """The frames of one sample of one medium.

    Args:
        frames: indices into the medium, ascending.
        lead: id of the target around which they were drawn, or None.
        start: frame on which the lead is prompted.
    """

    frames: tuple[int, ...]
    lead: str | None = None
    start: int | None = None


def plan_frames(clip: ClipView, config: MaskConfig) -> Plan:
    """Return the frames of a clip: drawn around a target in training, else all of them.

    Of a clip longer than `chunk_frames` so many annotated ones, or where nothing is annotated those that the language model sees.
    """
    count = len(clip.media.times)
    if clip.training and clip.targets:
        rng = clip.rng()
        lead = clip.targets[int(rng.integers(len(clip.targets)))]
        frames, start = _draw(read_truth(lead), config, rng)
        return Plan(frames, lead.id, start)
    if count <= config.chunk_frames:
        return Plan(tuple(range(count)))
    annotated = sorted({frame for target in clip.targets for frame in read_truth(target)})
    return Plan(_thin(annotated, config.chunk_frames) if annotated else candidate_frames(clip, config.chunk_frames))


def candidate_frames(clip: ClipView, most: int) -> tuple[int, ...]:
    """Return at most so many frames of a long clip among which the prompt frame is looked for: those that the language model sees."""
    return _thin(sorted(set(clip.frame_indices)) or list(range(len(clip.media.times))), most)


def prompt_position(plan: Plan, target: str, truth: Truth, clip: ClipView, config: MaskConfig) -> int:
    """Return on which of the plan's frames (position) an object is prompted in training: one where it is present, if there is one."""
    if target == plan.lead and plan.start is not None:
        return plan.frames.index(plan.start)
    present = [i for i, frame in enumerate(plan.frames) if frame in truth and truth[frame].present]
    annotated = [i for i, frame in enumerate(plan.frames) if frame in truth]
    choices = present or annotated or [0]
    if config.prompt_frame != "best":
        return choices[0]
    return choices[int(clip.rng().integers(len(choices)))]


def _thin(frames: Sequence[int], most: int) -> tuple[int, ...]:
    """Return at most so many of them, evenly, the first and the last among them."""
    picked = np.linspace(0, len(frames) - 1, min(most, len(frames))).round().astype(int)
    return tuple(frames[i] for i in picked.tolist())


def _draw(truth: Truth, config: MaskConfig, rng: np.random.Generator) -> tuple[tuple[int, ...], int]:
    """Return frames in even steps through the annotated ones, and the one that is prompted."""
    annotated = sorted(truth)
    present = [frame for frame in annotated if truth[frame].present]
    absent = [frame for frame in annotated if not truth[frame].present]
    if absent and rng.random() < config.absent_prompts:
        start = absent[int(rng.integers(len(absent)))]
    elif config.prompt_frame == "best" and present:
        start = present[int(rng.integers(len(present)))]
    else:
        start = (present or annotated)[0]
    wanted = min(config.train_frames, len(annotated))
    place = annotated.index(start)
    before = int(rng.integers(wanted)) if config.prompt_frame == "best" else 0
    return tuple(annotated[i] for i in _window(place, before, wanted, len(annotated), config.max_stride, rng)), start


def _window(place: int, before: int, wanted: int, count: int, max_stride: int, rng: np.random.Generator) -> Sequence[int]:
    """Return `wanted` ascending positions below `count`, evenly spaced, `place` among them, `before` of them before it where they fit."""
    before = max(min(before, place), wanted - 1 - (count - 1 - place))
    after = wanted - 1 - before
    fits = [max_stride]
    if before:
        fits.append(place // before)
    if after:
        fits.append((count - 1 - place) // after)
    stride = int(rng.integers(1, max(1, min(fits)) + 1))
    return range(place - before * stride, place + after * stride + 1, stride)
