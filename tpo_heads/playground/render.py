"""Scene -> pixels, masks, boxes, depth. A numpy rasteriser of signed distances; a 64x64 frame takes well under a millisecond.

Legend: T frames, N things, H W pixels. Boxes are xyxy in pixels, x2 and y2 exclusive, around the visible pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tpo_heads.playground.scenes import COLOURS, LEVELS, Scene

FAR, NEAR = 9.0, 6.0
"""Depth of the background at the picture's upper and lower edge."""


@dataclass(frozen=True)
class Picture:
    """What a scene looks like.

    Attributes:
        frames_THW3: uint8 RGB.
        owner_THW: int8, index of the thing seen at the pixel, -1 for the background.
    """

    frames_THW3: np.ndarray
    owner_THW: np.ndarray

    def mask(self, thing: int, frame: int) -> np.ndarray:
        """Return the visible part of a thing, bool (H, W)."""
        visible: np.ndarray = self.owner_THW[frame] == thing
        return visible

    def box(self, thing: int, frame: int) -> tuple[int, int, int, int] | None:
        """Return the box around the visible part, xyxy in pixels, or None where nothing of the thing is seen."""
        mask = self.mask(thing, frame)
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if rows.size == 0:
            return None
        return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def render(scene: Scene) -> Picture:
    """Return all frames of a scene with the owner of every pixel."""
    width, height = scene.size
    wall = _wall(scene)
    frames_THW3 = np.empty((scene.frames, height, width, 3), np.uint8)
    owner_THW = np.full((scene.frames, height, width), -1, np.int8)
    order = sorted(range(len(scene.things)), key=lambda i: -scene.things[i].depth)
    for t in range(scene.frames):
        shift = (round(scene.pan[1] * t), round(scene.pan[0] * t))
        canvas = np.roll(wall, shift, (0, 1)) if any(shift) else wall.copy()
        for i in order:
            _paint(canvas, owner_THW[t], scene, i, t)
        frames_THW3[t] = canvas + 0.5
    return Picture(frames_THW3, owner_THW)


def depth_map(scene: Scene, picture: Picture, frame: int) -> np.ndarray:
    """Return the dense depth of one frame, float32 (H, W): a slanted wall with the things before it."""
    width, height = scene.size
    depth_HW = np.repeat(np.linspace(FAR, NEAR, height, dtype=np.float32)[:, None], width, 1)
    for i, thing in enumerate(scene.things):
        depth_HW[picture.mask(i, frame)] = thing.depth
    return depth_HW


def _wall(scene: Scene) -> np.ndarray:
    """Return the textured background, float32 (H, W, 3): coarse noise, stripes and pixel noise, all of low saturation."""
    width, height = scene.size
    rng = scene.rng(1)
    strength = LEVELS[scene.level].texture
    base = rng.uniform(70, 150) + rng.uniform(-14, 14, 3)
    coarse = _stretch(rng.normal(0, 16 * strength, (5, 5)), height, width)
    angle, period, phase = rng.uniform(0, np.pi), rng.uniform(6, 20) * min(scene.size) / 64, rng.uniform(0, 2 * np.pi)
    rows, columns = np.arange(height)[:, None], np.arange(width)[None]
    stripes = 9 * strength * np.sin(2 * np.pi * (np.cos(angle) * columns + np.sin(angle) * rows) / period + phase)
    grain = rng.normal(0, 5 * strength, (height, width))
    wall: np.ndarray = np.clip((coarse + stripes + grain)[..., None] + base, 0, 254.4).astype(np.float32)
    return wall


def _stretch(grid: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return a coarse grid, bilinearly enlarged to (height, width)."""
    rows, columns = np.linspace(0, grid.shape[0] - 1, height), np.linspace(0, grid.shape[1] - 1, width)
    tall = np.stack([np.interp(rows, np.arange(grid.shape[0]), grid[:, j]) for j in range(grid.shape[1])], 1)
    return np.stack([np.interp(columns, np.arange(grid.shape[1]), row) for row in tall])


def _paint(canvas: np.ndarray, owner_HW: np.ndarray, scene: Scene, index: int, frame: int) -> None:
    thing = scene.things[index]
    if not thing.shown_T[frame]:
        return
    width, height = scene.size
    (x, y), radius = thing.centre_T2[frame], thing.radius_T[frame]
    left, right = max(0, int(x - radius - 1)), min(width, int(x + radius + 2))
    top, bottom = max(0, int(y - radius - 1)), min(height, int(y + radius + 2))
    if left >= right or top >= bottom:
        return
    distance = _distance(thing.shape, np.arange(left, right)[None] + 0.5 - x, np.arange(top, bottom)[:, None] + 0.5 - y, radius)
    alpha = np.clip(0.5 - distance, 0, 1)[..., None].astype(np.float32)
    glow, shade = thing.glow_T[frame], 1.0 - 0.05 * (thing.depth - 1.0)
    colour = np.array(COLOURS[thing.colour], np.float32) * shade * (1 - glow) + 250 * glow
    window = (slice(top, bottom), slice(left, right))
    canvas[window] += alpha * (colour.astype(np.float32) - canvas[window])
    owner_HW[window][distance <= 0] = index


def _distance(shape: str, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """Return the signed distance to the outline in pixels (negative inside); exact enough for a soft edge one pixel wide."""
    if shape == "ring":
        ring: np.ndarray = np.abs(np.hypot(x, y) - 0.72 * radius) - 0.28 * radius
        return ring
    if shape == "square":
        square: np.ndarray = np.maximum(np.abs(x), np.abs(y)) - 0.88 * radius
        return square
    if shape == "cross":
        bar = 0.32 * radius
        cross: np.ndarray = np.minimum(np.maximum(np.abs(x) - radius, np.abs(y) - bar), np.maximum(np.abs(x) - bar, np.abs(y) - radius))
        return cross
    triangle: np.ndarray = np.maximum(0.871 * np.abs(x) - 0.49 * y - 0.49 * radius, y - 0.6 * radius)
    return triangle
