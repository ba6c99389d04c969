"""Say whose code an exception came from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def blame(head: str, origin: str = "") -> Iterator[None]:
    """Add ``in head 'foo' (tpo-head-foo 1.2)`` as a note (PEP 678) to every exception that passes, once.

    Args:
        head: its name.
        origin: its package and version; "" where no package announces it.
    """
    note = f"in head {head!r}" + (f" ({origin})" if origin else "")
    try:
        yield
    except Exception as error:
        if note not in getattr(error, "__notes__", ()):
            error.add_note(note)
        raise
