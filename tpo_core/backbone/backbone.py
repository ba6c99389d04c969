"""Any Hugging Face image-text-to-text model behind one small face: embeddings, decoder, vision rows, parameter groups, LoRA.

Nothing of the model is edited or resized. Loading never runs code that came with a model (``trust_remote_code=False``) and reads
safetensors only.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tpo_core.backbone.families import FAMILIES
from tpo_core.backbone.layout import Layout, MergedLayout, Vision
from tpo_core.errors import BackboneError
from tpo_core.types import BackboneView, Tensors


@dataclass(frozen=True)
class LoraOptions:
    """Options of the adapter on the language model (paper: r 16, alpha 32, dropout 0.1)."""

    r: int = 16
    alpha: float = 32.0
    dropout: float = 0.0


class Backbone(nn.Module):
    """A multimodal language model, its processor and its vision layout.

    Args:
        model: a transformers model with input and output embeddings and a decoder.
        processor: its processor, with tokenizer and chat template.
        layout: the family's vision layout.
        path: where it came from (hub id or folder).

    Raises:
        BackboneError: the model lacks what this package needs.
    """

    def __init__(self, model: Any, processor: Any, layout: Layout, path: str) -> None:
        super().__init__()
        self.model = model
        self.processor = processor
        self.layout = layout
        self.path = path
        self.adapter_config: dict[str, Any] | None = None
        self._arguments: frozenset[str] | None = None
        if model.get_output_embeddings() is None:
            raise BackboneError(f"{path}: {type(model).__name__} has no output embeddings; use a model that generates text")
        self.decoder_name = _name_of(model, self.decoder)

    @property
    def embedding(self) -> nn.Module:
        """The input embedding module."""
        module: nn.Module = self.model.get_input_embeddings()
        return module

    @property
    def output(self) -> nn.Module:
        """The output embedding module (``lm_head``)."""
        module: nn.Module = self.model.get_output_embeddings()
        return module

    @property
    def decoder(self) -> nn.Module:
        """The decoder, whose output is the last hidden state after the final norm."""
        decoder = self.model.get_decoder()
        # llama4 and kosmos return a model with a head of its own: go one level deeper.
        while getattr(decoder, "get_output_embeddings", lambda: None)() is not None:
            decoder = decoder.base_model if decoder.base_model is not decoder else decoder.model
        module: nn.Module = decoder
        return module

    @property
    def hidden(self) -> int:
        """D, width of the language model."""
        return int(self.model.config.get_text_config().hidden_size)

    @property
    def table_rows(self) -> int:
        """Rows of the embedding table, or the tokenizer's length where that is larger: the first id of task tokens."""
        weight: Tensor = self.embedding.weight  # type: ignore[assignment]  # nn.Module attributes are untyped
        return max(int(weight.shape[0]), len(self.processor.tokenizer))

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        device: torch.device = next(self.model.parameters()).device
        return device

    def view(self, frames: int) -> BackboneView:
        """Return the plain values that codecs may need."""
        return BackboneView(
            model_type=str(self.model.config.model_type),
            frames=frames,
            temporal_patch=self.layout.temporal_patch,
            feature_dim=self.hidden,
            hidden=self.hidden,
        )

    def identity(self) -> dict[str, Any]:
        """Return what a checkpoint remembers of the backbone, to refuse another one."""
        # The dtype stands in the parts' configs too; a run may load the same weights as another one.
        config = _without(json.loads(self.model.config.to_json_string(use_diff=False)), _NOT_IDENTITY)
        digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]
        return {
            "path": self.path,
            "model_type": str(self.model.config.model_type),
            "hidden": self.hidden,
            "vocabulary": self.table_rows,
            "config": digest,
        }

    def argument_names(self) -> frozenset[str]:
        """Return the names that the model's forward takes."""
        if self._arguments is None:
            self._arguments = frozenset(inspect.signature(self.model.forward).parameters)
        return self._arguments

    def encode(self, tensors: Tensors) -> Vision:
        """Encode the media of a batch once; the rows serve the language model and the heads."""
        return self.layout.encode(self.model, tensors)

    def gather_merged(self, embeds_BLD: Tensor, positions: Mapping[str, Tensor]) -> Vision:
        """Return the vision rows that the model itself merged into its embeddings."""
        flat = embeds_BLD.flatten(0, 1)
        rows = {key: flat.index_select(0, index) for key, index in positions.items()}
        return Vision(rows.get("image"), rows.get("video"), None)

    def prepare_generation(self) -> None:
        """Forget positions that a previous generation left in the model (M-RoPE families keep ``rope_deltas``)."""
        for module in self.model.modules():
            if hasattr(module, "rope_deltas"):
                module.rope_deltas = None

    def add_lora(self, options: LoraOptions) -> list[str]:
        """Put LoRA on every linear layer of the decoder and nowhere else; return the names adapted.

        Raises:
            BackboneError: peft adapted other layers than asked for (it rewrites targets on some mixture-of-experts models).
        """
        from peft import LoraConfig, inject_adapter_in_model

        prefix = self.decoder_name
        output = self.output
        targets = [
            name
            for name, module in self.model.named_modules()
            if name.startswith(f"{prefix}.") and type(module) is nn.Linear and module is not output
        ]
        if not targets:
            raise BackboneError(f"{self.path}: no linear layer under {prefix!r}; train the language model in full instead of LoRA")
        config = LoraConfig(r=options.r, lora_alpha=options.alpha, lora_dropout=options.dropout, bias="none", target_modules=targets)
        inject_adapter_in_model(config, self.model)
        adapted = sorted({name.split(".lora_A")[0] for name, _ in self.model.named_modules() if name.endswith(".lora_A")})
        if adapted != sorted(targets):
            raise BackboneError(
                f"{self.path}: peft adapted {len(adapted)} layers, {len(targets)} were asked for; use another peft or full training"
            )
        plain = {key: value for key, value in config.to_dict().items() if not callable(value)}
        self.adapter_config = json.loads(json.dumps(plain, default=lambda v: sorted(v) if isinstance(v, set) else str(v)))
        return targets

    @torch.no_grad()
    def merge_adapter(self) -> None:
        """Add the adapter to the weights it adapts and begin a new one (its second factor at zero)."""
        for module in self.model.modules():
            if hasattr(module, "get_delta_weight") and hasattr(module, "base_layer"):
                base = module.base_layer.weight
                base.add_(module.get_delta_weight("default").to(base.dtype))
                module.reset_lora_parameters("default", True)

    def adapter_state(self) -> dict[str, Tensor]:
        """Return the adapter's tensors under PEFT's names (``base_model.model.<name>.lora_A.weight``)."""
        found = {}
        for name, parameter in self.model.named_parameters():
            if ".lora_" in name:
                found[f"base_model.model.{name.replace('.default', '')}"] = parameter.detach()
        return found

    def adapter_parameters(self) -> dict[str, nn.Parameter]:
        """Return the adapter's parameters under PEFT's names."""
        return {
            f"base_model.model.{name.replace('.default', '')}": parameter
            for name, parameter in self.model.named_parameters()
            if ".lora_" in name
        }

    def groups(self) -> dict[str, dict[str, nn.Parameter]]:
        """Return the parameters as ``vision``, ``connector``, ``llm`` (decoder, embeddings and output head), ``lora``."""
        decoder = {id(p) for p in self.decoder.parameters()}
        decoder |= {id(p) for p in self.output.parameters()} | {id(p) for p in self.embedding.parameters()}
        vision, merger = self._vision_parameters()
        groups: dict[str, dict[str, nn.Parameter]] = {"vision": {}, "connector": {}, "llm": {}, "lora": {}}
        for name, parameter in self.model.named_parameters():
            if ".lora_" in name:
                groups["lora"][name] = parameter
            elif id(parameter) in decoder:
                groups["llm"][name] = parameter
            elif id(parameter) in vision and id(parameter) not in merger:
                groups["vision"][name] = parameter
            else:
                groups["connector"][name] = parameter
        return groups

    def _vision_parameters(self) -> tuple[set[int], set[int]]:
        towers = []
        for modality in ("image", "video"):
            encoder = self.model.get_encoder(modality=modality)
            if encoder is not self.model and encoder is not self.model.base_model:
                towers.append(encoder)
        vision = {id(p) for tower in towers for p in tower.parameters()}
        # Qwen's merger lies inside the tower; it is what maps to the language model's width, so it belongs to the connector.
        merger = {id(p) for tower in towers for name, module in tower.named_children() if "merger" in name for p in module.parameters()}
        return vision, merger


