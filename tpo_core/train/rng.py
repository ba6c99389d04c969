"""Random state: every stage starts from (seed, stage, rank), and a checkpoint goes on from where it was."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save

from tpo_core.types import Tensors

logger = logging.getLogger(__name__)

_PYTHON, _NUMPY, _NUMPY_POSITION, _TORCH, _CUDA = "python", "numpy", "numpy_position", "torch", "cuda"


def seed_rng(*parts: int) -> None:
    """Seed torch (all devices), numpy and python from these numbers."""
    sequence = np.random.SeedSequence(parts)
    words = sequence.generate_state(4, dtype=np.uint32)
    torch.manual_seed(int(words[0]) << 31 | int(words[1]) >> 1)
    np.random.seed(int(words[2]))
    random.seed(int(words[3]))


def capture_rng() -> Tensors:
    """Return this process's random state as tensors."""
    numpy_state = np.random.get_state(legacy=False)
    assert isinstance(numpy_state, dict)
    inner = numpy_state["state"]
    version, words, gauss = random.getstate()
    assert version == 3
    state = {
        _TORCH: torch.get_rng_state(),
        _NUMPY: torch.from_numpy(np.asarray(inner["key"], dtype=np.int64)),
        _NUMPY_POSITION: torch.tensor(
            [float(inner["pos"]), float(numpy_state["has_gauss"]), float(numpy_state["gauss"])], dtype=torch.float64
        ),
        _PYTHON: torch.tensor([*words, 0 if gauss is None else 1], dtype=torch.int64),
        _PYTHON + "_gauss": torch.tensor([gauss or 0.0], dtype=torch.float64),
    }
    if torch.cuda.is_available():
        state[_CUDA] = torch.cuda.get_rng_state()
    return state


def restore_rng(state: Tensors) -> None:
    """Put back what `capture_rng` returned; a state of a device that is not here is left out."""
    torch.set_rng_state(state[_TORCH].to(torch.uint8))
    position, has_gauss, gauss = state[_NUMPY_POSITION].tolist()
    key = state[_NUMPY].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", key, int(position), int(has_gauss), gauss))
    words = state[_PYTHON].tolist()
    python_gauss = float(state[_PYTHON + "_gauss"][0]) if words[-1] else None
    random.setstate((3, tuple(int(word) for word in words[:-1]), python_gauss))
    if _CUDA in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state[_CUDA].to(torch.uint8))


def gather_rng(accelerator: Any) -> list[Tensors]:
    """Return every process's random state, by rank; each process must call this."""
    mine = capture_rng()
    if accelerator.num_processes == 1:
        return [mine]
    content = torch.frombuffer(bytearray(save(mine)), dtype=torch.uint8)
    gathered = accelerator.gather(content.to(accelerator.device)).cpu().view(accelerator.num_processes, -1)
    return [load(bytes(row.tolist())) for row in gathered]


def restore_rank_rng(states: Sequence[Tensors], rank: int, *, fresh: Sequence[int]) -> None:
    """Put back this rank's state; where the checkpoint was written by fewer processes, seed from `fresh` and say so."""
    if rank < len(states):
        restore_rng(states[rank])
        return
    logger.warning("the checkpoint holds the random state of %d processes, process %d begins with a fresh one", len(states), rank)
    seed_rng(*fresh)
