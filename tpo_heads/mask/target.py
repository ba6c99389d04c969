"""What an annotated mask target says, frame by frame, and whether it fits its medium. No torch.

Absent is not unknown: an RLE of area 0, a null box, or ``visible: 0`` means "annotated and not there"; a null RLE or a frame that is not
listed means "not annotated".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from tpo_core.types import MediaInfo, Target
from tpo_heads.mask.rle import area, decode, fill_box, tight_box

Side = Annotated[int, Field(gt=0)]
Index = Annotated[int, Field(ge=0)]
Box = tuple[float, float, float, float]
OVERHANG = 1.0
"""Pixels by which an annotated box may leave the medium (data sets round); it is clipped."""


class MaskTarget(BaseModel):
    """The mask head's fields of a target."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    size: tuple[Side, Side] = Field(description="(width, height) in pixels of the medium as shown")
    frames: list[Index] = Field([0], min_length=1, description="annotated frames (indices into the medium), ascending")
    rle: list[dict[str, Any] | None] | None = Field(None, description="COCO RLE per frame; null = not annotated, area 0 = not there")
    boxes: list[Box | None] | None = Field(None, description="[x1, y1, x2, y2] in pixels per frame, exclusive; null = not there")
    visible: list[Literal[0, 1]] | None = Field(None, description="per frame, 0 = not there even if a box is given")
    object_ids: list[int | str] | None = Field(None, description="names of the objects whose union `rle` is")
    parts: list[list[dict[str, Any] | None]] | None = Field(None, description="per object, RLE per frame as in `rle`")


