"""What a stage costs, by formula: parameters, memory of one process, floating-point operations of an optimiser step.

Numbers are estimates from parameters and tokens, for planning; nothing is run. A fused multiply-add counts as 2 operations.

**Operations.** A matrix of P numbers costs 2 P per token forward. Backward costs 2 P more where a gradient must pass through it, and 2 P
more where it trains itself. The decoder adds 4 * layers * tokens^2 * width of its attention per sample for the two products (in full, not
the causal half), and twice that backward. The output embedding is computed at learnt positions only, as this package does. The vision
tower counts per patch; its own attention (up to a tenth of it) is left out. Heads are left out: what they run over frames is their own.

**Memory.** Weights, gradients (of what trains, in the weights' dtype) and AdamW's two moments (the same). Activations: what autograd
keeps of a micro-batch, per token and decoder layer ``a`` numbers of the layer's width and ``b`` of its inner width, as counted with
``torch.autograd.graph.saved_tensors_hooks`` on Llama- and Qwen-like layers with fused attention: (12, 4) where the decoder trains,
(10, 4) with LoRA (and (20, 5) with its dropout), (8, 3) where gradients only pass through; then the logits of learnt positions, 8 bytes
each. Heads' activations, buffers of the allocator and copies that mixed precision makes are left out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tpo_core.backbone import Backbone
from tpo_core.model.model import TPOModel

LANGUAGE_GROUPS = ("llm", "lora", "connector", "vision")
"""Groups of the backbone; a gradient passes through the decoder where one of these or the tokens train."""


@dataclass(frozen=True)
class SampleSize:
    """How large a sample is, on average.

    Args:
        tokens: of text and media in the language model. learnt: positions that carry a label. patches: of the vision tower.
        longest: tokens of the longest sample seen.
    """

    tokens: float
    learnt: float
    patches: float
    longest: float


@dataclass(frozen=True)
class Shape:
    """The sizes of a backbone that formulas need."""

    layers: int
    width: int
    inner: int
    attention: int
    rows: int
    body: int
    vision_layers: int
    vision_width: int
    vision_inner: int
    merge: int


def shape_of(backbone: Backbone) -> Shape:
    """Return the sizes of a backbone, from its config; a size that its config does not name is 0, and what needs it is left out."""
    config = backbone.model.config
    text, vision = config.get_text_config(), getattr(config, "vision_config", None)
    width = int(text.hidden_size)
    tables = {id(p): p.numel() for module in (backbone.embedding, backbone.output) for p in module.parameters()}
    decoder = sum(p.numel() for p in backbone.groups()["llm"].values())
    heads = int(getattr(text, "num_attention_heads", 0))
    return Shape(
        layers=int(getattr(text, "num_hidden_layers", 0)),
        width=width,
        inner=int(getattr(text, "intermediate_size", 0) or 0),
        attention=heads * int(getattr(text, "head_dim", None) or (width // heads if heads else 0)),
        rows=int(backbone.output.weight.shape[0]),  # type: ignore[index]  # nn.Module attributes are untyped
        body=decoder - sum(tables.values()),
        vision_layers=_number(vision, "num_hidden_layers", "depth"),
        vision_width=_number(vision, "hidden_size", "embed_dim"),
        vision_inner=_number(vision, "intermediate_size"),
        merge=max(1, _number(vision, "spatial_merge_size")),
    )


def count_patches(backbone: Backbone, visual: Mapping[str, Any]) -> float:
    """Return the patches that the vision tower computes for a sample, from the processor's pixels; 0 without media."""
    vision = getattr(backbone.model.config, "vision_config", None)
    side, frames = _number(vision, "patch_size"), max(1, _number(vision, "temporal_patch_size"))
    pixels = sum(value.numel() for name, value in visual.items() if name.startswith("pixel_values"))
    return pixels / (3 * side * side * frames) if side else 0.0


def _number(config: Any, *names: str) -> int:
    for name in names:
        value = getattr(config, name, None)
        if isinstance(value, int):
            return value
    return 0


