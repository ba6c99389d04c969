"""The contract, check by check."""

import pytest
from tpo_head_frame import SPEC

from tpo_core.testing import HeadCheck, head_checks


@pytest.mark.parametrize("check", head_checks(SPEC, module="tpo_head_frame"), ids=str)
def test_contract(check: HeadCheck) -> None:
    check()
