"""Truth of the playground: a small procedural world of coloured shapes that move, appear, vanish, jump, flash and grow.

A scene is a function of (seed, split, kind, level, index) and of the picture's size, and of nothing else. The numbers of the splits are
part of the generator's seed, so that training, validation, test and base scenes never share one.

Legend: T frames, H W pixels, N things of a scene. Coordinates are pixels (x to the right, y down), times are frame indices (``end`` is
exclusive); seconds are frame / fps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np

from tpo_core.errors import ConfigError

Kind = Literal["image", "clip", "track"]
KINDS: tuple[Kind, ...] = ("image", "clip", "track")
SPLITS: tuple[str, ...] = ("train", "val", "test", "base")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (224, 40, 44),
    "green": (40, 176, 60),
    "blue": (48, 84, 232),
    "yellow": (240, 208, 32),
    "purple": (168, 56, 200),
    "orange": (244, 132, 20),
}
SHAPES = ("ring", "square", "cross", "triangle")
SIZES = ("small", "large")
ACTIONS = ("jump", "flash", "grow", "vanish", "appear")

T = TypeVar("T")


@dataclass(frozen=True)
class Level:
    """How hard the world is. Radii are shares of the picture's shorter side; relational is the share of relational expressions."""

    colours: int
    shapes: int
    things: tuple[int, int]
    radii: tuple[float, float]
    triples: bool
    relational: float
    clip_frames: int
    track_frames: int
    speed: tuple[float, float]
    texture: float
    pan: float
    motion_words: bool


LEVELS: dict[int, Level] = {
    1: Level(4, 3, (2, 3), (0.125, 0.19), False, 0.15, 12, 4, (0.035, 0.07), 0.8, 0.0, False),
    2: Level(6, 4, (2, 4), (0.1, 0.165), True, 0.3, 12, 6, (0.03, 0.06), 1.0, 0.0, True),
    3: Level(6, 4, (3, 4), (0.085, 0.14), True, 0.4, 16, 8, (0.03, 0.06), 1.3, 0.02, True),
}
FPS = 4.0


@dataclass(frozen=True)
class Thing:
    """One object: what it is, and per frame where it is.

    Attributes:
        depth: distance from the camera; the nearer thing hides the farther one, and is a little brighter.
        centre_T2: centre in pixels. radius_T: radius in pixels. shown_T: whether it is there. glow_T: 0-1, how far its colour is turned
            to white. velocity: pixels per frame of its own motion.
    """

    colour: str
    shape: str
    size: str
    depth: float
    centre_T2: np.ndarray
    radius_T: np.ndarray
    shown_T: np.ndarray
    glow_T: np.ndarray
    velocity: tuple[float, float]


@dataclass(frozen=True)
class Event:
    """Thing `thing` does `action` in the frames [start, end)."""

    thing: int
    action: str
    start: int
    end: int


@dataclass(frozen=True)
class Scene:
    """One picture or clip with its whole truth (masks and dense depth: `render`)."""

    seed: int
    split: str
    kind: Kind
    level: int
    index: int
    size: tuple[int, int]
    frames: int
    fps: float
    things: tuple[Thing, ...]
    events: tuple[Event, ...]
    pan: tuple[float, float]

    @property
    def key(self) -> str:
        """Name of the scene, unique over seeds, splits, kinds and levels."""
        return f"s{self.seed}-{self.split}-{self.kind}{self.level}-{self.index:05d}"

    @property
    def duration(self) -> float:
        """Seconds of the clip; 0 for a picture."""
        return 0.0 if self.kind == "image" else self.frames / self.fps

    def rng(self, purpose: int) -> np.random.Generator:
        """Return a generator for one purpose (0 geometry, 1 background, 2 language), always from its start."""
        return scene_rng(self.seed, self.split, self.kind, self.level, self.index, purpose)


def scene_rng(seed: int, split: str, kind: Kind, level: int, index: int, purpose: int) -> np.random.Generator:
    """Return the generator that belongs to these numbers alone."""
    entropy = (seed, SPLITS.index(split), KINDS.index(kind), level, index, purpose)
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    """Return one of the options, uniformly."""
    return options[int(rng.integers(len(options)))]


def make_scene(*, seed: int, split: str, kind: Kind, level: int, index: int, size: tuple[int, int] = (64, 64)) -> Scene:
    """Return the scene that these numbers stand for.

    Raises:
        ConfigError: the split, the kind or the level does not exist, or the picture is too small.
    """
    if split not in SPLITS or kind not in KINDS or level not in LEVELS:
        raise ConfigError(
            f"no playground scene of split {split!r}, kind {kind!r}, level {level}: splits {SPLITS}, kinds {KINDS}, levels 1-3"
        )
    if min(size) < 32 or seed < 0 or index < 0:
        raise ConfigError(f"playground scenes have at least 32 pixels a side and seeds from 0, got size {size}, seed {seed}, index {index}")
    world = LEVELS[level]
    rng = scene_rng(seed, split, kind, level, index, 0)
    frames = {"image": 1, "clip": world.clip_frames, "track": world.track_frames}[kind]
    names = _draw_names(rng, world)
    radii = [world.radii[SIZES.index(size_word)] * min(size) for _, _, size_word in names]
    starts = _place(rng, radii, size)
    depths = 1.0 + 4.0 * (rng.permutation(len(names)) + rng.uniform(0.1, 0.9, len(names))) / len(names)
    things = tuple(_make_thing(rng, world, kind, names[i], float(depths[i]), starts[i], radii[i], frames, size) for i in range(len(names)))
    events: tuple[Event, ...] = ()
    if kind == "clip":
        events = _draw_events(rng, len(things), frames)
        things = tuple(_perform(thing, [e for e in events if e.thing == i], size) for i, thing in enumerate(things))
    angle = rng.uniform(0, 2 * math.pi)
    pan = (0.0, 0.0) if frames == 1 else (world.pan * min(size) * math.cos(angle), world.pan * min(size) * math.sin(angle))
    return Scene(seed, split, kind, level, index, size, frames, FPS, things, events, pan)


