"""Image features of a batch's frames: from memory, from disk, or from SAM2's encoder, each frame once.

Legend: K media, T frames of a medium, U of them sent as pixels, F frames whose features are at hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tpo_core.errors import CheckpointError
from tpo_core.types import Tensors
from tpo_heads.mask.cache import FeatureFolder, FeatureMemory, Name, fingerprint
from tpo_heads.mask.config import MaskConfig
from tpo_heads.mask.track import SamFeatures, encode_frames

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base

PIXELS_AT_ONCE = 8 * 1024 * 1024


class FeatureSource:
    """Gives features of frames by name, and keeps those of a frozen encoder.

    Args:
        config: sizes and folder of the cache.
        sam: the SAM2; it is asked at every call whether its encoder is frozen.
    """

    def __init__(self, config: MaskConfig, sam: SAM2Base) -> None:
        self.config = config
        self._sam = (sam,)
        self.memory = FeatureMemory(config.cache_mib)
        self.encoded = 0
        self._folder: FeatureFolder | None = None

    def forget(self) -> None:
        """Drop what was kept: the weights have changed."""
        self.memory.clear()
        self._folder = None

    def of_batch(self, inputs: Tensors, lengths_K: Sequence[int], *, keep: bool) -> tuple[SamFeatures, Tensor]:
        """Return the features of a batch's frames.

        Args:
            inputs: the codec's, stacked over K media.
            lengths_K: frames of each medium.
            keep: whether newly encoded frames are cached (training); what is cached is read in any case.

        Returns:
            features of F frames, and their numbers (K, T), -1 on padding.
        """
        index_KT = torch.full(inputs["pixel_of"].shape, -1)
        if not self._frozen or not (self.config.cache_mib or self.config.cache_dir):
            places = [(k, t) for k, length in enumerate(lengths_K) for t in range(length)]
            where = torch.tensor(places)
            index_KT[where[:, 0], where[:, 1]] = torch.arange(len(places))
            media, times = where.to(inputs["frames"].device).unbind(1)
            return self._encode(inputs["frames"][media, inputs["pixel_of"][media, times]]), index_KT.to(inputs["frames"].device)
        names = inputs["frame_name"].tolist()
        pixel_of = inputs["pixel_of"].tolist()
        rows: dict[Name, int] = {}
        pixels: dict[Name, tuple[int, int]] = {}
        for k, length in enumerate(lengths_K):
            for t in range(length):
                name = (names[k][t][0], names[k][t][1])
                index_KT[k, t] = rows.setdefault(name, len(rows))
                if pixel_of[k][t] >= 0:
                    pixels[name] = (k, pixel_of[k][t])
        parts = self._look_up(list(rows), pixels, inputs["frames"], keep=keep)
        return SamFeatures(*(torch.cat(levels) for levels in zip(*parts))), index_KT.to(inputs["frames"].device)

    def _look_up(
        self, names: Sequence[Name], pixels: dict[Name, tuple[int, int]], frames_KUCHW: Tensor, *, keep: bool
    ) -> list[SamFeatures]:
        device = frames_KUCHW.device
        mixed = torch.is_autocast_enabled(device.type)
        dtype = torch.get_autocast_dtype(device.type) if mixed else self._encoder[0].dtype
        found: dict[Name, SamFeatures] = {}
        for name in names:
            held = self.memory.get(name, dtype)
            if held is None and self.folder is not None:
                held = self.folder.get(name)
                if held is not None and not mixed:
                    # The file may come from a run in mixed precision.
                    held = SamFeatures(*(level.to(dtype) for level in held))
                if held is not None and keep:
                    self.memory.put(name, dtype, held)
            if held is not None:
                found[name] = SamFeatures(*(level.to(device, non_blocking=True) for level in held))
        missing = [name for name in names if name not in found]
        lost = [name for name in missing if name not in pixels]
        if lost:
            raise CheckpointError(
                f"{len(lost)} frames came without pixels because {self.config.cache_dir} held their features, which are gone now; "
                f"start again, and leave the folder alone during a run"
            )
        if missing:
            where = torch.tensor([pixels[name] for name in missing], device=device)
            made = self._encode(frames_KUCHW[where[:, 0], where[:, 1]])
            for position, name in enumerate(missing):
                found[name] = SamFeatures(*(level[position : position + 1] for level in made))
                if keep:
                    self.memory.put(name, dtype, found[name])
                    if self.folder is not None:
                        self.folder.put(name, found[name])
        return [found[name] for name in names]

    def _encode(self, frames_FCHW: Tensor) -> SamFeatures:
        at_once = max(1, PIXELS_AT_ONCE // self._sam[0].image_size ** 2)
        self.encoded += len(frames_FCHW)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self._frozen):
            return encode_frames(self._sam[0], frames_FCHW, at_once=at_once)

    @property
    def _encoder(self) -> list[torch.nn.Parameter]:
        sam = self._sam[0]
        decoder = sam.sam_mask_decoder
        return [*sam.image_encoder.parameters(), *decoder.conv_s0.parameters(), *decoder.conv_s1.parameters()]

    @property
    def _frozen(self) -> bool:
        return not any(parameter.requires_grad for parameter in self._encoder)

    @property
    def folder(self) -> FeatureFolder | None:
        """Return the folder, opened (and its owner compared) at first use."""
        if self._folder is None and self.config.cache_dir is not None:
            owner = fingerprint([parameter.data for parameter in self._encoder])
            self._folder = FeatureFolder(Path(self.config.cache_dir), self.config.cache_dir_mib, owner)
        return self._folder
