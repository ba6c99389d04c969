"""The mask head: task embedding -> adapter -> SAM2's mask decoder and memory -> masks, with gradients all the way back.

Legend: N queries, K media, T frames (padded to the longest), S slots, D width of the language model, P prompt tokens, C their width,
M candidate masks, h w SAM2's mask logits, G rows of a group.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tpo_core.errors import ConfigError
from tpo_core.head import Head
from tpo_core.types import Chunk, Queries, Tensors, Widths
from tpo_heads.mask.config import MaskConfig
from tpo_heads.mask.features import FeatureSource
from tpo_heads.mask.objective import mask_terms, prompt_terms
from tpo_heads.mask.prompts import Adapter, Presence, PromptEncoder
from tpo_heads.mask.sam import SAM_CARDS, build_sam, fetch_weights, load_weights
from tpo_heads.mask.segment import add_presence, ask, segment
from tpo_heads.mask.stream import stream_clip
from tpo_heads.mask.track import corner_tokens, unused_parameters

logger = logging.getLogger(__name__)


class MaskHead(Head[MaskConfig]):
    """SAM2 prompted by the task embedding.

    SAM2 lies under ``sam``; what `MaskConfig.trains` does not name is frozen and stays in eval mode (its dropout would blur the memory).

    Raises:
        ConfigError: no such SAM2, or its weights cannot be had.
        CheckpointError: the file of weights does not fit.
    """

    def __init__(self, config: MaskConfig, widths: Widths) -> None:
        super().__init__(config, widths)
        self.sam = build_sam(config.sam, image_size=config.image_size)
        width = SAM_CARDS[config.sam].prompt_dim
        self.adapter = Adapter(widths.hidden, config.slots, config.num_prompt_tokens, width, config.adapter_depth)
        self.prompt = PromptEncoder(widths.hidden)
        self.aux_box = Adapter(widths.hidden, config.slots, 1, 4, 2) if config.boxes else None
        if config.anchor == "box":
            assert self.aux_box is not None, "an anchor is a box"
            self.adapter.start_at(torch.zeros(self.adapter.shape))
            self.aux_box.start_at(torch.tensor([[0.25, 0.25, 0.75, 0.75]]))
        self.presence = Presence(widths.hidden, config.slots) if config.presence and config.pixels else None
        self.source = FeatureSource(config, self.sam)
        self._absent_weights: str | None = None
        self._load_weights()
        self._freeze()
        hook: Callable[..., Any] = self.register_load_state_dict_post_hook
        hook(_note_loaded)

    @property
    def term_weights(self) -> Mapping[str, float]:
        return self.config.factors

    def train(self, mode: bool = True) -> MaskHead:
        """Set the mode; a SAM2 that does not train as a whole stays in eval mode."""
        super().train(mode)
        self.sam.train(mode and self.config.trains == "all" and self.config.pixels)
        return self

    def forward(self, queries: Queries, targets: Tensors | None = None) -> Tensors:
        """Return mask logits (N, T, h, w), predicted IoU, object score (logit), frame index and validity, each (N, T).

        In training also all candidates (N, T, M, h, w) with their IoUs, and the prompt frame comes from the targets. With
        ``objective: distil`` no layer of SAM2 runs in training: the output holds the prompt tokens and the auxiliary box alone.
        """
        self._need_weights()
        tokens_NPC, box_N4 = self._prompt(queries)
        output: Tensors = {} if box_N4 is None else {"tokens": tokens_NPC, "aux_box": box_N4}
        if self.training and not self.config.pixels:
            return output
        asked = ask(queries, tokens_NPC, self.sam, self.config, targets if self.training else None)
        features, index_KT = self.source.of_batch(queries.inputs, asked.lengths_K, keep=self.training)
        found = segment(self.sam, features, index_KT, asked, self.config, learning=self.training)
        if self.presence is not None:
            found["object"] = add_presence(found["object"], self.presence(queries.states_NSD), asked.kind)
        return output | found

    def loss(self, output: Tensors, targets: Tensors) -> Tensors:
        """Return the summed loss of each query per term; see `tpo_heads.mask.losses` for the terms' sources."""
        device_type = targets["masks"].device.type
        terms: Tensors = {}
        with torch.autocast(device_type, enabled=False):
            if self.config.pixels:
                terms |= mask_terms(output, targets, self.config, self.sam.image_size)
            if self.config.boxes:
                teacher_NPC = corner_tokens(self.sam, _at(targets["boxes"], targets["prompt_position"])).detach()
                terms |= prompt_terms(output, targets, teacher_NPC)
        return {name: terms[name] for name in self.term_weights}

    def ideal(self, targets: Tensors) -> Tensors:
        """Return the truth as an output; where only boxes are known the mask is the filled box."""
        masks_NTHW = targets["masks"].bool()
        side = masks_NTHW.shape[-1]
        centre = (torch.arange(side, device=masks_NTHW.device) + 0.5) / side
        low, high = targets["boxes"][..., None, :2], targets["boxes"][..., None, 2:]
        inside_NTS2 = (centre[:, None] >= low) & (centre[:, None] < high)
        filled_NTHW = inside_NTS2[..., 1][..., :, None] & inside_NTS2[..., 0][..., None, :]
        masks_NTHW = torch.where(targets["mask_known"][..., None, None], masks_NTHW, filled_NTHW)
        return {
            "masks": masks_NTHW.float() * 20 - 10,
            "iou": torch.ones_like(targets["present"], dtype=torch.float32),
            "object": targets["present"].float() * 20 - 10,
            "frame_index": targets["frame_index"],
            "valid": targets.get("frame_index_valid", torch.ones_like(targets["present"])),
        }

    def stream(self, queries: Queries, chunks: Iterable[Chunk]) -> Iterator[Tensors]:
        """Yield one output per chunk that is read, with the frames it answers; memory does not grow with the clip.

        A short clip comes whole. A long one is looked at for its prompt frames, followed to its end, and back where that is needed.
        """
        self._need_weights()
        tokens_NPC, _ = self._prompt(queries)
        presence_N = None if self.presence is None else self.presence(queries.states_NSD)

        def whole(chunk: Chunk) -> Tensors:
            output: Tensors = self(queries.with_media(chunk.features, chunk.inputs))
            return output

        yield from stream_clip(self.sam, self.source, queries, tokens_NPC, chunks, self.config, whole=whole, presence_N=presence_N)

    def _prompt(self, queries: Queries) -> tuple[Tensor, Tensor | None]:
        """Return SAM2's prompt tokens (N, P, C), and the box that was read off the embedding (N, 4; xyxy, 0-1), if any."""
        states_NSD = queries.states_NSD.to(self.adapter.dtype)
        tokens_NPC = self.adapter(states_NSD)
        if self.aux_box is None:
            return tokens_NPC, None
        box_N4 = self.aux_box(states_NSD).squeeze(1)
        if self.config.anchor == "box":
            own_NPC = corner_tokens(self.sam, box_N4)[:, : tokens_NPC.shape[1]]
            tokens_NPC = tokens_NPC + own_NPC.to(tokens_NPC.dtype)
        return tokens_NPC, box_N4

    def _load_weights(self) -> None:
        if self.config.weights is None or next(self.sam.parameters()).is_meta:
            # A dry run builds without weights and fetches none.
            return
        if self.config.weights != "hub" and not Path(self.config.weights).is_file():
            # A run that is loaded brings its own weights; only their use without any is an error.
            self._absent_weights = f"heads.mask.weights: {self.config.weights} does not exist; give the file of SAM2's weights, or `hub`"
            return
        try:
            path = fetch_weights(self.config.sam) if self.config.weights == "hub" else Path(self.config.weights)
        except ConfigError as error:
            self._absent_weights = str(error)
            return
        load_weights(self.sam, path)

    def _need_weights(self) -> None:
        if self._absent_weights is not None:
            raise ConfigError(self._absent_weights)

    def _freeze(self) -> None:
        """Freeze what the config does not train, and what no path of this head reaches."""
        config = self.config
        unreached = tuple(unused_parameters(boxes=config.path != "embedding", memory=config.train_frames > 1))
        for name, parameter in self.sam.named_parameters():
            wanted = config.pixels and (
                config.trains == "all"
                or (config.trains == "decoder" and name.startswith("sam_mask_decoder.") and not name.startswith(_PROJECTIONS))
            )
            parameter.requires_grad_(wanted and not name.startswith(unreached))


_PROJECTIONS = ("sam_mask_decoder.conv_s0.", "sam_mask_decoder.conv_s1.")
"""Parts of the decoder that belong to the image features: sam2 applies them once per frame, and they are cached with it."""


def _note_loaded(module: nn.Module, keys: Any) -> None:
    assert isinstance(module, MaskHead)
    module.source.forget()
    if not any(key.startswith("sam.") for key in keys.missing_keys):
        module._absent_weights = None


def _at(values_NTX: Tensor, position_N: Tensor) -> Tensor:
    return values_NTX[torch.arange(len(values_NTX), device=values_NTX.device), position_N]
