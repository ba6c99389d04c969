"""The card of the `contrast` head: no annotation; the task token of a clip and its instruction agrees with another view of the clip."""

from tpo_core import HeadSpec, ReaderSpec, hookimpl

SPEC = HeadSpec(
    name="contrast",
    summary="an embedding of a picture or clip that agrees with another view of it; learnt without annotation",
    config="tpo_head_contrast.head:ContrastConfig",
    codec="tpo_head_contrast.head:ContrastCodec",
    head="tpo_head_contrast.head:ContrastHead",
    metric="tpo_head_contrast.metric:ContrastMetric",
    primary="top1",
    examples=({}, {}, {}),
)


@hookimpl
def tpo_heads() -> list[HeadSpec]:
    return [SPEC]


@hookimpl
def tpo_readers() -> list[ReaderSpec]:
    return [ReaderSpec("contrast", "every medium of a playground, without annotation", "tpo_head_contrast.reader:read")]
