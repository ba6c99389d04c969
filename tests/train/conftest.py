"""Makes `toys_train` importable, here and in child processes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState, GradientState

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def fresh_accelerator() -> None:
    """Accelerate keeps its settings for the life of a process; each test may choose its own."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
