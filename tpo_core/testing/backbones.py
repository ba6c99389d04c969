"""Tiny models of real architectures with their real processors, made on the spot: no download, a second each.

They have random weights and a byte-level tokenizer, so they read any text and understand none: good for walls, not for skill.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

FAMILIES = ("llava_onevision", "qwen2_5_vl", "qwen3_vl", "idefics3")

_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}IMAGE{% elif c['type'] == 'video' %}VIDEO{% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_tiny_backbone(family: str, folder: Path, *, seed: int = 0, tie: bool = False) -> Path:
    """Write a tiny random model of the family and its processor into the folder and return it.

    Args:
        family: one of `FAMILIES`.
        folder: made if missing; an ordinary `save_pretrained` folder afterwards.
        seed: of the weights.
        tie: share input and output embeddings.

    Raises:
        ValueError: an unknown family.
    """
    import torch

    builders = {"llava_onevision": _llava_onevision, "qwen2_5_vl": _qwen2_5_vl, "qwen3_vl": _qwen3_vl, "idefics3": _idefics3}
    if family not in builders:
        raise ValueError(f"no tiny backbone {family!r}; known: {', '.join(FAMILIES)}")
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, processor = builders[family](tie)
    model.generation_config.eos_token_id = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def byte_tokenizer(*special: str) -> Any:
    """Return a fast tokenizer of 256 bytes and these special tokens; every text survives a round trip."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokens = ["<|pad|>", "<|im_start|>", "<|im_end|>", *special]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in tokens])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|im_end|>")


def _text(vocab: int, tie: bool) -> dict[str, Any]:
    return {
        "vocab_size": vocab,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 2048,
        "initializer_range": 0.08,
        "tie_word_embeddings": tie,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
    }


def _rows(tokenizer: Any) -> int:
    # More rows than tokens, as real checkpoints have: ids of task tokens must start beyond the rows.
    return (len(tokenizer) // 8 + 2) * 8


def _llava_onevision(tie: bool) -> tuple[Any, Any]:
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        LlavaOnevisionImageProcessor,
        LlavaOnevisionProcessor,
        LlavaOnevisionVideoProcessor,
        Qwen2Config,
        SiglipVisionConfig,
    )

    tokenizer = byte_tokenizer("<image>", "<video>")
    vision = SiglipVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
    )
    config = LlavaOnevisionConfig(
        vision_config=vision,
        text_config=Qwen2Config(**_text(_rows(tokenizer), tie)),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=[[32, 64], [64, 32], [64, 64]],
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=tie,
    )
    size = {"height": 32, "width": 32}
    processor = LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=config.image_grid_pinpoints),
        tokenizer,
        LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=_TEMPLATE.replace("IMAGE", "<image>").replace("VIDEO", "<video>"),
    )
    return LlavaOnevisionForConditionalGeneration(config), processor


def _qwen_processor(processor_class: Any, video_class: Any, patch: int, temporal: int) -> Any:
    from transformers import Qwen2VLImageProcessor

    tokenizer = byte_tokenizer("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    shared = {"patch_size": patch, "merge_size": 2, "temporal_patch_size": temporal}
    image = Qwen2VLImageProcessor(size={"shortest_edge": 1024, "longest_edge": 4096}, **shared)
    video = video_class(size={"shortest_edge": 1024, "longest_edge": 65536}, do_sample_frames=False, cap_pixels_per_frame=False, **shared)
    wrap = "<|vision_start|>{}<|vision_end|>"
    template = _TEMPLATE.replace("IMAGE", wrap.format("<|image_pad|>"))
    bare = processor_class.__name__.startswith("Qwen3")
    template = template.replace("VIDEO", "<|video_pad|>" if bare else wrap.format("<|video_pad|>"))
    return processor_class(image, tokenizer, video, chat_template=template)


def _qwen_ids(tokenizer: Any) -> dict[str, int]:
    names = {
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
    }
    return {key: tokenizer.convert_tokens_to_ids(token) for key, token in names.items()}


def _qwen2_5_vl(tie: bool) -> tuple[Any, Any]:
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLVideoProcessor,
    )

    processor = _qwen_processor(Qwen2_5_VLProcessor, Qwen2VLVideoProcessor, 8, 2)
    text = _text(_rows(processor.tokenizer), tie)
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "patch_size": 8,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": 64,
        "window_size": 32,
        "fullatt_block_indexes": [1],
        "tokens_per_second": 2,
    }
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=tie, **_qwen_ids(processor.tokenizer))
    return Qwen2_5_VLForConditionalGeneration(config), processor


def _qwen3_vl(tie: bool) -> tuple[Any, Any]:
    from transformers import (
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
        Qwen3VLProcessor,
        Qwen3VLVideoProcessor,
    )

    processor = _qwen_processor(Qwen3VLProcessor, Qwen3VLVideoProcessor, 8, 2)
    text = _text(_rows(processor.tokenizer), tie)
    text["head_dim"] = 16
    text["rope_parameters"] = {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": [2, 3, 3],
        "mrope_interleaved": True,
    }
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "patch_size": 8,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": 64,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0],
    }
    config = Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=tie, **_qwen_ids(processor.tokenizer))
    return Qwen3VLForConditionalGeneration(config), processor


def _idefics3(tie: bool) -> tuple[Any, Any]:
    from transformers import (
        Idefics3Config,
        Idefics3ForConditionalGeneration,
        Idefics3ImageProcessor,
        Idefics3Processor,
        LlamaConfig,
    )

    rows = [f"<row_{i + 1}_col_{j + 1}>" for i in range(6) for j in range(6)]
    tokenizer = byte_tokenizer("<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", *rows)
    image = Idefics3ImageProcessor(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    processor = Idefics3Processor(
        image, tokenizer, image_seq_len=4, chat_template=_TEMPLATE.replace("IMAGE", "<image>").replace("VIDEO", "")
    )
    text = _text(_rows(tokenizer), tie)
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    }
    config = Idefics3Config(
        text_config=LlamaConfig(**text),
        vision_config=vision,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        tie_word_embeddings=tie,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Idefics3ForConditionalGeneration(config), processor
