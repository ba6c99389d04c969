"""The record of what was done to a medium, so that points, boxes, masks and spans go to model space and come back.

Coordinates are continuous pixels: pixel (column i, row j) covers [i, i + 1) x [j, j + 1), and x2, y2 of a box are exclusive.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

_EDGE = 1e-9
"""Pixel centres that fall on a border by rounding go to the right of it, the same way at every scale."""


@dataclass(frozen=True)
class Transform:
    """An axis-aligned map from original to model space: ``x' = x * scale_x + offset_x``, ``t' = (t - time_start) * time_scale``.

    Start from `identity` and add the steps in the order in which they were done; `then` joins two records.

    Args:
        source_size: (width, height) of the original in pixels.
        target_size: (width, height) in model space.
        scale, offset: (x, y).
        window_xyxy: the part of model space that shows the original; the rest is padding.
        time_start: seconds of the original at which model time is 0.
        time_stop: seconds of the original at which the clip ends, or None where it was not cut.
        time_scale: model time units per second (a rate in frames per second gives frame indices; 1 stays seconds).
    """

    source_size: tuple[int, int]
    target_size: tuple[int, int]
    scale: tuple[float, float] = (1.0, 1.0)
    offset: tuple[float, float] = (0.0, 0.0)
    window_xyxy: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    time_start: float = 0.0
    time_stop: float | None = None
    time_scale: float = 1.0

    @classmethod
    def identity(cls, size: tuple[int, int]) -> Transform:
        """Return the record of an untouched medium of (width, height)."""
        _positive(size)
        return cls(source_size=size, target_size=size, window_xyxy=(0.0, 0.0, float(size[0]), float(size[1])))

    def resize(self, size: tuple[int, int]) -> Transform:
        """Return the record with a resize to (width, height) added."""
        _positive(size)
        factor = (size[0] / self.target_size[0], size[1] / self.target_size[1])
        return self._moved(size, factor, (0.0, 0.0))

    def pad(self, *, left: int = 0, top: int = 0, right: int = 0, bottom: int = 0) -> Transform:
        """Return the record with borders added."""
        if min(left, top, right, bottom) < 0:
            raise ValueError(f"padding {left, top, right, bottom} is negative; use crop")
        size = (self.target_size[0] + left + right, self.target_size[1] + top + bottom)
        return self._moved(size, (1.0, 1.0), (float(left), float(top)))

    def crop(self, *, left: int, top: int, width: int, height: int) -> Transform:
        """Return the record with everything outside a rectangle of model space cut away."""
        _positive((width, height))
        if left < 0 or top < 0 or left + width > self.target_size[0] or top + height > self.target_size[1]:
            raise ValueError(
                f"the crop at {left, top} of {width}x{height} leaves the picture of {self.target_size}; keep it inside, or pad"
            )
        return self._moved((width, height), (1.0, 1.0), (-float(left), -float(top)))

    def letterbox(self, size: tuple[int, int]) -> Transform:
        """Return the record with the largest resize that keeps the aspect, then equal borders up to (width, height)."""
        _positive(size)
        factor = min(size[0] / self.target_size[0], size[1] / self.target_size[1])
        inner = (max(1, min(size[0], round(self.target_size[0] * factor))), max(1, min(size[1], round(self.target_size[1] * factor))))
        left, top = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
        return self.resize(inner).pad(left=left, top=top, right=size[0] - inner[0] - left, bottom=size[1] - inner[1] - top)

    def cut(self, start: float, stop: float | None = None) -> Transform:
        """Return the record with a cut to [start, stop) of the present time added; model time starts anew at 0."""
        if start < 0 or (stop is not None and stop <= start):
            raise ValueError(f"the cut from {start} to {stop} holds nothing; give 0 <= start < stop")
        ends = [] if self.time_stop is None else [self.time_stop]
        if stop is not None:
            ends.append(self.time_start + stop / self.time_scale)
        return replace(self, time_start=self.time_start + start / self.time_scale, time_stop=min(ends) if ends else None)

    def rate(self, fps: float) -> Transform:
        """Return the record with time counted in frames of a rate."""
        if not 0 < fps < float("inf"):
            raise ValueError(f"fps is {fps}; expected a positive number")
        return replace(self, time_scale=self.time_scale * fps)

    def then(self, other: Transform) -> Transform:
        """Return one record for this one followed by another, whose source is this one's target."""
        if other.source_size != self.target_size:
            raise ValueError(f"the second record starts from {other.source_size}, but the first one ends at {self.target_size}")
        moved = self._moved(other.target_size, other.scale, other.offset)
        window = _clip_window(moved.window_xyxy, other.window_xyxy)
        timed = moved.cut(other.time_start, other.time_stop) if (other.time_start, other.time_stop) != (0.0, None) else moved
        return replace(timed, window_xyxy=window, time_scale=self.time_scale * other.time_scale)

    def points_to_model(self, points_xy: npt.ArrayLike) -> np.ndarray:
        """Map points, shape (..., 2), float64."""
        return np.asarray(points_xy, dtype=np.float64) * self.scale + self.offset

    def points_to_original(self, points_xy: npt.ArrayLike, *, clip: bool = False) -> np.ndarray:
        """Map points back, shape (..., 2); with `clip` into the original picture."""
        points: np.ndarray = (np.asarray(points_xy, dtype=np.float64) - self.offset) / self.scale
        return np.clip(points, 0.0, self.source_size) if clip else points

    def boxes_to_model(self, boxes_xyxy: npt.ArrayLike, *, clip: bool = False) -> np.ndarray:
        """Map boxes, shape (..., 4); with `clip` into the window (a box outside it gets no area)."""
        boxes = _boxes(boxes_xyxy)
        mapped: np.ndarray = boxes * (self.scale * 2) + self.offset * 2
        low, high = self.window_xyxy[:2], self.window_xyxy[2:]
        return np.clip(mapped, low * 2, high * 2) if clip else mapped

    def boxes_to_original(self, boxes_xyxy: npt.ArrayLike, *, clip: bool = False) -> np.ndarray:
        """Map boxes back, shape (..., 4); with `clip` into the original picture."""
        boxes: np.ndarray = (_boxes(boxes_xyxy) - self.offset * 2) / (self.scale * 2)
        return np.clip(boxes, 0.0, self.source_size * 2) if clip else boxes

    def masks_to_model(self, masks_HW: np.ndarray) -> np.ndarray:
        """Map masks (or any picture-like array), shape (..., H, W), by the nearest pixel; what is padding becomes 0.

        Raises:
            ValueError: H, W are not the original's.
        """
        _masks(masks_HW, self.source_size, "original")
        columns, columns_inside = self._lookup(0, to_model=True)
        rows, rows_inside = self._lookup(1, to_model=True)
        return _gather(masks_HW, rows, rows_inside, columns, columns_inside)

    def masks_to_original(self, masks_HW: np.ndarray) -> np.ndarray:
        """Map masks back, shape (..., H, W), by the nearest pixel; what a crop cut away becomes 0.

        Raises:
            ValueError: H, W are not the model space's.
        """
        _masks(masks_HW, self.target_size, "model")
        columns, columns_inside = self._lookup(0, to_model=False)
        rows, rows_inside = self._lookup(1, to_model=False)
        return _gather(masks_HW, rows, rows_inside, columns, columns_inside)

    def spans_to_model(self, spans: npt.ArrayLike, *, clip: bool = False) -> np.ndarray:
        """Map times in seconds (spans, or any shape) to model time; with `clip` into the cut."""
        seconds = np.asarray(spans, dtype=np.float64)
        if clip:
            seconds = np.clip(seconds, self.time_start, np.inf if self.time_stop is None else self.time_stop)
        return (seconds - self.time_start) * self.time_scale

    def spans_to_original(self, spans: npt.ArrayLike, *, clip: bool = False) -> np.ndarray:
        """Map times back to seconds of the original; with `clip` into the cut."""
        seconds = np.asarray(spans, dtype=np.float64) / self.time_scale + self.time_start
        return np.clip(seconds, self.time_start, np.inf if self.time_stop is None else self.time_stop) if clip else seconds

    def _moved(self, size: tuple[int, int], factor: tuple[float, float], shift: tuple[float, float]) -> Transform:
        left, top, right, bottom = self.window_xyxy
        window = (
            left * factor[0] + shift[0],
            top * factor[1] + shift[1],
            right * factor[0] + shift[0],
            bottom * factor[1] + shift[1],
        )
        return replace(
            self,
            target_size=size,
            scale=(self.scale[0] * factor[0], self.scale[1] * factor[1]),
            offset=(self.offset[0] * factor[0] + shift[0], self.offset[1] * factor[1] + shift[1]),
            window_xyxy=_clip_window(window, (0.0, 0.0, float(size[0]), float(size[1]))),
        )

    def _lookup(self, axis: int, *, to_model: bool) -> tuple[np.ndarray, np.ndarray]:
        """Return, for every output pixel of an axis, the input pixel at its centre and whether there is one."""
        scale, offset = self.scale[axis], self.offset[axis]
        low, high = self.window_xyxy[axis] - _EDGE, self.window_xyxy[axis + 2] + _EDGE
        count, limit = (self.target_size, self.source_size) if to_model else (self.source_size, self.target_size)
        centres = np.arange(count[axis]) + 0.5
        place = (centres - offset) / scale if to_model else centres * scale + offset
        model = centres if to_model else place
        index = np.floor(place + _EDGE).astype(np.int64)
        inside = (index >= 0) & (index < limit[axis]) & (model >= low) & (model < high)
        return index.clip(0, limit[axis] - 1), inside


