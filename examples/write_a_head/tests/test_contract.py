import pytest
from tpo_head_count import SPEC

from tpo_core.testing import HeadCheck, head_checks


@pytest.mark.parametrize("check", head_checks(SPEC, module="tpo_head_count"), ids=str)
def test_contract(check: HeadCheck) -> None:
    check()
