"""The list of hooks is frozen: a new one needs two packages that want it, and a change of one is a new contract."""

from __future__ import annotations

import inspect

from tpo_core import hooks


def test_the_hooks_and_their_arguments() -> None:
    found = {name: list(inspect.signature(hook).parameters) for name, hook in vars(hooks).items() if name.startswith("tpo_")}
    assert found == {"tpo_heads": [], "tpo_readers": [], "tpo_backbones": [], "tpo_step_end": ["step", "metrics"]}
