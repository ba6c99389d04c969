"""Mask head: segment and follow what a phrase or a box names, with SAM2 behind the task embedding (TPO, arXiv 2412.19326, section 3.1)."""

from __future__ import annotations

from collections.abc import Iterable

from tpo_core import HeadSpec, hookimpl

_BLOCK = {"size": [48, 64], "counts": "Zn0d0l0000000000000000000000000000000000000000000000000000000000fd0"}
_NOTHING = {"size": [48, 64], "counts": "PP3"}
_SIZE = [64, 48]


@hookimpl
def tpo_heads() -> Iterable[HeadSpec]:
    """Announce the mask head."""
    yield HeadSpec(
        name="mask",
        summary="masks of what a phrase or a box names, followed through a clip (SAM2)",
        config="tpo_heads.mask.config:MaskConfig",
        codec="tpo_heads.mask.codec:MaskCodec",
        head="tpo_heads.mask.head:MaskHead",
        metric="tpo_heads.mask.metric:MaskMetric",
        draw="tpo_heads.mask.draw:draw",
        primary="j&f",
        fidelity=0.9,
        examples=(
            {"size": _SIZE, "frames": [0], "rle": [_BLOCK]},
            {"size": _SIZE, "frames": [0], "rle": [_NOTHING]},
            {"size": _SIZE, "frames": [0, 2, 4, 6], "rle": [_NOTHING, _BLOCK, None, _BLOCK], "object_ids": [3]},
            {"size": _SIZE, "frames": [1, 5], "rle": [_BLOCK, None], "boxes": [[20, 10, 50, 30], None], "visible": [1, 0]},
        ),
        prompt_examples=(
            {"kind": "box", "size": _SIZE, "frame": 0, "boxes": [[20, 10, 50, 30]]},
            {"kind": "point", "size": _SIZE, "frame": 2, "points": [[33, 21]]},
        ),
    )
