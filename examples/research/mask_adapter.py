"""Research on a built-in head: another way from the task embedding into SAM2's prompt space, by subclassing the mask head."""

from __future__ import annotations

from torch import Tensor, nn

from tpo_core.types import Widths
from tpo_heads.mask.config import MaskConfig
from tpo_heads.mask.head import MaskHead
from tpo_heads.mask.prompts import Adapter


class GatedAdapter(Adapter):
    """The head's own adapter, with a gate that the task embedding opens or shuts."""

    def __init__(self, hidden: int, slots: int, tokens: int, width: int, depth: int) -> None:
        super().__init__(hidden, slots, tokens, width, depth)
        self.gate = nn.Linear(hidden * slots, 1)

    def forward(self, states_NSD: Tensor) -> Tensor:
        gate_N11 = (self.gate(states_NSD.flatten(1)) + 2).sigmoid()[..., None]
        return super().forward(states_NSD) * gate_N11


class GatedMaskHead(MaskHead):
    """The mask head with the other adapter."""

    def __init__(self, config: MaskConfig, widths: Widths) -> None:
        super().__init__(config, widths)
        self.adapter = GatedAdapter(widths.hidden, config.slots, *self.adapter.shape, config.adapter_depth)
