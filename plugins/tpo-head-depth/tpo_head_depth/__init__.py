"""The card of the `depth` head: how far everything in a picture is, as a dense map."""

from tpo_core import HeadSpec, ReaderSpec, hookimpl

SPEC = HeadSpec(
    name="depth",
    summary="how far everything in a picture is, as a dense map",
    config="tpo_head_depth.head:DepthConfig",
    codec="tpo_head_depth.head:DepthCodec",
    head="tpo_head_depth.head:DepthHead",
    metric="tpo_head_depth.metric:DepthMetric",
    draw="tpo_head_depth.metric:draw",
    primary="delta1",
    examples=(
        {"size": [96, 64], "grid": [[9.0, 8.0, 9.0], [2.5, 7.0, 1.0]]},
        {"size": [48, 80], "grid": [[None, 30.0], [4.0, 3.0], [2.0, None], [1.5, 1.25]]},
        {"size": [96, 64], "grid": [[5.0]]},
    ),
)


@hookimpl
def tpo_heads() -> list[HeadSpec]:
    return [SPEC]


@hookimpl
def tpo_readers() -> list[ReaderSpec]:
    return [ReaderSpec("depth", "depth maps of a playground's pictures", "tpo_head_depth.reader:read")]
