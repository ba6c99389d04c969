"""A card that imports something heavy (the test puts an empty `jax` on the path)."""

import jax  # noqa: F401 - the fault under test
from toy_card import tpo_heads  # noqa: F401 - announced from here
