"""A family's vision layout: how media become tokens, and which vision rows belong to which frame.

A layout has two halves. The **worker half** (no torch module, picklable) drives the family's own processor and says, for every medium,
how many vision tokens it has and which of them form which frame at which time. The **device half** (`encode`) turns the processor's
tensors into one flat list of vision rows, in token order, which serves the language model and the heads alike.

Legend: T frames (time steps), P tokens of a frame, R vision rows in token order, V width of the rows.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tpo_core.errors import BackboneError, DataError
from tpo_core.types import Tensors


@dataclass(frozen=True)
class LoadedMedium:
    """A decoded medium on its way into the processor.

    Args:
        kind: image or video.
        frames: uint8 (n, H, W, 3).
        starts, ends: seconds of each frame on the clip's clock.
        duration: seconds of the clip.
    """

    kind: Literal["image", "video"]
    frames: np.ndarray
    starts: tuple[float, ...]
    ends: tuple[float, ...]
    duration: float


@dataclass(frozen=True)
class MediumRows:
    """Where one medium's features lie among its own vision rows.

    Args:
        video: whether it came through the video interface.
        count: its vision tokens in the text.
        rows_TP: index into those, shape (T, P).
        grid: rows and columns of the P tokens of a frame.
        time_T2: [start, end) seconds of each time step.
    """

    video: bool
    count: int
    rows_TP: np.ndarray
    grid: tuple[int, int]
    time_T2: np.ndarray


@dataclass(frozen=True)
class Encoded:
    """One sample as the processor gave it: ids, other per-token tensors (L,), visual tensors."""

    ids: list[int]
    extra: dict[str, list[int]]
    visual: Tensors


@dataclass
class Vision:
    """The flat vision rows of a batch, and what the language model takes in place of pixels (None: it encodes them itself)."""

    image_RV: Tensor | None
    video_RV: Tensor | None
    outputs: dict[str, Any] | None


class Layout:
    """The generic layout: pictures and videos through the processor's own interfaces, one run of tokens per medium.

    A family overrides what differs; `tpo_backbones` lets a package announce its own. Of a tiled picture, heads get the base view.
    """

    name = "generic"
    video_as_images = False
    per_token = ("mm_token_type_ids", "token_type_ids")

    def __init__(self, processor: Any, config: Any) -> None:
        self.processor = processor
        self.image_id = _first(config, "image_token_id", "image_token_index")
        self.video_id = _first(config, "video_token_id", "video_token_index")

    temporal_patch = 1

    def message_parts(self, medium: LoadedMedium) -> list[dict[str, str]]:
        """Return the content parts under which a medium stands in a message."""
        if medium.kind == "video" and self.video_as_images:
            parts: list[dict[str, str]] = []
            for start in medium.starts:
                parts += [{"type": "text", "text": f"{start:.1f}s "}, {"type": "image"}]
            return parts
        return [{"type": medium.kind}]

    def process(self, text: str, media: Sequence[LoadedMedium]) -> Encoded:
        """Run the family's processor on one rendered sample.

        Raises:
            DataError: the processor refuses the media.
        """
        images, videos = self._split(media)
        arguments: dict[str, Any] = {"text": [text], "return_tensors": "pt"}
        if images:
            arguments["images"] = images
        if videos:
            arguments |= self.video_arguments(videos)
        try:
            out = self.processor(**arguments, **self.options(media))
        except (ValueError, TypeError, IndexError) as error:
            raise DataError(f"the backbone's processor refused {len(media)} media: {error}") from error
        data = {key: value for key, value in out.items() if key not in ("input_ids", "attention_mask")}
        extra = {key: data.pop(key)[0].tolist() for key in self.per_token if key in data}
        return Encoded(ids=out["input_ids"][0].tolist(), extra=extra, visual=_as_tensors(data))

    def options(self, media: Sequence[LoadedMedium]) -> dict[str, Any]:
        """Return further arguments of the processor that depend on the media."""
        return {}

    def video_arguments(self, videos: Sequence[LoadedMedium]) -> dict[str, Any]:
        """Return frames and their metadata. Frame numbers count milliseconds, so that any frame rate, a variable one too, is exact."""
        metadata = [
            {
                "fps": 1000.0,
                "total_num_frames": max(round(v.duration * 1000), 1),
                "duration": v.duration,
                "frames_indices": [round(t * 1000) for t in v.starts],
            }
            for v in videos
        ]
        frames = [torch.from_numpy(np.ascontiguousarray(v.frames)).permute(0, 3, 1, 2) for v in videos]
        return {"videos": frames, "video_metadata": metadata, "do_sample_frames": False}

    def rows(self, encoded: Encoded, media: Sequence[LoadedMedium]) -> list[MediumRows]:
        """Return where each medium's features lie. The generic rule: one run of equal tokens per medium, a frame without a known grid.

        Raises:
            BackboneError: the tokens do not fall into one run per medium.
        """
        runs = {False: _runs(encoded.ids, self.image_id), True: _runs(encoded.ids, self.video_id)}
        out = []
        for medium in media:
            video = medium.kind == "video"
            if not runs[video]:
                raise BackboneError(
                    f"the {type(self.processor).__name__} wrote fewer runs of vision tokens than there are media; "
                    "write a layout for this family (hook tpo_backbones)"
                )
            length = len(runs[video].pop(0))
            steps = len(medium.starts) if video and length % len(medium.starts) == 0 else 1
            index = np.arange(length).reshape(steps, -1)
            out.append(MediumRows(video, length, index, (1, index.shape[1]), step_times(medium, steps)))
        return out

    def join(self, samples: Sequence[Tensors]) -> Tensors:
        """Join the visual tensors of several samples; the generic rule: along the first dimension."""
        keys = {key for sample in samples for key in sample}
        return {key: torch.cat([sample[key] for sample in samples if key in sample]) for key in sorted(keys)}

    def _split(self, media: Sequence[LoadedMedium]) -> tuple[list[Image.Image], list[LoadedMedium]]:
        images: list[Image.Image] = []
        videos: list[LoadedMedium] = []
        for medium in media:
            if medium.kind == "video" and not self.video_as_images:
                videos.append(medium)
            else:
                images += [Image.fromarray(frame) for frame in medium.frames]
        return images, videos

    def encode(self, model: Any, tensors: Tensors) -> Vision:
        """Encode all media of a batch, one call per interface."""
        outputs: dict[str, Any] = {}
        rows: dict[str, Tensor | None] = {"image": None, "video": None}
        for modality, key in (("image", "pixel_values"), ("video", "pixel_values_videos")):
            if key in tensors:
                outputs[modality] = call_encoder(model, modality, tensors)
                rows[modality] = flat_rows(outputs[modality].pooler_output)
        return Vision(rows["image"], rows["video"], outputs)


class MergedLayout(Layout):
    """For a family without `mm_encoder_outputs`: the model encodes by itself, and the rows are gathered from its merged embeddings."""

    name = "merged"

    def encode(self, model: Any, tensors: Tensors) -> Vision:
        return Vision(None, None, None)


def call_encoder(model: Any, modality: str, tensors: Mapping[str, Tensor]) -> Any:
    """Call ``get_image_features`` or ``get_video_features`` with those of the tensors that it names."""
    function = getattr(model, f"get_{modality}_features")
    names = inspect.signature(function).parameters
    return function(**{key: value for key, value in tensors.items() if key in names}, return_dict=True)


def flat_rows(pooled: Any) -> Tensor:
    """Return (R, V) from what families give as pooled output: a tensor (n, L, V) or (R, V), or a list of (L_i, V)."""
    rows = torch.cat(list(pooled)) if isinstance(pooled, (tuple, list)) else pooled
    return rows.reshape(-1, rows.shape[-1])


def step_times(medium: LoadedMedium, steps: int) -> np.ndarray:
    """Return [start, end) seconds of each time step, where a step merges an equal number of frames (the last may repeat its last frame)."""
    n = len(medium.starts)
    merged = -(-n // steps)
    first = np.minimum(np.arange(steps) * merged, n - 1)
    last = np.minimum(first + merged - 1, n - 1)
    return np.stack([np.asarray(medium.starts)[first], np.asarray(medium.ends)[last]], axis=1).astype(np.float32)


def pad_stack(tensors: Sequence[Tensor], dim: int) -> Tensor:
    """Concatenate along `dim`, padding the other dimensions with zeros at their ends to the largest."""
    shape = [max(t.shape[d] for t in tensors) for d in range(tensors[0].ndim)]
    padded = []
    for tensor in tensors:
        pad = [size for d in reversed(range(tensor.ndim)) for size in (0, 0 if d == dim else shape[d] - tensor.shape[d])]
        padded.append(torch.nn.functional.pad(tensor, pad))
    return torch.cat(padded, dim=dim)


def _first(config: Any, *names: str) -> int | None:
    for name in names:
        value = getattr(config, name, None)
        if value is not None:
            return int(value)
    return None


def _runs(ids: Sequence[int], token: int | None) -> list[list[int]]:
    runs: list[list[int]] = []
    previous = -2
    for position, value in enumerate(ids):
        if value != token:
            continue
        if position != previous + 1:
            runs.append([])
        runs[-1].append(position)
        previous = position
    return runs


def _as_tensors(data: Mapping[str, Any]) -> Tensors:
    tensors: Tensors = {}
    for key, value in data.items():
        if isinstance(value, torch.Tensor):
            tensors[key] = value
        elif isinstance(value, (list, tuple)) and value and isinstance(value[0], (int, float)):
            tensors[key] = torch.tensor(value)
    return tensors
