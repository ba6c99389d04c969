"""Small clips with moving blocks, and batches of them, made the way core makes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from tpo_core.stack import stack_rows
from tpo_core.testing import ArrayMedia
from tpo_core.types import BackboneView, ClipView, Queries, Target, Widths
from tpo_heads.mask.codec import MaskCodec
from tpo_heads.mask.config import MaskConfig
from tpo_heads.mask.head import MaskHead
from tpo_heads.mask.rle import encode

HIDDEN = 24
SIZE = (64, 48)


class CountingMedia(ArrayMedia):
    """Media in memory that remember which frames were read."""

    def __init__(self, frames_THW3: np.ndarray) -> None:
        super().__init__(frames_THW3)
        self.read: list[int] = []

    def frames(self, indices: Sequence[int]) -> np.ndarray:
        self.read += list(indices)
        return super().frames(indices)


class Bench:
    """Makes media, targets, views and batches."""

    view = BackboneView(model_type="toy", frames=4, temporal_patch=1, feature_dim=8, hidden=HIDDEN)

    def media(self, count: int, seed: int = 0) -> CountingMedia:
        return CountingMedia(np.random.default_rng(seed).integers(0, 256, (count, SIZE[1], SIZE[0], 3), dtype=np.uint8))

    def block(self, left: int, top: int = 10, width: int = 20, height: int = 16) -> np.ndarray:
        mask = np.zeros((SIZE[1], SIZE[0]), dtype=bool)
        mask[top : top + height, left : left + width] = True
        return mask

    def target(self, masks: Mapping[int, np.ndarray | None], name: str = "t0", **fields: Any) -> Target:
        rle = [None if mask is None else encode(mask) for mask in masks.values()]
        return Target.model_validate({"id": name, "head": "mask", "size": list(SIZE), "frames": list(masks), "rle": rle, **fields})

    def box_prompt(self, frame: int = 0, box: tuple[int, ...] = (8, 12, 40, 36)) -> Target:
        fields = {"id": "p", "role": "prompt", "kind": "box", "size": list(SIZE), "frame": frame, "boxes": [list(box)]}
        return Target.model_validate(fields)

    def clip(self, media: Any, *targets: Target, training: bool = True, seed: int = 0, seen: tuple[int, ...] = ()) -> ClipView:
        return ClipView(media, targets, training=training, seed=(seed,), frame_indices=seen)

    def codec(self, config: MaskConfig) -> MaskCodec:
        return MaskCodec(config, self.view)

    def head(self, config: MaskConfig, seed: int = 0) -> MaskHead:
        torch.manual_seed(seed)
        return MaskHead(config, Widths(hidden=HIDDEN, features=8, words=HIDDEN))

    def batch(
        self, config: MaskConfig, clips: Sequence[ClipView], *, prompts: Mapping[int, Target] | None = None, seed: int = 0
    ) -> tuple[Queries, dict[str, torch.Tensor]]:
        """Return queries and targets of these clips (a clip without a target gives one query, and no targets are returned).

        Args:
            prompts: row -> prompt of the question.
        """
        codec = self.codec(config)
        rows = [(k, row) for k, clip in enumerate(clips) for target in clip.targets for row in codec.encode(target, clip)]
        media = [k for k, _ in rows] or list(range(len(clips)))
        noise = torch.Generator().manual_seed(seed)
        given = {row: codec.encode_prompt(prompt, clips[media[row]]) for row, prompt in (prompts or {}).items()}
        empty = {key: torch.zeros_like(value) for key, value in next(iter(given.values()), {}).items()}
        queries = Queries(
            states_NSD=torch.randn(len(media), config.slots, HIDDEN, generator=noise),
            media_N=torch.tensor(media),
            words_NWD=torch.zeros(len(media), 1, HIDDEN),
            words_valid_NW=torch.ones(len(media), 1, dtype=torch.bool),
            inputs=stack_rows([codec.inputs(clip) for clip in clips], codec.ragged),
            prompts=stack_rows([given.get(row, empty) for row in range(len(media))], frozenset()) if given else {},
            prompted_N=torch.tensor([row in given for row in range(len(media))]),
        )
        return queries, stack_rows([row for _, row in rows], codec.ragged)


@pytest.fixture(scope="session")
def bench() -> Bench:
    return Bench()