def _draw_names(rng: np.random.Generator, world: Level) -> list[tuple[str, str, str]]:
    """Draw (colour, shape, size) of every thing; most things share the colour or the shape of the first one."""
    colours, shapes = tuple(COLOURS)[: world.colours], SHAPES[: world.shapes]
    wanted = int(rng.integers(world.things[0], world.things[1] + 1))
    names: list[tuple[str, str, str]] = []
    while len(names) < wanted:
        colour, shape, size = pick(rng, colours), pick(rng, shapes), pick(rng, SIZES)
        if names and rng.random() < 0.6:
            colour, shape = (names[0][0], shape) if rng.random() < 0.5 else (colour, names[0][1])
        taken = (colour, shape, size) in names if world.triples else (colour, shape) in [name[:2] for name in names]
        if not taken:
            names.append((colour, shape, size))
    return names


def _place(rng: np.random.Generator, radii: Sequence[float], size: tuple[int, int]) -> list[np.ndarray]:
    """Draw centres inside the picture, well apart; the last of many draws is kept even where they overlap a little."""
    best: list[np.ndarray] = []
    best_gap = -math.inf
    for _ in range(60):
        centres = [np.array([rng.uniform(r, size[0] - r), rng.uniform(r, size[1] - r)]) for r in radii]
        gap = min(float(np.hypot(*(centres[i] - centres[j]))) / (radii[i] + radii[j]) for i in range(len(radii)) for j in range(i))
        if gap > best_gap:
            best, best_gap = centres, gap
        if gap >= 1.0:
            break
    return best


def _make_thing(
    rng: np.random.Generator,
    world: Level,
    kind: Kind,
    name: tuple[str, str, str],
    depth: float,
    start: np.ndarray,
    radius: float,
    frames: int,
    size: tuple[int, int],
) -> Thing:
    angle = rng.uniform(0, 2 * math.pi)
    speed = {"image": 0.0, "clip": rng.uniform(0.0, 0.008), "track": rng.uniform(*world.speed)}[kind] * min(size)
    velocity = (speed * math.cos(angle), speed * math.sin(angle))
    position, step = start.copy(), np.array(velocity)
    centre_T2 = np.zeros((frames, 2))
    for t in range(frames):
        centre_T2[t] = position
        for axis in range(2):
            if not radius <= position[axis] + step[axis] <= size[axis] - radius:
                step[axis] = -step[axis]
        position = np.clip(position + step, radius, np.array(size) - radius)
    ones = np.ones(frames)
    return Thing(*name, depth, centre_T2, radius * ones, ones.astype(bool), 0 * ones, velocity)


def _draw_events(rng: np.random.Generator, things: int, frames: int) -> tuple[Event, ...]:
    """Draw two events on two things whose spans overlap little (IoU at most 0.25)."""
    first, second = (int(i) for i in rng.permutation(things)[:2])
    while True:
        spans = []
        for _ in range(2):
            length = int(rng.integers(2, 2 + frames // 3))
            start = int(rng.integers(0, frames - length + 1))
            spans.append((start, start + length))
        inter = max(0, min(spans[0][1], spans[1][1]) - max(spans[0][0], spans[1][0]))
        union = spans[0][1] - spans[0][0] + spans[1][1] - spans[1][0] - inter
        if inter / union <= 0.25:
            break
    actions = [pick(rng, ACTIONS), pick(rng, ACTIONS)]
    return tuple(Event(thing, action, *span) for thing, action, span in zip((first, second), actions, spans))


def _perform(thing: Thing, events: Sequence[Event], size: tuple[int, int]) -> Thing:
    """Return the thing with its events worked into the per-frame values."""
    centre_T2, radius_T = thing.centre_T2.copy(), thing.radius_T.copy()
    shown_T, glow_T = thing.shown_T.copy(), thing.glow_T.copy()
    for event in events:
        span = np.arange(event.start, event.end)
        beat = (span - event.start) % 2
        if event.action == "jump":
            lift = np.where(beat == 0, 0.22, 0.13) * min(size)
            room = centre_T2[span, 1] - radius_T[span]
            centre_T2[span, 1] += np.where(room >= lift, -lift, lift)
        elif event.action == "flash":
            glow_T[span] = np.where(beat == 0, 0.85, 0.5)
        elif event.action == "grow":
            radius_T[span] *= np.where(span == event.start, 1.3, 1.55)
        elif event.action == "vanish":
            shown_T[span] = False
        else:
            shown_T[:] = False
            shown_T[span] = True
    return replace(thing, centre_T2=centre_T2, radius_T=radius_T, shown_T=shown_T, glow_T=glow_T)
