"""The temporal head: moments and highlights of a clip from a task embedding. The card; its classes are imported when a run uses it."""

from __future__ import annotations

from collections.abc import Iterable

from tpo_core import HeadSpec, hookimpl

SPEC = HeadSpec(
    name="temporal",
    summary="moments and highlights in a video (CG-DETR on the model's own frame features, or a plain MLP)",
    config="tpo_heads.temporal.config:TemporalConfig",
    codec="tpo_heads.temporal.codec:TemporalCodec",
    head="tpo_heads.temporal.head:TemporalHead",
    metric="tpo_heads.temporal.metric:TemporalMetric",
    draw="tpo_heads.temporal.draw:draw",
    primary="r1@0.5",
    examples=(
        {"duration": 33.67, "spans": [[0.0, 6.9]]},
        {"duration": 12.0, "spans": [[7.25, 12.0], [1.5, 3.0]], "distractors": [[4.0, 6.0]]},
        {
            "duration": 20.0,
            "spans": [[4.0, 8.0]],
            "saliency": {"clip_len": 2.0, "num_clips": 10, "clip_ids": [2, 3], "scores": [[4, 3, 4], [2, 2, 3]]},
        },
        {"duration": 9.0, "spans": []},
    ),
)


@hookimpl
def tpo_heads() -> Iterable[HeadSpec]:
    """Return the card of the temporal head."""
    yield SPEC
