"""The card of the `frame` head: a small picture of what comes after the clip, drawn by flow matching from the task embedding."""

import base64

from tpo_core import HeadSpec, ReaderSpec, hookimpl


def _stripes(step: int) -> str:
    return base64.b64encode(bytes(step * place % 251 for place in range(192))).decode()


SPEC = HeadSpec(
    name="frame",
    summary="a small picture of a later frame than the clip shows (generative: flow matching)",
    config="tpo_head_frame.head:FrameConfig",
    codec="tpo_head_frame.head:FrameCodec",
    head="tpo_head_frame.head:FrameHead",
    metric="tpo_head_frame.metric:FrameMetric",
    draw="tpo_head_frame.metric:draw",
    primary="nearest",
    examples=tuple({"rgb": _stripes(step)} for step in (1, 7, 50)),
)


@hookimpl
def tpo_heads() -> list[HeadSpec]:
    return [SPEC]


@hookimpl
def tpo_readers() -> list[ReaderSpec]:
    return [ReaderSpec("frame", "last frames of a playground's clips, the clips cut before them", "tpo_head_frame.reader:read")]
