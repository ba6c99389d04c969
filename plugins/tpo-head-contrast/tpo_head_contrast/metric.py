"""Retrieval: does a task embedding find its own second view among those of all other records?"""

from collections.abc import Sequence

import numpy as np

from tpo_core import Metric
from tpo_core.types import Answer, Target


class ContrastMetric(Metric):
    """``top1``, ``top5``: share of targets whose own view is the nearest, or among the five nearest; no answer is a miss."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.total = 0

    def update(self, answers: Sequence[Answer], target: Target) -> None:
        self.answers += answers[:1]
        self.total += 1

    def compute(self) -> dict[str, float]:
        if not self.total:
            return {}
        if not self.answers:
            return {"top1": 0.0, "top5": 0.0}
        alike = np.array([a["token"] for a in self.answers]) @ np.array([a["view"] for a in self.answers]).T
        # Ties count against it: embeddings that are all alike find nothing.
        rank = (alike >= alike.diagonal()[:, None] - 1e-9).sum(1) - 1
        return {f"top{k}": float((rank < k).sum()) / self.total for k in (1, 5)}

    def chance(self) -> dict[str, float]:
        """Return what guessing among all views scores."""
        return {f"top{k}": min(1.0, k / self.total) for k in (1, 5)} if self.total else {}
