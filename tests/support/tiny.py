"""Assemblies over tiny backbones, for tests of core."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from toy_heads import BoxConfig, box_head, moment_head

from tpo_core.backbone import LoraOptions, load_backbone
from tpo_core.model.build import Assembly, ModelOptions, build_model


def assemble(folder: Path, *, slots: int = 2, lora: bool = True, heads: list[Any] | None = None, **options: Any) -> Assembly:
    """Build toy heads over a tiny backbone folder."""
    backbone = load_backbone(folder)
    chosen = heads if heads is not None else [box_head(), moment_head()]
    settings = ModelOptions(**{"frames": 6, "lora": LoraOptions(r=4, alpha=8) if lora else None, **options})
    configs = {"box": BoxConfig(slots=slots)} if heads is None else {}
    return build_model(backbone, chosen, configs=configs, options=settings)


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
