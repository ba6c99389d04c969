"""The contract, on our own head in each of its forms."""

from __future__ import annotations

import pytest

from tpo_core.testing import HeadCheck, head_checks
from tpo_heads.region import tpo_heads as announce
from tpo_heads.region.config import RegionConfig

(SPEC,) = announce()
CONFIGS = {
    "default": RegionConfig(),
    "paper": RegionConfig(loss="mse"),
    "release": RegionConfig(form="xyxy_raw", l1=2, giou=0.2),
    "two_slots": RegionConfig(slots=2, hidden=8),
}
CHECKS = [pytest.param(check, id=f"{name}-{check}") for name, config in CONFIGS.items() for check in head_checks(SPEC, config=config)]


@pytest.mark.parametrize("check", CHECKS)
def test_contract(check: HeadCheck) -> None:
    check()
