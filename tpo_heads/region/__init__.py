"""Region head: one box per query, from its task embedding alone (TPO, arXiv 2412.19326, section 3.1)."""

from __future__ import annotations

from collections.abc import Iterable

from tpo_core import HeadSpec, hookimpl


@hookimpl
def tpo_heads() -> Iterable[HeadSpec]:
    """Announce the region head."""
    yield HeadSpec(
        name="region",
        summary="boxes of what a phrase names, in a picture or a frame",
        config="tpo_heads.region.config:RegionConfig",
        codec="tpo_heads.region.codec:RegionCodec",
        head="tpo_heads.region.head:RegionHead",
        metric="tpo_heads.region.metric:RegionMetric",
        draw="tpo_heads.region.draw:draw",
        primary="acc@0.5",
        examples=(
            {"size": [64, 48], "boxes": [[20.0, 10.0, 50.0, 30.0]]},
            {"size": [64, 48], "boxes": [[4, 29, 60, 46], [0, 0, 12.5, 48]]},
            {"size": [64, 48], "boxes": []},
            {"size": [64, 48], "boxes": [[1, 2, 9, 40]], "frame": 0},
        ),
        prompt_examples=({"kind": "box", "size": [64, 48], "boxes": [[20.0, 10.0, 50.0, 30.0]]},),
    )
