"""The playground's base model: a tiny multimodal LLM of a stock, unedited architecture (Qwen3-VL) with its real processor.

Only configuration values, and weights written after construction, are ours; the folder loads with `AutoModelForImageTextToText` and
`AutoProcessor` and runs no code of its own.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tpo_heads.playground.tokenizer import CHAT_TEMPLATE, train_tokenizer

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast, Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLProcessor

WIDTH = 128
PATCH = 8
MERGE = 2
SIDE = 64
"""Pictures are brought to about SIDE * SIDE pixels: (SIDE / PATCH / MERGE) ** 2 = 16 tokens a frame."""


def build_base(folder: str | Path, *, seed: int = 0) -> Path:
    """Write a base model with random weights, its processor and its generation config into a folder, and return the folder.

    Deterministic in `seed`; the global random state is left as it was.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    model, processor = make_base(seed=seed)
    save_base(target, model, processor)
    return target


def save_base(folder: Path, model: Qwen3VLForConditionalGeneration, processor: Qwen3VLProcessor) -> None:
    """Save model and processor as an ordinary folder."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def make_base(*, seed: int = 0) -> tuple[Qwen3VLForConditionalGeneration, Qwen3VLProcessor]:
    """Return the model with random weights and its processor."""
    import torch
    from transformers import Qwen3VLForConditionalGeneration

    processor = make_processor()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3VLForConditionalGeneration(make_config(processor.tokenizer))
    init_weights(model, seed=seed)
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    model.generation_config.do_sample = False
    return model.eval(), processor


def make_config(tokenizer: PreTrainedTokenizerFast) -> Qwen3VLConfig:
    """Return the configuration (about 1.4 M parameters)."""
    from transformers import Qwen3VLConfig

    ids = {
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    }
    return Qwen3VLConfig(
        text_config={
            "vocab_size": math.ceil((len(tokenizer) + 1) / 8) * 8,
            "hidden_size": WIDTH,
            "intermediate_size": 2 * WIDTH,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "head_dim": 32,
            "max_position_embeddings": 2048,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [6, 5, 5], "mrope_interleaved": True},
            "tie_word_embeddings": False,
            "pad_token_id": tokenizer.pad_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "bos_token_id": None,
        },
        vision_config={
            "depth": 2,
            "hidden_size": WIDTH,
            "intermediate_size": 2 * WIDTH,
            "num_heads": 4,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 1,
            "out_hidden_size": WIDTH,
            "num_position_embeddings": (SIDE // PATCH) ** 2,
            "deepstack_visual_indexes": [],
        },
        tie_word_embeddings=False,
        **{key: tokenizer.convert_tokens_to_ids(token) for key, token in ids.items()},
    )


def make_processor() -> Qwen3VLProcessor:
    """Return the stock processor with the playground's tokenizer and chat template; frames are never sampled by it."""
    from transformers import Qwen2VLImageProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor

    shared: dict[str, Any] = {
        "patch_size": PATCH,
        "merge_size": MERGE,
        "temporal_patch_size": 1,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    pixels = SIDE * SIDE
    images = Qwen2VLImageProcessor(size={"shortest_edge": pixels, "longest_edge": pixels}, **shared)
    videos = Qwen3VLVideoProcessor(
        size={"shortest_edge": 1024, "longest_edge": 64 * pixels},
        do_sample_frames=False,
        cap_pixels_per_frame=True,
        max_video_tokens=(SIDE // PATCH // MERGE) ** 2,
        **shared,
    )
    return Qwen3VLProcessor(images, train_tokenizer(), videos, chat_template=CHAT_TEMPLATE)


def init_weights(model: Qwen3VLForConditionalGeneration, *, seed: int) -> None:
    """Overwrite the weights: matrices N(0, 1/fan-in), embeddings N(0, 0.7), positions as a 2-D sine table; norms stay 1.

    The stock 0.02 everywhere learns several times more slowly at this size.
    """
    import torch
    from torch import nn

    generator = torch.Generator().manual_seed(seed)

    def normal_(tensor: torch.Tensor, spread: float) -> None:
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * spread)

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear):
                normal_(module.weight, module.in_features**-0.5)
            elif isinstance(module, nn.Conv3d):
                normal_(module.weight, 1.5 * (module.weight[0].numel()) ** -0.5)
            elif isinstance(module, nn.Embedding):
                normal_(module.weight, 0.7)
            if isinstance(module, nn.Linear | nn.Conv3d) and module.bias is not None:
                module.bias.zero_()
        positions = model.model.visual.pos_embed.weight
        positions.copy_(sine_positions(math.isqrt(positions.shape[0]), positions.shape[1]))


def sine_positions(side: int, width: int) -> torch.Tensor:
    """Return a table of 2-D positions, shape (side * side, width): sines and cosines of row and column at falling frequencies."""
    import torch

    quarter = width // 4
    frequency = math.pi / 2 * 20.0 ** (-torch.arange(quarter) / quarter)
    angle = torch.arange(side)[:, None] * frequency
    axis = torch.cat([angle.sin(), angle.cos()], 1)
    rows, columns = axis[:, None].expand(side, side, -1), axis[None].expand(side, side, -1)
    return torch.cat([rows, columns], -1).reshape(side * side, width)
