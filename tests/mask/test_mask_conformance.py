"""The contract, on the mask head in several of its forms."""

from __future__ import annotations

import pytest

from tpo_core.testing import HeadCheck, head_checks
from tpo_heads.mask import tpo_heads as announce
from tpo_heads.mask.config import MaskConfig

(SPEC,) = announce()
CONFIGS = {
    "default": MaskConfig(),
    "streamed": MaskConfig(
        trains="all", chunk_frames=4, prompt_frame="best", multimask=True, slots=2, points=64, objective="both", presence=True
    ),
    "release": MaskConfig(objective="distil", path="both", cache_mib=0),
}
CHECKS = [
    pytest.param(check, id=f"{name}-{check}", marks=[pytest.mark.long] if name != "default" else [])
    for name, config in CONFIGS.items()
    for check in head_checks(SPEC, config=config)
]


@pytest.mark.parametrize("check", CHECKS)
def test_contract(check: HeadCheck) -> None:
    check()
