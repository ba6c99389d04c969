"""The router: task tokens (ids, strings, weights), the hooks that write and read them, and their forcing in generation."""

from tpo_core.router.vocabulary import MARKERS, TaskVocabulary

__all__ = ["MARKERS", "TaskVocabulary"]
