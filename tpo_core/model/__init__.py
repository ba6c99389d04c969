"""The model room: Batch -> StepOutput, and generation with task embeddings in the same cached pass."""

from tpo_core.model.generation import EmittedQuery, Generated, GeneratedRow, GenerationOptions, generate
from tpo_core.model.model import TPOModel, gather_features
from tpo_core.model.slot import HeadSlot

__all__ = [
    "EmittedQuery",
    "Generated",
    "GeneratedRow",
    "GenerationOptions",
    "HeadSlot",
    "TPOModel",
    "gather_features",
    "generate",
]