class MaskPrompt(BaseModel):
    """The fields of a box or a point in the question."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    size: tuple[Side, Side] = Field(description="(width, height) in pixels of the medium as shown")
    frame: Index = Field(0, description="frame that it was drawn on")
    boxes: list[Box] = Field(default_factory=list, max_length=1, description="the box, [x1, y1, x2, y2] in pixels, exclusive")
    points: list[tuple[float, float]] = Field(default_factory=list, max_length=1, description="the point, [x, y] in pixels")


@dataclass(frozen=True)
class FrameTruth:
    """What is known of one frame.

    Args:
        present: whether the object is there.
        rle: its mask, or None where only a box is known.
        box_xyxy: its box in pixels where one was annotated.
    """

    present: bool
    rle: Mapping[str, Any] | None = None
    box_xyxy: Box | None = None

    def mask(self, size: tuple[int, int]) -> np.ndarray | None:
        """Return the mask (H, W) bool, or None where only a box is known."""
        if self.rle is not None:
            return decode(dict(self.rle), size)
        return None if self.present else np.zeros((size[1], size[0]), dtype=bool)

    def box(self, size: tuple[int, int]) -> Box | None:
        """Return the box in pixels, that of the mask where there is one, or None where the object is not there."""
        if not self.present:
            return None
        mask = self.mask(size)
        if mask is None:
            return self.box_xyxy
        found = tight_box(mask)
        return (found[0], found[1], found[2], found[3]) if found is not None else None

    def filled(self, size: tuple[int, int]) -> np.ndarray:
        """Return the mask, or the filled box where no mask is known."""
        mask = self.mask(size)
        if mask is not None:
            return mask
        return fill_box(self.box_xyxy or (0, 0, 0, 0), size)


def read_truth(target: Target, part: int | None = None) -> dict[int, FrameTruth]:
    """Return frame -> what is known of it, for the annotated frames alone, ascending.

    Args:
        part: one object of `parts`; None is the whole target.
    """
    fields = MaskTarget.model_validate(target.fields())
    rles = fields.rle if part is None else (fields.parts or [])[part]
    boxes = fields.boxes if part is None else None
    truth: dict[int, FrameTruth] = {}
    for position, frame in enumerate(fields.frames):
        rle = rles[position] if rles is not None else None
        hidden = fields.visible is not None and not fields.visible[position]
        if rle is not None:
            box = boxes[position] if boxes is not None else None
            truth[frame] = FrameTruth(area(rle) > 0, rle, box)
        elif boxes is not None:
            box = boxes[position]
            shown = box is not None and not hidden
            truth[frame] = FrameTruth(shown, None, box if shown else None)
    return truth


def check_target(target: Target, media: MediaInfo) -> None:
    """Raise `ValueError` (one sentence) where the annotation does not fit the medium or holds nothing."""
    fields = MaskTarget.model_validate(target.fields())
    _check_size(fields.size, media)
    _check_frames(fields.frames, media)
    count = len(fields.frames)
    lists: list[tuple[str, Sequence[Any] | None]] = [("rle", fields.rle), ("boxes", fields.boxes), ("visible", fields.visible)]
    lists += [(f"parts[{number}]", part) for number, part in enumerate(fields.parts or [])]
    for name, values in lists:
        if values is not None and len(values) != count:
            raise ValueError(f"{name} has {len(values)} entries for {count} frames; give one per frame (null where there is none)")
    if fields.rle is None and fields.boxes is None:
        raise ValueError("the target has neither `rle` nor `boxes`; give masks, or boxes, per frame")
    for rles in [fields.rle or [], *(fields.parts or [])]:
        for frame, rle in zip(fields.frames, rles):
            _check_rle(rle, frame, media)
    for frame, box in zip(fields.frames, fields.boxes or []):
        if box is not None:
            check_box(box, media, f"the box of frame {frame}")
    if not any(rle is not None for rle in fields.rle or []) and fields.boxes is None:
        raise ValueError("no frame is annotated (every rle is null); give a mask, or one of area 0 where the object is not there")


def check_prompt(fields: MaskPrompt, media: MediaInfo) -> None:
    """Raise `ValueError` (one sentence) where a box or a point of the question does not fit the medium."""
    _check_size(fields.size, media)
    _check_frames([fields.frame], media)
    for box in fields.boxes:
        check_box(box, media, "the box")
    for x, y in fields.points:
        if not (0 <= x <= media.size[0] and 0 <= y <= media.size[1]):
            raise ValueError(f"the point {[x, y]} lies outside the medium of {media.size[0]} x {media.size[1]} pixels; correct it")


def check_box(box_xyxy: Box, media: MediaInfo, name: str) -> None:
    """Raise `ValueError` where a box is reversed or lies outside the medium."""
    left, top, right, bottom = box_xyxy
    width, height = media.size
    if right <= left or bottom <= top:
        raise ValueError(f"{name} {list(box_xyxy)} is empty or reversed; write [x1, y1, x2, y2] with x1 < x2 and y1 < y2, or null")
    if min(left, top) < -OVERHANG or right > width + OVERHANG or bottom > height + OVERHANG:
        raise ValueError(f"{name} {list(box_xyxy)} lies outside the medium of {width} x {height} pixels; write pixels inside it")


def _check_size(size: tuple[int, int], media: MediaInfo) -> None:
    if size != tuple(media.size):
        turned = " (it is shown turned by its EXIF orientation?)" if size == tuple(reversed(media.size)) else ""
        raise ValueError(
            f"the annotation refers to a size of {list(size)} but the medium is {list(media.size)}{turned}; "
            f"give masks and size in pixels of the medium as shown"
        )


def _check_frames(frames: Sequence[int], media: MediaInfo) -> None:
    count = len(media.times)
    past = [frame for frame in frames if frame >= count]
    if past:
        raise ValueError(f"frame {past[0]} lies past the end of the medium, which has {count} frames (0 to {count - 1}); correct `frames`")
    if any(later <= earlier for earlier, later in pairwise(frames)):
        raise ValueError(f"frames {list(frames)[:8]} must ascend without repeats; sort them together with their masks")


def _check_rle(rle: dict[str, Any] | None, frame: int, media: MediaInfo) -> None:
    if rle is None:
        return
    size = rle.get("size")
    width, height = media.size
    if isinstance(size, list | tuple) and list(size) != [height, width]:
        raise ValueError(
            f"the mask of frame {frame} has size {list(size)[:4]} (height, width) but the medium is {height} high and {width} wide; "
            f"give masks at the medium's size"
        )
    try:
        area(rle)
    except ValueError as error:
        raise ValueError(f"the mask of frame {frame} does not decode: {error}") from error
