"""The card of the `point` head: points on everything that a phrase names, none to many for one query."""

from tpo_core import HeadSpec, ReaderSpec, hookimpl

SPEC = HeadSpec(
    name="point",
    summary="points on everything that a phrase names, none to many",
    config="tpo_head_point.head:PointConfig",
    codec="tpo_head_point.head:PointCodec",
    head="tpo_head_point.head:PointHead",
    metric="tpo_head_point.metric:PointMetric",
    draw="tpo_head_point.metric:draw",
    primary="f1",
    examples=(
        {"size": [96, 64], "points": [[30.0, 20.0], [80.5, 51.0]]},
        {"size": [48, 80], "points": []},
        {"size": [96, 64], "points": [[4.5, 60.0], [40.0, 33.0], [95.0, 2.0]]},
    ),
)


@hookimpl
def tpo_heads() -> list[HeadSpec]:
    return [SPEC]


@hookimpl
def tpo_readers() -> list[ReaderSpec]:
    return [ReaderSpec("point", "points on things of a playground's pictures", "tpo_head_point.reader:read")]
