"""Published CG-DETR weights -> this package's names.

Some published matrices are one matrix here: in a rule's row, matrices stand side by side and biases are added (both inputs are summed
there); rows are stacked. Weights that cannot change any output are left behind; `is_idle` names them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tpo_core.errors import CheckpointError
from tpo_heads.temporal.config import TemporalConfig

_IDLE = re.compile(
    r"txt_proj_linear\..*|txt_position_embed\..*"  # never called
    r"|transformer\.decoder\.layers\.0\.sa_[qk](content|pos)_proj\..*"  # attention among equal values
    r"|transformer\.decoder\.layers\.0\.sa_v_proj\.weight"  # times a content of zero
    r"|transformer\.decoder\.layers\.\d+\.ca_k(content|pos)_proj\.bias"  # the softmax cancels them
)


def is_idle(name: str) -> bool:
    """Return whether a published weight has no effect on any output."""
    return _IDLE.fullmatch(name) is not None


@dataclass(frozen=True)
class Rule:
    """One weight here, and the published ones it is made of: rows of names."""

    ours: str
    rows: tuple[tuple[str, ...], ...]

    def join(self, published: Mapping[str, Tensor]) -> Tensor:
        """Return the weight."""
        parts = []
        for row in self.rows:
            tensors = [published[name] for name in row]
            parts.append(sum(tensors[1:], tensors[0]) if tensors[0].ndim == 1 else torch.cat(tensors, -1))
        return torch.cat(parts)

    def split(self, gradient: Tensor) -> dict[str, Tensor]:
        """Return the published weights' gradients that follow from this weight's."""
        out: dict[str, Tensor] = {}
        for row, block in zip(self.rows, gradient.chunk(len(self.rows))):
            pieces = [block] * len(row) if gradient.ndim == 1 else block.chunk(len(row), -1)
            out |= dict(zip(row, pieces))
        return out


def rules(config: TemporalConfig) -> list[Rule]:
    """Return the rule of every weight of a `CGDETR` of this configuration."""
    return [Rule(ours, rows) for ours, rows in _all_rules(config)]


def convert(published: Mapping[str, Tensor], config: TemporalConfig, *, prefix: str = "") -> dict[str, Tensor]:
    """Return a state dict for `CGDETR`; in the TPO release the prefix is ``cg_model.``.

    Raises:
        CheckpointError: a weight is missing, or one is left over that is not known to be idle.
    """
    named = {name.removeprefix(prefix): tensor for name, tensor in published.items() if name.startswith(prefix)}
    table = rules(config)
    wanted = {name for rule in table for row in rule.rows for name in row}
    missing = sorted(wanted - named.keys())
    unknown = sorted(name for name in named.keys() - wanted if not is_idle(name))
    if missing or unknown:
        raise CheckpointError(
            f"these are not CG-DETR weights of this size: missing {missing[:5]} ({len(missing)}), unknown {unknown[:5]} ({len(unknown)}); "
            "set the layer counts in the config to those of the weights"
        )
    state = {rule.ours: rule.join(named) for rule in table}
    state["global_place_C"] = state["global_place_C"].reshape(-1)
    return state


_Entry = tuple[str, tuple[tuple[str, ...], ...]]


def _same(ours: str, published: str, *kinds: str) -> Iterator[_Entry]:
    for kind in kinds or ("weight", "bias"):
        yield f"{ours}.{kind}", ((f"{published}.{kind}",),)


def _perceptron(ours: str, published: str, depth: int) -> Iterator[_Entry]:
    for index in range(depth):
        yield from _same(f"{ours}.layers.{index}", f"{published}.layers.{index}")


def _feed_forward(ours: str, published: str) -> Iterator[_Entry]:
    yield from _same(f"{ours}.feed_forward.linear1", f"{published}.linear1")
    yield from _same(f"{ours}.feed_forward.linear2", f"{published}.linear2")
    yield f"{ours}.feed_forward.activation.slope", ((f"{published}.activation.weight",),)


def _norms(ours: str, published: str, count: int) -> Iterator[_Entry]:
    for index in range(1, count + 1):
        yield from _same(f"{ours}.residual{index}.norm", f"{published}.norm{index}")


def _encoder(ours: str, published: str, layers: int) -> Iterator[_Entry]:
    for index in range(layers):
        here, there = f"{ours}.{index}", f"{published}.layers.{index}"
        yield f"{here}.qkv.weight", ((f"{there}.self_attn.in_proj_weight",),)
        yield f"{here}.qkv.bias", ((f"{there}.self_attn.in_proj_bias",),)
        yield from _same(f"{here}.out", f"{there}.self_attn.out_proj")
        yield from _norms(here, there, 2)
        yield from _feed_forward(here, there)


def _decoder_layer(index: int) -> Iterator[_Entry]:
    here, there = f"decoder.layers.{index}", f"transformer.decoder.layers.{index}"
    if index == 0:
        yield f"{here}.among.constant", ((f"{there}.sa_v_proj.bias",),)
    else:
        for kind in ("weight", "bias"):
            names = (tuple(f"{there}.sa_{side}{part}_proj.{kind}" for part in ("content", "pos")) for side in "qk")
            yield f"{here}.among.query_key.{kind}", tuple(names)
        yield from _same(f"{here}.among.value", f"{there}.sa_v_proj")
    yield from _same(f"{here}.among.out", f"{there}.self_attn.out_proj")
    for kind in ("weight", "bias"):
        parts = ("content", "pos") if index == 0 else ("content",)
        yield f"{here}.across.query.{kind}", (tuple(f"{there}.ca_q{part}_proj.{kind}" for part in parts),)
    yield from _same(f"{here}.across.place_query", f"{there}.ca_qpos_sine_proj")
    yield from _same(f"{here}.across.key", f"{there}.ca_kcontent_proj", "weight")
    yield from _same(f"{here}.across.place_key", f"{there}.ca_kpos_proj", "weight")
    yield from _same(f"{here}.across.value", f"{there}.ca_v_proj")
    yield from _same(f"{here}.across.out", f"{there}.cross_attn.out_proj")
    yield from _norms(here, there, 3)
    yield from _feed_forward(here, there)


def _all_rules(config: TemporalConfig) -> Iterator[_Entry]:
    for ours, published in (("clip_input", "input_vid_proj"), ("text_input", "input_txt_proj")):
        for index in (0, 1):
            yield from _same(f"{ours}.norm{index + 1}", f"{published}.{index}.LayerNorm")
            yield from _same(f"{ours}.linear{index + 1}", f"{published}.{index}.net.1")
    yield "kinds.weight", (("token_type_embeddings.weight",),)
    for ours, published in (("dummies.{}_KC", "dummy"), ("sentences.{}_C", "sent"), ("moments.{}_C", "moment")):
        yield ours.format("token"), ((f"{published}_rep_token",),)
        yield ours.format("place"), ((f"{published}_rep_pos",),)
    yield "global_GC", (("global_rep_token",),)
    yield "global_place_C", (("global_rep_pos",),)
    yield from _encoder("dummies.layers", "txtproj_encoder", config.dummy_layers)
    yield from _encoder("sentences.layers", "scls_encoder", config.sentence_layers)
    yield from _encoder("moments.layers", "transformer.mcls_encoder", config.moment_layers)
    yield from _encoder("encoder", "transformer.encoder", config.encoder_layers)
    for index in range(config.text_layers):
        here, there = f"text_attention.{index}", f"transformer.t2v_encoder.layers.{index}"
        yield from _same(f"{here}.out", f"{there}.self_attn.out_proj")
        yield from _norms(here, there, 2)
        yield from _feed_forward(here, there)
    yield from _same("decoder.anchors", "query_embed", "weight")
    for index in range(config.decoder_layers):
        yield from _decoder_layer(index)
    yield from _same("decoder.norm", "transformer.decoder.norm")
    yield from _perceptron("decoder.encode_window", "transformer.decoder.ref_point_head", 2)
    yield from _perceptron("decoder.guess_width", "transformer.decoder.ref_anchor_head", 2)
    if config.decoder_layers > 1:
        yield from _perceptron("decoder.scale_window", "transformer.decoder.query_scale", 2)
        yield from _perceptron("decoder.refine", "transformer.decoder.bbox_embed", 3)
    yield from _perceptron("window", "span_embed", 3)
    yield from _same("label.layers.0", "class_embed")
    yield from _same("saliency_clip.layers.0", "saliency_proj1")
    yield from _same("saliency_global.layers.0", "saliency_proj2")