def count_parameters(model: TPOModel, trained: Mapping[str, int] | None = None) -> dict[str, dict[str, int]]:
    """Return ``trained`` and ``frozen`` numbers of each group.

    Args:
        trained: group -> numbers that train (from `freeze`); None: nothing does.
    """
    counts = {}
    for group, parameters in model.groups().items():
        total = sum(p.numel() for p in parameters.values())
        moving = (trained or {}).get(group, 0)
        counts[group] = {"trained": moving, "frozen": total - moving}
    return counts


def estimate_memory(model: TPOModel, shape: Shape, size: SampleSize, micro: int, *, dropout: bool) -> dict[str, int]:
    """Return bytes of one process by kind, for a model on which `freeze` was called.

    Args:
        micro: samples of a micro-batch; all count as the longest one, for they are padded to it.
        dropout: whether the adapter has dropout.
    """
    groups = {group: list(parameters.values()) for group, parameters in model.groups().items()}
    weights = sum(p.numel() * p.element_size() for parameters in groups.values() for p in parameters)
    moving = sum(p.numel() * p.element_size() for parameters in groups.values() for p in parameters if p.requires_grad)
    trained = {group for group, parameters in groups.items() if any(p.requires_grad for p in parameters)}
    element = groups["llm"][0].element_size()
    return {
        "weights": weights,
        "gradients": moving,
        "optimizer": 2 * moving,
        "activations": round(micro * _kept(shape, size, trained, element, through=passes_decoder(model, trained), dropout=dropout)),
    }


def _kept(shape: Shape, size: SampleSize, trained: Collection[str], element: int, *, through: bool, dropout: bool) -> float:
    logits = size.learnt * shape.rows * 8
    if not through:
        return logits
    if "llm" in trained:
        wide, inner = 12, 4
    elif "lora" in trained:
        wide, inner = (20, 5) if dropout else (10, 4)
    else:
        wide, inner = 8, 3
    kept = size.longest * shape.layers * (wide * shape.width + inner * shape.inner) * element
    if "vision" in trained:
        kept += size.patches * shape.vision_layers * (12 * shape.vision_width + 3 * shape.vision_inner) * element
    return kept + logits


def passes_decoder(model: TPOModel, trained: Collection[str]) -> bool:
    """Return whether a gradient must pass through the decoder: the backbone, its adapter, a token or a head's prompt encoder trains."""
    if any(group in LANGUAGE_GROUPS or group.partition(".")[0] == "tokens" for group in trained):
        return True
    return any(f"heads.{name}" in trained and model.slot(name).head.prompt is not None for name in model.vocabulary.names)


def estimate_operations(
    model: TPOModel, shape: Shape, size: SampleSize, batch: int, trained: Collection[str], *, adapter: bool
) -> dict[str, int]:
    """Return floating-point operations of one optimiser step by part, over all processes.

    Args:
        batch: samples of an optimiser step.
        trained: groups that train.
        adapter: whether the model has an adapter.
    """
    numbers = {group: sum(p.numel() for p in parameters.values()) for group, parameters in model.groups().items()}
    backward = passes_decoder(model, trained)
    dense = shape.body * size.tokens + shape.width * shape.rows * size.learnt
    attention = 4 * shape.layers * shape.attention * size.tokens**2
    language = _cost(dense, through=backward, learns="llm" in trained) + attention * (3 if backward else 1)
    if adapter:
        language += _cost(numbers["lora"] * size.tokens, through=backward, learns="lora" in trained)
    merged = size.patches / shape.merge**2
    connector = _cost(numbers["connector"] * merged, through="vision" in trained, learns="connector" in trained)
    vision = _cost(numbers["vision"] * size.patches, through="vision" in trained, learns="vision" in trained)
    return {"vision": round(batch * vision), "connector": round(batch * connector), "language": round(batch * language)}


def _cost(products: float, *, through: bool, learns: bool) -> float:
    return 2 * products * (1 + through + learns)


def as_json(size: SampleSize) -> dict[str, float]:
    """Return a sample's size with one decimal."""
    return {name: round(value, 1) for name, value in asdict(size).items()}
