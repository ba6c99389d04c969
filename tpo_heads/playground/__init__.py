"""The playground: a procedural video world with its full truth, a tiny base model to learn on, and the default recipe."""

from __future__ import annotations

from tpo_core.contract import ReaderSpec
from tpo_core.hooks import hookimpl


@hookimpl
def tpo_readers() -> list[ReaderSpec]:
    """Announce the reader of the playground's scenes."""
    summary = "a playground's scenes as records for any head, by a JSON mapping file"
    return [ReaderSpec(name="playground", summary=summary, reader="tpo_heads.playground.reader:read")]
