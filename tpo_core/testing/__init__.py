"""For authors of heads: the conformance kit, and media in memory. Nothing in core imports this room."""

from __future__ import annotations

from tpo_core.testing.kit import CHECKS, HeadCheck, check_head, head_checks
from tpo_core.testing.media import ArrayMedia, clip_for, picture_for
from tpo_core.testing.report import CheckFailed, Report, Result

__all__ = ["CHECKS", "ArrayMedia", "CheckFailed", "HeadCheck", "Report", "Result", "check_head", "clip_for", "head_checks", "picture_for"]