def _gather(masks_HW: np.ndarray, rows: np.ndarray, rows_inside: np.ndarray, columns: np.ndarray, columns_inside: np.ndarray) -> np.ndarray:
    picked: np.ndarray = masks_HW[..., rows[:, None], columns[None, :]]
    picked[..., ~(rows_inside[:, None] & columns_inside[None, :])] = 0
    return picked


def _boxes(boxes_xyxy: npt.ArrayLike) -> np.ndarray:
    boxes = np.asarray(boxes_xyxy, dtype=np.float64)
    if boxes.size == 0:
        return boxes.reshape(0, 4)
    if boxes.shape[-1] != 4:
        raise ValueError(f"boxes have shape {boxes.shape}; expected (..., 4), xyxy")
    return boxes


def _masks(masks_HW: np.ndarray, size: tuple[int, int], space: str) -> None:
    if masks_HW.ndim < 2 or masks_HW.shape[-2:] != (size[1], size[0]):
        raise ValueError(f"masks have shape {masks_HW.shape}; expected (..., {size[1]}, {size[0]}), the height and width of {space} space")


def _positive(size: tuple[int, int]) -> None:
    if size[0] < 1 or size[1] < 1:
        raise ValueError(f"the size {size} (width, height) must be positive")


def _clip_window(
    window_xyxy: tuple[float, float, float, float], bounds_xyxy: tuple[float, float, float, float]
) -> tuple[float, float, float, float]:
    left, top, right, bottom = np.clip(window_xyxy, bounds_xyxy[:2] * 2, bounds_xyxy[2:] * 2).tolist()
    return (left, top, right, bottom)
