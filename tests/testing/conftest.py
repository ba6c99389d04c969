"""Puts the toy heads of `material/` on the path, where the cards' strings find them."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "material"))
