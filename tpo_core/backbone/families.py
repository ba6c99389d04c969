"""The families whose layout differs from the generic one. A few lines each; see `tpo_core.backbone.layout` for the two halves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from tpo_core.backbone.layout import Encoded, Layout, LoadedMedium, MediumRows, Vision, call_encoder, flat_rows, pad_stack, step_times
from tpo_core.types import Tensors


class QwenVLLayout(Layout):
    """Qwen2-VL, 2.5-VL, 3-VL: a grid (t, h, w) per medium, spatial patches merged, frames merged in time.

    Window attention reorders inside the tower; its merged output is in raster order again.
    """

    name = "qwen_vl"

    def __init__(self, processor: Any, config: Any) -> None:
        super().__init__(processor, config)
        self.merge = int(config.vision_config.spatial_merge_size)
        self.temporal_patch = int(config.vision_config.temporal_patch_size)

    def rows(self, encoded: Encoded, media: Sequence[LoadedMedium]) -> list[MediumRows]:
        grids = {
            False: encoded.visual.get("image_grid_thw", torch.empty(0, 3)).tolist(),
            True: encoded.visual.get("video_grid_thw", torch.empty(0, 3)).tolist(),
        }
        out = []
        for medium in media:
            video = medium.kind == "video"
            steps, height, width = (int(v) for v in grids[video].pop(0))
            grid = (height // self.merge, width // self.merge)
            index = np.arange(steps * grid[0] * grid[1]).reshape(steps, -1)
            out.append(MediumRows(video, index.size, index, grid, step_times(medium, steps)))
        return out


class LlavaOnevisionLayout(Layout):
    """LLaVA-OneVision: pictures as base view + tiles with newlines (heads get the base view); videos pooled 2x2, one newline at the end."""

    name = "llava_onevision"

    def __init__(self, processor: Any, config: Any) -> None:
        super().__init__(processor, config)
        self.side = config.vision_config.image_size // config.vision_config.patch_size

    def rows(self, encoded: Encoded, media: Sequence[LoadedMedium]) -> list[MediumRows]:
        pictures = sum(m.kind == "image" for m in media)
        image_tokens = encoded.ids.count(self.image_id) if self.image_id is not None else 0
        sizes = self._image_counts(encoded, pictures, image_tokens)
        pooled = math.ceil(self.side / 2)
        out = []
        for medium in media:
            if medium.kind == "image":
                index = np.arange(self.side * self.side)[None]
                out.append(MediumRows(False, sizes.pop(0), index, (self.side, self.side), step_times(medium, 1)))
            else:
                steps = len(medium.starts)
                index = np.arange(steps * pooled * pooled).reshape(steps, -1)
                out.append(MediumRows(True, index.size + 1, index, (pooled, pooled), step_times(medium, steps)))
        return out

    def _image_counts(self, encoded: Encoded, pictures: int, tokens: int) -> list[int]:
        # One picture is tiled, several are not: then each has its base view and one newline.
        if pictures <= 1:
            return [tokens] * pictures
        return [self.side * self.side + 1] * pictures

    def process(self, text: str, media: Sequence[LoadedMedium]) -> Encoded:
        encoded = super().process(text, media)
        visual = dict(encoded.visual)
        if "pixel_values_videos" in visual:
            videos = visual.pop("pixel_values_videos")
            visual["video_frames"] = torch.full((len(videos),), videos.shape[1])
            visual["pixel_values_videos"] = videos.flatten(0, 1)
        return Encoded(encoded.ids, encoded.extra, visual)

    def join(self, samples: Sequence[Tensors]) -> Tensors:
        rest = [{k: v for k, v in s.items() if k != "pixel_values"} for s in samples]
        joined = super().join(rest)
        tiles = [s["pixel_values"] for s in samples if "pixel_values" in s]
        if tiles:
            joined["pixel_values"] = pad_stack(tiles, dim=0)
        return joined

    def encode(self, model: Any, tensors: Tensors) -> Vision:
        outputs: dict[str, Any] = {}
        if "pixel_values" in tensors:
            outputs["image"] = call_encoder(model, "image", tensors)
        if "pixel_values_videos" in tensors:
            outputs["video"] = self._encode_videos(model, tensors)
        image = flat_rows(outputs["image"].pooler_output) if "image" in outputs else None
        video = flat_rows(outputs["video"].pooler_output) if "video" in outputs else None
        return Vision(image, video, outputs)

    def _encode_videos(self, model: Any, tensors: Tensors) -> Any:
        """Encode clips of equal length together, then put their rows back into token order."""
        lengths = [int(n) for n in tensors["video_frames"].tolist()]
        clips = list(torch.split(tensors["pixel_values_videos"], lengths))
        rows: list[torch.Tensor | None] = [None] * len(clips)
        output: Any = None
        for length in sorted(set(lengths)):
            members = [i for i, n in enumerate(lengths) if n == length]
            output = call_encoder(model, "video", {"pixel_values_videos": torch.stack([clips[i] for i in members])})
            for i, row in zip(members, output.pooler_output, strict=True):
                rows[i] = row
        output.pooler_output = torch.cat([row for row in rows if row is not None]).unsqueeze(0)
        return output


class Idefics3Layout(Layout):
    """Idefics3 and SmolVLM: tiles, then the whole picture behind a global tag (that one goes to the heads). Videos go in as pictures."""

    name = "idefics3"
    video_as_images = True

    def __init__(self, processor: Any, config: Any) -> None:
        super().__init__(processor, config)
        self.sequence = int(processor.image_seq_len)
        self.side = math.isqrt(self.sequence)

    def options(self, media: Sequence[LoadedMedium]) -> dict[str, Any]:
        # Frames of a clip are not tiled: they would cost 5 to 17 times the tokens.
        return {"do_image_splitting": False} if any(m.kind == "video" for m in media) else {}

    def rows(self, encoded: Encoded, media: Sequence[LoadedMedium]) -> list[MediumRows]:
        global_id = self.processor.tokenizer.convert_tokens_to_ids(self.processor.global_image_tag)
        blocks = self._blocks(encoded.ids, global_id)
        out = []
        for medium in media:
            steps = len(medium.starts)
            mine, blocks = blocks[:steps], blocks[steps:]
            ends = np.cumsum(mine)
            index = np.stack([np.arange(end - self.sequence, end) for end in ends])
            out.append(MediumRows(False, int(ends[-1]), index, (self.side, self.side), step_times(medium, steps)))
        return out

    def _blocks(self, ids: Sequence[int], global_id: int) -> list[int]:
        """Return the number of image tokens of each picture; its last run stands behind the global tag."""
        blocks: list[int] = []
        count = 0
        for position, token in enumerate(ids):
            if token != self.image_id:
                continue
            count += 1
            run_start = position - self.sequence
            if run_start >= 0 and ids[run_start] == global_id and count % self.sequence == 0:
                blocks.append(count)
                count = 0
        return blocks

    def join(self, samples: Sequence[Tensors]) -> Tensors:
        # All pictures of the batch as one row of pictures: the model flattens them anyway, in the same order.
        keys = {key for sample in samples for key in sample}
        return {key: pad_stack([s[key] for s in samples if key in s], dim=1) for key in sorted(keys)}


FAMILIES: dict[str, type[Layout]] = {
    "qwen2_vl": QwenVLLayout,
    "qwen2_5_vl": QwenVLLayout,
    "qwen3_vl": QwenVLLayout,
    "llava_onevision": LlavaOnevisionLayout,
    "idefics3": Idefics3Layout,
    "smolvlm": Idefics3Layout,
}
