"""The recipe: typed tree, YAML with lines, overrides, errors that say where."""

from __future__ import annotations

from tpo_core.config.document import Document, dotted, from_mapping, parse_yaml, read_yaml
from tpo_core.config.load import compose, head_names, load_recipe, open_recipe, recipe_schema
from tpo_core.config.recipe import (
    GROUPS,
    DataConfig,
    LoraConfig,
    LossConfig,
    ModelConfig,
    Part,
    Recipe,
    Source,
    StageConfig,
    TrainerConfig,
)
from tpo_core.config.show import format_recipe

__all__ = [
    "GROUPS",
    "DataConfig",
    "Document",
    "LoraConfig",
    "LossConfig",
    "ModelConfig",
    "Part",
    "Recipe",
    "Source",
    "StageConfig",
    "TrainerConfig",
    "compose",
    "dotted",
    "format_recipe",
    "from_mapping",
    "head_names",
    "load_recipe",
    "open_recipe",
    "parse_yaml",
    "read_yaml",
    "recipe_schema",
]
