"""The contract's own checks, on the sizes that a small world uses and on the paper's MLP ablation."""

from __future__ import annotations

import pytest

from tpo_core.testing import HeadCheck, head_checks
from tpo_heads.temporal import SPEC
from tpo_heads.temporal.config import TemporalConfig

SMALL = {
    "hidden": 32,
    "attention_heads": 4,
    "inner_width": 32,
    "dummies": 6,
    "dummy_layers": 1,
    "text_layers": 1,
    "encoder_layers": 1,
    "decoder_layers": 2,
}
CG_DETR = head_checks(SPEC, config=TemporalConfig(**SMALL, slots=2), module="tpo_heads.temporal")
MLP = head_checks(SPEC, config=TemporalConfig(kind="mlp", hidden=32), module="tpo_heads.temporal")


@pytest.mark.parametrize("check", CG_DETR, ids=str)
def test_contract_with_cg_detr(check: HeadCheck) -> None:
    check()


@pytest.mark.parametrize("check", MLP, ids=str)
def test_contract_with_the_plain_mlp(check: HeadCheck) -> None:
    check()
