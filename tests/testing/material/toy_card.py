"""Card of the toy head: light."""

from tpo_core import HeadSpec, hookimpl

SPEC = HeadSpec(
    name="spot",
    summary="the middle of some points",
    config="toy_head:SpotConfig",
    head="toy_head:SpotHead",
    codec="toy_head:SpotCodec",
    metric="toy_head:SpotMetric",
    draw="toy_head:draw",
    primary="hit",
    examples=(
        {"size": [64, 48], "points": [[10, 20], [30, 40]]},
        {"size": [30, 60], "points": [[3, 50]], "frame": 4},
        {"size": [64, 48], "points": []},
        {"size": [50, 20], "points": [[1, 2], [3, 4], [40, 19]]},
    ),
    prompt_examples=({"kind": "point", "size": [64, 48], "point": [10, 20]}, {"kind": "point", "size": [30, 60], "point": [3, 50]}),
)


@hookimpl
def tpo_heads():
    return [SPEC]
