from tpo_core import HeadSpec, ReaderSpec, hookimpl

SPEC = HeadSpec(
    name="count",
    summary="how many things a phrase names",
    config="tpo_head_count.head:CountConfig",
    codec="tpo_head_count.head:CountCodec",
    head="tpo_head_count.head:CountHead",
    metric="tpo_head_count.head:CountMetric",
    primary="exact",
    examples=({"count": 2}, {"count": 0}, {"count": 5}),
)


@hookimpl
def tpo_heads() -> list[HeadSpec]:
    return [SPEC]


@hookimpl
def tpo_readers() -> list[ReaderSpec]:
    return [ReaderSpec("count", "counts of a playground's things", "tpo_head_count.reader:read")]
