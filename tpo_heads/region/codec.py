"""Between annotated boxes (pixels) and the tensors of the region head (shares of the image)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field

from tpo_core.head import Codec
from tpo_core.types import Answer, ClipView, MediaInfo, Target, Tensors
from tpo_heads.boxes import clip, denormalise, normalise
from tpo_heads.region.config import RegionConfig

OVERHANG = 1.0
"""Pixels by which an annotated box may leave the image (data sets round); it is clipped."""

Side = Annotated[int, Field(gt=0)]


class RegionTarget(BaseModel):
    """The region head's fields of a target, and of a box prompt."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    size: tuple[Side, Side] = Field(description="(width, height) in pixels that the boxes refer to, as the picture is shown")
    boxes: list[tuple[float, float, float, float]] = Field(description="[x1, y1, x2, y2] in pixels, x2 and y2 exclusive; [] = not there")
    frame: int | None = Field(None, ge=0, description="frame of a video that the boxes were drawn on")


class RegionCodec(Codec[RegionConfig]):
    """One query per box, in the order given; a target without boxes is answered in words."""

    schema = RegionTarget
    needs_features = False

    @property
    def terms(self) -> tuple[str, ...]:
        return tuple(self.config.factors)

    def check(self, target: Target, media: MediaInfo) -> None:
        """Raise `ValueError` where a box does not lie in the medium as it is shown."""
        fields = RegionTarget.model_validate(target.fields())
        width, height = media.size
        if fields.size != (width, height):
            turned = " (it is shown turned by its EXIF orientation?)" if fields.size == (height, width) else ""
            raise ValueError(
                f"the boxes refer to a size of {list(fields.size)} but the medium is {[width, height]}{turned}; "
                f"give boxes and size in pixels of the medium as shown"
            )
        if fields.frame is not None and fields.frame >= len(media.times):
            raise ValueError(f"frame {fields.frame} was expected in 0 to {len(media.times) - 1}, the frames of the medium; correct `frame`")
        for index, (left, top, right, bottom) in enumerate(fields.boxes):
            box = [left, top, right, bottom]
            if right <= left or bottom <= top:
                raise ValueError(f"box {index} {box} is empty or reversed; write [x1, y1, x2, y2] with x1 < x2 and y1 < y2")
            if min(left, top) < -OVERHANG or right > width + OVERHANG or bottom > height + OVERHANG:
                raise ValueError(
                    f"box {index} {box} lies outside the medium of {width} x {height} pixels; write [x1, y1, x2, y2] in pixels inside it"
                )

    def is_absent(self, target: Target) -> bool:
        """Return whether the target holds no box: nothing fits the question."""
        return not target.get("boxes")

    def encode(self, target: Target, clip: ClipView) -> list[Tensors]:
        """Return ``box_xyxy`` (4,), shares of the medium's width and height, for each box."""
        fields = RegionTarget.model_validate(target.fields())
        return [{"box_xyxy": _share(box, clip.media.size)} for box in fields.boxes]

    def encode_prompt(self, prompt: Target, clip: ClipView) -> Tensors:
        """Return ``box_xyxy`` (4,) of a box given in the question.

        Raises:
            ValueError: the prompt is not one box.
        """
        if prompt.kind != "box":
            raise ValueError(f"the region head takes box prompts, got kind {prompt.kind!r}; give the thing as a box")
        fields = RegionTarget.model_validate(prompt.fields())
        if len(fields.boxes) != 1:
            raise ValueError(f"a box prompt holds one box, got {len(fields.boxes)}; write one prompt for each box")
        return {"box_xyxy": _share(fields.boxes[0], clip.media.size)}

    def decode(self, output: Tensors, clip: ClipView) -> Answer:
        """Return ``{"box": [x1, y1, x2, y2]}`` in pixels of the medium, clipped to it, to a hundredth of a pixel.

        Raises:
            ValueError: the box is not finite (the model has diverged).
        """
        box_xyxy = output["box_xyxy"].double()
        if not bool(torch.isfinite(box_xyxy).all()):
            raise ValueError(f"the region head gave the box {box_xyxy.tolist()}, which is not finite; the model has diverged")
        return {"box": [round(value, 2) for value in _pixels(box_xyxy, clip.media.size).tolist()]}

    def describe(self, answers: Sequence[Answer]) -> str:
        """Return the boxes in words."""
        if not answers:
            return "no box"
        return "; ".join("box x {0:.0f}-{2:.0f}, y {1:.0f}-{3:.0f}".format(*answer["box"]) for answer in answers)

    def to_text(self, target: Target) -> str:
        """Return ``box 12 05 48 63; box ..``: shares of width and height, cut down to the config's digits (Shikra's way of writing)."""
        fields = RegionTarget.model_validate(target.fields())
        steps = 10**self.config.text_digits
        texts = []
        for box in fields.boxes:
            numbers = (_share(box, fields.size).double() * steps).floor().clamp(0, steps - 1)
            texts.append("box " + " ".join(f"{int(value):0{self.config.text_digits}d}" for value in numbers))
        return "; ".join(texts) if texts else self.absent

    def from_text(self, text: str, clip: ClipView) -> list[Answer]:
        """Return a box for each four numbers behind the word ``box``, at the middle of its steps; a reversed box is left out."""
        steps = 10**self.config.text_digits
        answers: list[Answer] = []
        for numbers in _WRITTEN.findall(text):
            left, top, right, bottom = ((min(int(value), steps - 1) + 0.5) / steps for value in numbers)
            if left < right and top < bottom:
                box_xyxy = torch.tensor([left, top, right, bottom], dtype=torch.float64)
                answers.append({"box": [round(value, 2) for value in _pixels(box_xyxy, clip.media.size).tolist()]})
        return answers


_WRITTEN = re.compile(r"\bbox\s+(\d{1,4})\s+(\d{1,4})\s+(\d{1,4})\s+(\d{1,4})\b")


def _share(box: Sequence[float], size: tuple[int, int]) -> torch.Tensor:
    boxes_xyxy = torch.tensor(box, dtype=torch.float64)
    return normalise(clip(boxes_xyxy, size), size).float()


def _pixels(box_xyxy: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return clip(denormalise(box_xyxy, size), size)
