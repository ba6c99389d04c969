"""Which predicted window answers which annotated one: the assignment of least cost.

Legend: J decoder layers, N queries, Q predicted windows, X annotated windows. Class 0 is the foreground.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from tpo_heads.temporal.config import TemporalConfig
from tpo_heads.temporal.timeline import cxw_to_xx, giou


@torch.no_grad()
def match(spans_JNQ2: Tensor, logits_JNQ2: Tensor, windows_NX2: Tensor, there_NX: Tensor, config: TemporalConfig) -> tuple[Tensor, Tensor]:
    """Return for each annotated window the predicted one (J, N, X), and whether it got one (J, N, X).

    Costs of all layers are computed on the device and cross to the CPU once.
    """
    spans, logits, windows = spans_JNQ2.float(), logits_JNQ2.float(), windows_NX2.float()[None, :, None]
    cost_JNQX = config.match_span * (spans[:, :, :, None] - windows).abs().sum(-1)
    cost_JNQX = cost_JNQX - config.match_giou * giou(cxw_to_xx(spans)[:, :, :, None], cxw_to_xx(windows))
    cost_JNQX = cost_JNQX - config.match_label * logits.softmax(-1)[..., :1]
    layers, rows, queries, most = cost_JNQX.shape
    # One tensor, one transfer. A loss that is not finite is the trainer's to report, so it must not stop the assignment.
    there_JNX = there_NX.to(cost_JNQX.dtype).expand(layers, -1, -1)
    packed = torch.cat((torch.nan_to_num(cost_JNQX.flatten(2), nan=0.0), there_JNX), -1).cpu().numpy()
    costs, there = packed[..., : queries * most].reshape(layers, rows, queries, most), packed[..., queries * most :] > 0
    index_JNX = np.zeros((layers, rows, most), dtype=np.int64)
    found_JNX = np.zeros((layers, rows, most), dtype=bool)
    for layer, row in np.ndindex(layers, rows):
        columns = np.flatnonzero(there[layer, row])
        predicted, annotated = linear_sum_assignment(costs[layer, row][:, columns])
        index_JNX[layer, row, columns[annotated]] = predicted
        found_JNX[layer, row, columns[annotated]] = True
    return torch.from_numpy(index_JNX).to(spans_JNQ2.device), torch.from_numpy(found_JNX).to(spans_JNQ2.device)
