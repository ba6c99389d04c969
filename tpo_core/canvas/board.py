"""`Canvas`: frames laid out for reading, with boxes, masks, points, strips and notes on them."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw

from tpo_core.canvas.text import BLACK, Colour, Rectangle, draw_label, draw_text, line_height, wrap
from tpo_core.types import MediaInfo

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

# Okabe and Ito's palette (2008), told apart by colour-blind readers too; black is left out.
PALETTE: tuple[Colour, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (213, 94, 0),
    (204, 121, 167),
    (0, 114, 178),
)
Label = tuple[tuple[float, float], str, Colour]
"""Where (pixels of the tile), what, and on which ground."""

PAPER: Colour = (250, 250, 250)
GAP = 8
MARGIN = 12
LEAST_SIDE = 256
LEAST_SIDE_ALONE = 512
LEAST_WIDTH = 384
ROW_WIDTH = 1320
LABEL, CAPTION, TITLE = 13, 13, 17


class Canvas:
    """The board on which heads draw their answers; all coordinates are pixels of the original medium.

    Small frames are enlarged by a whole number (nearest), large ones are reduced, so that labels can be read; strips (`panel`) and
    notes stand below the frames, in the order in which they were asked for.

    Args:
        info: the medium.
        frames: index into ``info.times`` -> uint8 (H, W, 3) at the medium's own size; at least one.

    Raises:
        ValueError: no frame, a frame of another shape, or an index that the medium does not have.
    """

    def __init__(self, info: MediaInfo, frames: Mapping[int, np.ndarray]) -> None:
        if not frames:
            raise ValueError(f"{info.path}: a canvas needs at least one frame, got none")
        width, height = info.size
        for index, frame in frames.items():
            if not 0 <= index < len(info.times):
                raise ValueError(f"{info.path}: there is no frame {index}; frames go from 0 to {len(info.times) - 1}")
            if frame.shape != (height, width, 3) or frame.dtype != np.uint8:
                raise ValueError(
                    f"{info.path}: frame {index} must be uint8 of shape ({height}, {width}, 3), got {frame.dtype} {tuple(frame.shape)}"
                )
        self.info = info
        self.scale = _choose_scale(info.size, len(frames))
        self._tile = (max(1, round(width * self.scale)), max(1, round(height * self.scale)))
        way = Image.Resampling.NEAREST if self.scale >= 1 else Image.Resampling.LANCZOS
        self._images = {i: Image.fromarray(np.ascontiguousarray(frames[i])).resize(self._tile, way) for i in sorted(frames)}
        self._below: list[Image.Image | str] = []
        self._labels: dict[int, list[Label]] = {index: [] for index in self._images}
        self._colours = 0

    @property
    def frames(self) -> tuple[int, ...]:
        """Indices of the frames that can be drawn on, ascending."""
        return tuple(self._images)

    @property
    def width(self) -> int:
        """Width of the layout and of every panel, in pixels of the picture."""
        return max(self._columns() * (self._tile[0] + GAP) - GAP, LEAST_WIDTH)

    def next_colour(self) -> Colour:
        """Return the next colour of the palette (red, green, blue); the seven colours come round again."""
        colour = PALETTE[self._colours % len(PALETTE)]
        self._colours += 1
        return colour

    def draw_boxes(
        self, frame: int, boxes_xyxy: ArrayLike, labels: Sequence[str] | None = None, *, colour: Colour | Sequence[Colour] | None = None
    ) -> None:
        """Draw boxes (N, 4), exclusive x2 and y2. Boxes are clipped to the frame; a reversed box is drawn by its corners.

        Args:
            colour: one for all, or one per box, or None (the next colours of the palette).
        """
        import torch
        from torchvision.utils import draw_bounding_boxes

        boxes_N4 = _rows(boxes_xyxy, 4, "boxes")
        if len(boxes_N4) == 0:
            return
        colours, labels = self._paint(len(boxes_N4), colour, labels)
        image = self._image(frame)
        drawn_N4 = self._to_tile(boxes_N4)
        drawn = draw_bounding_boxes(_tensor(image), torch.from_numpy(drawn_N4), colors=colours, width=max(2, self._tile[0] // 200))
        image.paste(_picture(drawn))
        for (left, top, _, _), label, ground in zip(drawn_N4.tolist(), labels, colours):
            if label:
                self._labels[frame].append(((left, top - line_height(LABEL)), label, ground))

    def draw_masks(
        self, frame: int, masks_NHW: ArrayLike, labels: Sequence[str] | None = None, *, colour: Colour | Sequence[Colour] | None = None
    ) -> None:
        """Draw masks (N, H, W) or (H, W), true where the object is: half transparent, with a full outline."""
        import torch
        from torchvision.utils import draw_segmentation_masks

        masks = np.asarray(masks_NHW).astype(bool)
        masks = masks[None] if masks.ndim == 2 else masks
        width, height = self.info.size
        if masks.ndim != 3 or masks.shape[1:] != (height, width):
            raise ValueError(f"{self.info.path}: masks must be (N, {height}, {width}) like the medium, got {masks.shape}")
        if len(masks) == 0:
            return
        colours, labels = self._paint(len(masks), colour, labels)
        image = self._image(frame)
        tiles = np.stack([np.asarray(Image.fromarray(mask).resize(self._tile, Image.Resampling.NEAREST)) for mask in masks])
        filled = draw_segmentation_masks(_tensor(image), torch.from_numpy(tiles), alpha=0.45, colors=colours)
        outlines = torch.from_numpy(np.stack([_outline(tile) for tile in tiles]))
        image.paste(_picture(draw_segmentation_masks(filled, outlines, alpha=1.0, colors=colours)))
        for tile, label, ground in zip(tiles, labels, colours):
            if label and tile.any():
                rows, columns = np.nonzero(tile)
                self._labels[frame].append(((int(columns[0]), int(rows[0]) - line_height(LABEL)), label, ground))

    def draw_points(
        self, frame: int, points_xy: ArrayLike, labels: Sequence[str] | None = None, *, colour: Colour | Sequence[Colour] | None = None
    ) -> None:
        """Draw points (N, 2) as discs with a white rim."""
        points_N2 = _rows(points_xy, 2, "points")
        colours, labels = self._paint(len(points_N2), colour, labels)
        image = self._image(frame)
        pen = ImageDraw.Draw(image)
        radius = max(4, min(self._tile) // 60)
        for (x, y), label, fill in zip((points_N2 * self._scale_xy()).tolist(), labels, colours):
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill, outline=(255, 255, 255), width=2)
            if label:
                self._labels[frame].append(((x + radius + 2, y - line_height(LABEL) / 2), label, fill))

    def panel(self, height: int, *, title: str = "") -> Image.Image:
        """Return an empty RGB strip, `width` wide, that will stand below the frames; draw on it (`draw_text` writes on it).

        A title takes a line of its own above the strip.
        """
        if title:
            self.note(title)
        strip = Image.new("RGB", (self.width, height), (255, 255, 255))
        self._below.append(strip)
        return strip

    def time_x(self, seconds: float) -> float:
        """Return the x on a panel of a time of the clip; 0 s is the left edge, the clip's end the right edge."""
        share = seconds / self.info.duration if self.info.duration > 0 else 0.0
        return min(max(share, 0.0), 1.0) * (self.width - 1)

    def note(self, text: str) -> None:
        """Write a line (wrapped where long) below the frames."""
        self._below.append(text)

    def picture(self, *, title: str = "") -> Image.Image:
        """Return the whole board: title (the question), frames in rows with their times, then panels and notes."""
        pieces = [self._paragraph(title, TITLE)] if title else []
        pieces.append(self._grid())
        pieces += [self._paragraph(piece, CAPTION) if isinstance(piece, str) else piece for piece in self._below]
        height = sum(piece.height for piece in pieces) + GAP * (len(pieces) - 1) + 2 * MARGIN
        board = Image.new("RGB", (self.width + 2 * MARGIN, height), PAPER)
        top = MARGIN
        for piece in pieces:
            board.paste(piece, (MARGIN, top))
            top += piece.height + GAP
        return board

    def save_video(self, path: str | Path, fps: float) -> None:
        """Write the annotated frames with their times as an H.264 MP4, one after the other; whole or not at all.

        Raises:
            ValueError: fps is not positive.
        """
        from fractions import Fraction

        import av

        if not fps > 0:
            raise ValueError(f"frames per second must be positive, got {fps}")
        target = Path(path)
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial.mp4")
        try:
            with av.open(str(partial), mode="w", format="mp4") as container:
                stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
                tiles = [self._with_caption(index) for index in self.frames]
                # 4:2:0 chroma wants even sides.
                stream.width, stream.height = ((side + 1) // 2 * 2 for side in tiles[0].size)
                stream.pix_fmt = "yuv420p"
                for tile in tiles:
                    page = Image.new("RGB", (stream.width, stream.height), PAPER)
                    page.paste(tile)
                    container.mux(stream.encode(av.VideoFrame.from_image(page)))
                container.mux(stream.encode(None))
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)

    def _image(self, frame: int) -> Image.Image:
        if frame not in self._images:
            raise ValueError(f"{self.info.path}: frame {frame} is not on the canvas, which holds {list(self.frames)}")
        return self._images[frame]

    def _labelled(self, index: int) -> Image.Image:
        """Return a frame with its labels, which come last so that no line crosses them."""
        image, taken = self._images[index].copy(), list[Rectangle]()
        for xy, text, ground in self._labels[index]:
            taken.append(draw_label(image, xy, text, size=LABEL, ground=ground, taken=taken))
        return image

    def _paint(
        self, count: int, colour: Colour | Sequence[Colour] | None, labels: Sequence[str] | None
    ) -> tuple[list[Colour], Sequence[str]]:
        labels = [""] * count if labels is None else labels
        if len(labels) != count:
            raise ValueError(f"{count} things to draw need {count} labels, got {len(labels)}")
        if colour is None:
            return [self.next_colour() for _ in range(count)], labels
        values: list[Any] = list(colour)
        colours: list[Colour] = [(values[0], values[1], values[2])] * count if isinstance(values[0], int) else values
        if len(colours) != count:
            raise ValueError(f"{count} things to draw need one colour or {count}, got {len(colours)}")
        return colours, labels

    def _scale_xy(self) -> np.ndarray:
        return np.array([self._tile[0] / self.info.size[0], self._tile[1] / self.info.size[1]])

    def _to_tile(self, boxes_N4: np.ndarray) -> np.ndarray:
        """Return boxes in pixels of the tile, inclusive and inside it, as torchvision draws them."""
        scaled = boxes_N4 * np.tile(self._scale_xy(), 2)
        low, high = np.minimum(scaled[:, :2], scaled[:, 2:]), np.maximum(scaled[:, :2], scaled[:, 2:])
        last = np.array(self._tile) - 1
        low = np.clip(np.round(low), 0, last)
        high = np.maximum(np.clip(np.round(high) - 1, 0, last), low)
        return np.concatenate([low, high], axis=1).astype(np.int64)

    def _columns(self) -> int:
        fitting = max(1, (ROW_WIDTH + GAP) // (self._tile[0] + GAP))
        rows = math.ceil(len(self._images) / fitting)
        return math.ceil(len(self._images) / rows)

    def _with_caption(self, index: int) -> Image.Image:
        if self.info.kind == "image":
            return self._labelled(index)
        tile = Image.new("RGB", (self._tile[0], self._tile[1] + line_height(CAPTION)), PAPER)
        tile.paste(self._labelled(index))
        draw_text(tile, (0, self._tile[1]), f"{self.info.times[index]:.2f} s", size=CAPTION)
        return tile

    def _grid(self) -> Image.Image:
        tiles = [self._with_caption(index) for index in self.frames]
        columns = self._columns()
        width, height = tiles[0].size
        grid = Image.new("RGB", (self.width, math.ceil(len(tiles) / columns) * (height + GAP) - GAP), PAPER)
        for place, tile in enumerate(tiles):
            row, column = divmod(place, columns)
            grid.paste(tile, (column * (width + GAP), row * (height + GAP)))
        return grid

    def _paragraph(self, text: str, size: int) -> Image.Image:
        lines = wrap(text, width=self.width - 4, size=size)
        page = Image.new("RGB", (self.width, line_height(size) * len(lines)), PAPER)
        for row, line in enumerate(lines):
            draw_text(page, (0, row * line_height(size)), line, size=size, colour=BLACK)
        return page


def _choose_scale(size: tuple[int, int], count: int) -> float:
    longest, least = max(size), LEAST_SIDE_ALONE if count == 1 else LEAST_SIDE
    if longest < least:
        return math.ceil(least / longest)
    most = 960 if count == 1 else 480 if count <= 4 else 324
    return min(1.0, most / longest)


def _rows(values: ArrayLike, width: int, name: str) -> np.ndarray:
    rows = np.asarray(values, dtype=np.float64)
    rows = rows.reshape(0, width) if rows.size == 0 else rows
    if rows.ndim != 2 or rows.shape[1] != width or not np.isfinite(rows).all():
        raise ValueError(f"{name} must be finite numbers of shape (N, {width}), got shape {rows.shape}")
    return rows


def _outline(mask_HW: np.ndarray) -> np.ndarray:
    padded = np.pad(mask_HW, 2)
    height, width = mask_HW.shape
    inner = mask_HW.copy()
    for down, right in ((0, 2), (4, 2), (2, 0), (2, 4)):
        inner &= padded[down : down + height, right : right + width]
    outline: np.ndarray = mask_HW & ~inner
    return outline


def _tensor(image: Image.Image) -> Any:
    import torch

    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)


def _picture(tensor: Any) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(tensor.permute(1, 2, 0).numpy()))
