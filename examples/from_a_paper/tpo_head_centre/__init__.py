from tpo_core import HeadSpec, hookimpl

SPEC = HeadSpec(
    name="centre",
    summary="boxes as points (CenterNet), every one that a phrase names",
    config="tpo_head_centre.head:CentreConfig",
    codec="tpo_head_centre.head:CentreCodec",
    head="tpo_head_centre.head:CentreHead",
    metric="tpo_head_centre.head:CentreMetric",
    primary="recall",
    examples=(
        {"size": [90, 60], "boxes": [[10, 20, 30, 50], [60, 5, 80, 25]]},
        {"size": [48, 80], "boxes": [[4, 8, 40, 70]]},
        {"size": [90, 60], "boxes": []},
    ),
)


@hookimpl
def tpo_heads() -> list[HeadSpec]:
    return [SPEC]
