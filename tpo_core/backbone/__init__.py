"""The backbone room: a stock MLLM behind one face, and the vision layouts of its family."""

from tpo_core.backbone.backbone import Backbone, LoraOptions, load_backbone, merged_rows, pick_layout
from tpo_core.backbone.layout import Encoded, Layout, LoadedMedium, MediumRows, MergedLayout, Vision

__all__ = [
    "Backbone",
    "Encoded",
    "Layout",
    "LoadedMedium",
    "LoraOptions",
    "MediumRows",
    "MergedLayout",
    "Vision",
    "load_backbone",
    "merged_rows",
    "pick_layout",
]
