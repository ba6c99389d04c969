"""What a run was made with, and when."""

from __future__ import annotations

from datetime import UTC, datetime
from importlib import metadata

PACKAGES = ("tpo", "torch", "transformers", "peft", "accelerate", "safetensors", "tokenizers", "numpy", "av", "pillow", "sam2")


def package_versions() -> dict[str, str]:
    """Return package -> installed version, of those that decide what a run computes."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def utc_now() -> str:
    """Return the time as ``2026-01-31T12:00:00+00:00``."""
    return datetime.now(UTC).isoformat(timespec="seconds")
