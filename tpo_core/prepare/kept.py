"""What a frozen language model gave for a sample, kept on disk: where only heads train, no sample has to pass through it twice.

A file holds the last hidden states and the gathered vision features, and beside them how the sample was tokenised, so that neither its
media are decoded nor its text is rendered again. What codecs encode is made anew each time: their draws change with the epoch.

Legend: L positions, D width of the language model, T frames, P tokens of a frame, V width of the vision features.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from tpo_core.backbone.layout import MediumRows
from tpo_core.errors import CheckpointError
from tpo_core.prepare.chat import Tokenised

MIB = 1 << 20


@dataclass(frozen=True)
class KeptSample:
    """One sample's states.

    Args:
        note: JSON of how it was tokenised (`write_note`).
        hidden_LD: last hidden states after the final norm.
        frames_TPV: vision features per medium, zeros on padding.
    """

    note: str
    hidden_LD: Tensor
    frames_TPV: list[Tensor]


@dataclass(frozen=True)
class Note:
    """How a sample was tokenised.

    Args:
        read: ids and positions. rows: per medium. keys: identity of each medium. groups: target id -> token groups.
    """

    read: Tokenised
    rows: list[MediumRows]
    keys: list[str]
    groups: dict[str, int]


def write_note(read: Tokenised, rows: Sequence[MediumRows], keys: Sequence[str], groups: Mapping[str, int]) -> str:
    """Return a sample's tokenisation as JSON."""
    media = [{**dataclasses.asdict(one), "rows_TP": one.rows_TP.tolist(), "time_T2": one.time_T2.tolist()} for one in rows]
    return json.dumps({"read": dataclasses.asdict(read), "rows": media, "keys": list(keys), "groups": dict(groups)})


def read_note(text: str) -> Note:
    """Return what `write_note` wrote."""
    found: dict[str, Any] = json.loads(text)
    rows = [
        MediumRows(one["video"], one["count"], np.array(one["rows_TP"]), (one["grid"][0], one["grid"][1]), np.array(one["time_T2"]))
        for one in found["rows"]
    ]
    return Note(Tokenised(**found["read"]), rows, found["keys"], found["groups"])


class StateFolder:
    """States on disk, one safetensors file per sample; picklable, so that data workers read what the training process wrote.

    Args:
        path: made where it does not exist.
        mib: no file is written beyond this. Nothing is evicted: a pass over more samples than fit still finds those that did.
    """

    def __init__(self, path: Path, mib: float) -> None:
        self.path = path
        self.limit = int(mib * MIB)
        self.bytes = 0
        path.mkdir(parents=True, exist_ok=True)

    def get(self, name: str) -> KeptSample | None:
        """Return a sample's states, or None.

        Raises:
            CheckpointError: the file is not what was written.
        """
        from safetensors import SafetensorError, safe_open

        file = self._file(name)
        if not file.exists():
            return None
        try:
            with safe_open(file, framework="pt") as held:
                frames = [held.get_tensor(f"medium.{index}") for index in range(len(held.keys()) - 1)]
                return KeptSample(held.metadata()["note"], held.get_tensor("hidden"), frames)
        except (SafetensorError, KeyError, TypeError, OSError) as error:
            raise CheckpointError(f"{file}: broken states ({error}); delete the file, it will be made again") from error

    def put(self, name: str, sample: KeptSample) -> None:
        """Write a sample's states if they fit; whole or not at all."""
        from safetensors.torch import save

        file = self._file(name)
        if self.bytes >= self.limit or file.exists():
            return
        tensors = {f"medium.{index}": frames for index, frames in enumerate(sample.frames_TPV)} | {"hidden": sample.hidden_LD}
        data = save({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}, {"note": sample.note})
        if self.bytes + len(data) > self.limit:
            return
        partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
        partial.write_bytes(data)
        os.replace(partial, file)
        self.bytes += len(data)

    def _file(self, name: str) -> Path:
        return self.path / f"{name}.safetensors"


__all__ = ["KeptSample", "Note", "StateFolder", "read_note", "write_note"]
