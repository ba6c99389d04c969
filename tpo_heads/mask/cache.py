"""Image features of a frozen SAM2, computed once per frame: in memory, and on disk for data workers and later runs.

A frame's name is a hash of its medium's key, its index, the SAM2 and its picture size. The memory belongs to one head and saves encoding.
The folder belongs to one set of encoder weights (a fingerprint in it is compared before anything is read) and saves decoding too: a worker
that finds a frame's file sends the name alone. Both are filled up to their size and then keep what they have: nothing is evicted, so that
a name that a worker has seen stays true, and a pass over more frames than fit still finds those that did.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from tpo_core.errors import CheckpointError, ConfigError
from tpo_heads.mask.track import SamFeatures

MIB = 1 << 20
LEVELS = ("fine", "middle", "top")
OWNER = "encoder.json"
Name = tuple[int, int]
"""A frame's 128-bit name as two signed 64-bit numbers, so that it travels in a tensor."""


def frame_name(media_key: str, frame: int, sam: str, side: int) -> Name:
    """Return the name of one frame's features."""
    digest = hashlib.sha256(f"{media_key}/{frame}/{sam}/{side}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True), int.from_bytes(digest[8:16], "big", signed=True)


def file_of(folder: Path, name: Name) -> Path:
    """Return where a frame's features lie."""
    text = "".join(part.to_bytes(8, "big", signed=True).hex() for part in name)
    return folder / text[:2] / f"{text}.safetensors"


def fingerprint(tensors: Sequence[Tensor]) -> str:
    """Return a hash of weights, in order."""
    total = hashlib.sha256()
    for tensor in tensors:
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()[:32]


class FeatureMemory:
    """Features in the host's memory, up to a size in MiB."""

    def __init__(self, mib: float) -> None:
        self.limit = int(mib * MIB)
        self.bytes = 0
        self._held: dict[tuple[Name, torch.dtype], SamFeatures] = {}

    def __len__(self) -> int:
        return len(self._held)

    def get(self, name: Name, dtype: torch.dtype) -> SamFeatures | None:
        """Return one frame's features (1, C, H, W) as they were computed under this precision, or None."""
        return self._held.get((name, dtype))

    def put(self, name: Name, dtype: torch.dtype, features: SamFeatures) -> None:
        """Keep one frame's features if they fit."""
        size = sum(level.numel() * level.element_size() for level in features)
        if (name, dtype) in self._held or self.bytes + size > self.limit:
            return
        self._held[name, dtype] = SamFeatures(*(level.detach().cpu().clone() for level in features))
        self.bytes += size

    def clear(self) -> None:
        """Forget everything (the encoder's weights have changed)."""
        self._held.clear()
        self.bytes = 0


class FeatureFolder:
    """Features on disk, one safetensors file per frame, up to a size in MiB.

    Args:
        path: made where it does not exist.
        mib: no file is written beyond this.
        owner: fingerprint of the encoder's weights.

    Raises:
        ConfigError: the folder holds another encoder's features.
    """

    def __init__(self, path: Path, mib: float, owner: str) -> None:
        self.path = path
        self.limit = int(mib * MIB)
        path.mkdir(parents=True, exist_ok=True)
        mark = path / OWNER
        if not mark.exists():
            _write_whole(mark, json.dumps({"encoder": owner}).encode())
        found = json.loads(mark.read_text(encoding="utf-8")).get("encoder")
        if found != owner:
            raise ConfigError(
                f"{path} holds features of other SAM2 weights ({found}, expected {owner}); choose another cache_dir or delete it"
            )
        self.bytes = sum(file.stat().st_size for file in path.glob("*/*.safetensors"))

    def get(self, name: Name) -> SamFeatures | None:
        """Return one frame's features (1, C, H, W), or None.

        Raises:
            CheckpointError: the file is not what was written.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        file = file_of(self.path, name)
        if not file.exists():
            return None
        try:
            held = load_file(file)
            return SamFeatures(*(held[level] for level in LEVELS))
        except (SafetensorError, KeyError, OSError) as error:
            raise CheckpointError(f"{file}: broken features ({error}); delete the file, it will be made again") from error

    def put(self, name: Name, features: SamFeatures) -> None:
        """Write one frame's features if they fit; whole or not at all."""
        from safetensors.torch import save

        file = file_of(self.path, name)
        if self.bytes >= self.limit or file.exists():
            return
        data = save({level: tensor.detach().cpu().contiguous() for level, tensor in zip(LEVELS, features)})
        if self.bytes + len(data) > self.limit:
            return
        file.parent.mkdir(exist_ok=True)
        _write_whole(file, data)
        self.bytes += len(data)


def _write_whole(path: Path, data: bytes) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_bytes(data)
    os.replace(partial, path)
