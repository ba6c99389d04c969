"""A training loop of your own: a stock model, two heads, and the gradient of their losses in the language model.

python examples/loop.py FOLDER_OF_A_MODEL records.jsonl
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from tpo_core import build_model, load_backbone, load_plugins
from tpo_core.data import RecordFile


def train(model_folder: str, records: str, *, steps: int = 10, batch_size: int = 4) -> list[float]:
    """Train and return the loss of every step."""
    plugins = load_plugins()
    built = build_model(load_backbone(model_folder), [plugins.load_head("region"), plugins.load_head("temporal")])
    rows, root, collate = RecordFile(records), Path(records).parent, built.collator()
    optimizer = torch.optim.AdamW(built.model.parameters(), lr=1e-4)
    losses = []
    for step in range(steps):
        picked = [(step * batch_size + i) % len(rows) for i in range(batch_size)]
        batch = collate([built.preparer.training(rows[i], root=root, seed=(step, i)) for i in picked])
        loss = built.model(batch, batch.counts).loss  # one micro-batch: its own counts are the denominators
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    return losses


if __name__ == "__main__":
    for step, value in enumerate(train(sys.argv[1], sys.argv[2]), 1):
        print(f"step {step}: loss {value:.3f}")