def load_backbone(
    path: str | Path,
    *,
    dtype: str = "float32",
    attention: str | None = None,
    layouts: Mapping[str, type[Layout]] | None = None,
    meta: bool = False,
) -> Backbone:
    """Load a model, its processor and its layout.

    Args:
        path: hub id or folder.
        dtype: ``float32``, ``bfloat16`` or ``auto``.
        attention: transformers' name of the attention implementation, or None for its default.
        layouts: model type -> layout class announced by plugins; they win over the built-in table.
        meta: build on the meta device, without weights (``--dry-run``).

    Raises:
        BackboneError: not found, not a model for pictures and text, or its code would have to run.
    """
    import transformers

    folder = Path(path)
    source = str(folder) if folder.exists() else str(path)
    try:
        config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
        processor = transformers.AutoProcessor.from_pretrained(source, trust_remote_code=False)
        if meta:
            with torch.device("meta"):
                named = {} if dtype == "auto" else {"dtype": getattr(torch, dtype)}
                model = transformers.AutoModelForImageTextToText.from_config(config, **named)
        else:
            model = transformers.AutoModelForImageTextToText.from_pretrained(
                source, dtype=dtype, attn_implementation=attention, trust_remote_code=False, use_safetensors=True
            )
    except (OSError, ValueError, KeyError) as error:
        raise BackboneError(
            f"model {str(path)!r} could not be loaded ({_one_line(error)}); expected a folder or hub id of an image-text-to-text model "
            "with config, safetensors and processor"
        ) from error
    layout = pick_layout(processor, config, layouts or {}, supports_outputs=_takes_outputs(model))
    return Backbone(model, processor, layout, str(path))


