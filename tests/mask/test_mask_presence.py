"""What the task embedding says of an object's presence: nothing at first, only where it is what prompts, and it can be learnt."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tpo_heads.mask.config import MaskConfig


def outputs(bench: Any, *, bias: float | None, path: str = "embedding", prompted: bool = False) -> dict[str, torch.Tensor]:
    """Two queries on one clip; the first has a box if `prompted`. bias: of the layer, None without it."""
    config = MaskConfig(presence=bias is not None, path=path)
    head = bench.head(config).eval()
    if bias is not None:
        torch.nn.init.constant_(head.presence.read.bias, bias)
    media = bench.media(3)
    targets = [bench.target({0: bench.block(4)}, name) for name in ("a", "b")]
    prompts = {0: bench.box_prompt()} if prompted else None
    queries, _ = bench.batch(config, [bench.clip(media, *targets, training=False)], prompts=prompts)
    with torch.no_grad():
        found: dict[str, torch.Tensor] = head(queries)
    return found


def test_nothing_changes_before_it_is_learnt(bench: Any) -> None:
    plain, fresh = outputs(bench, bias=None), outputs(bench, bias=0.0)
    for name, values in plain.items():
        assert torch.equal(fresh[name], values), name


def test_it_is_added_to_the_score_of_every_frame_and_to_nothing_else(bench: Any) -> None:
    plain, shifted = outputs(bench, bias=None), outputs(bench, bias=-7.0)
    torch.testing.assert_close(shifted["object"], plain["object"] - 7)
    assert torch.equal(shifted["masks"], plain["masks"])
    assert torch.equal(shifted["iou"], plain["iou"])


@pytest.mark.parametrize("path", ["box", "both"])
def test_a_box_in_the_question_asks_sam2_alone(bench: Any, path: str) -> None:
    plain, shifted = outputs(bench, bias=None, path=path, prompted=True), outputs(bench, bias=-7.0, path=path, prompted=True)
    torch.testing.assert_close(shifted["object"] - plain["object"], torch.tensor([[0.0] * 3, [-7.0] * 3]))


def test_what_is_nowhere_is_learnt_from_the_embedding(bench: Any) -> None:
    """SAM2 frozen, the same picture: which of two embeddings names something that is there is told apart after a few steps."""
    config = MaskConfig(presence=True)
    head = bench.head(config).train()
    here, nowhere = bench.block(10), bench.block(0, width=0)
    clips = [bench.clip(bench.media(1), bench.target({0: here}, "a"), bench.target({0: nowhere}, "b"))]
    queries, targets = bench.batch(config, clips)
    optimizer = torch.optim.Adam(head.presence.parameters(), lr=0.05)
    for _ in range(30):
        loss = head.loss(head(queries, targets), targets)["object"].sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    scores = head(queries, targets)["object"].detach()
    assert float(scores[0].min()) > 0 > float(scores[1].max())


def test_distilling_has_no_score_to_learn_it_from(bench: Any) -> None:
    assert bench.head(MaskConfig(presence=True, objective="distil")).presence is None
    assert bench.head(MaskConfig(presence=True, objective="both")).presence is not None