def pick_layout(processor: Any, config: Any, layouts: Mapping[str, type[Layout]], *, supports_outputs: bool) -> Layout:
    """Return a family's layout: a plugin's, the built-in, the generic one, or (no `mm_encoder_outputs`) the merged one."""
    family = str(config.model_type)
    chosen = layouts.get(family) or FAMILIES.get(family)
    if chosen is None:
        chosen = Layout if supports_outputs else MergedLayout
    return chosen(processor, config)


def merged_rows(vision: Vision) -> Tensor | None:
    """Return all vision rows of a batch, (R, V): the image interface's, then the video interface's."""
    parts: Sequence[Tensor] = [rows for rows in (vision.image_RV, vision.video_RV) if rows is not None]
    return torch.cat(list(parts)) if parts else None


_NOT_IDENTITY = frozenset({"_name_or_path", "transformers_version", "dtype", "torch_dtype"})


def _without(config: Any, keys: frozenset[str]) -> Any:
    if isinstance(config, dict):
        return {key: _without(value, keys) for key, value in config.items() if key not in keys}
    return [_without(item, keys) for item in config] if isinstance(config, list) else config


def _takes_outputs(model: Any) -> bool:
    return "mm_encoder_outputs" in inspect.signature(model.forward).parameters


def _name_of(model: nn.Module, module: nn.Module) -> str:
    for name, candidate in model.named_modules():
        if candidate is module:
            return str(name)
    raise BackboneError(f"{type(model).__name__}: its decoder is not one of its modules")


def _one_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200]


__all__ = ["Backbone", "LoraOptions", "load_backbone", "merged_rows", "pick_layout"]
