"""Matching, counts, scores and the reader of the `point` head, on values worked out by hand."""

import json
import math
from pathlib import Path

import pytest
import torch
from tpo_head_point.head import PointConfig, PointHead, places
from tpo_head_point.metric import PointMetric, f1
from tpo_head_point.reader import read

from tpo_core.types import FrameFeatures, Target, Widths


def head(**options: float) -> PointHead:
    return PointHead(PointConfig(**options), Widths(hidden=4, features=4, words=4))


def test_each_annotated_point_is_matched_once_and_the_rest_learn_not_to_exist() -> None:
    output = {"point": torch.tensor([[[0.1, 0.1], [0.2, 0.1], [0.9, 0.9]]]), "logit": torch.zeros(1, 3)}
    targets = {"points": torch.tensor([[[0.1, 0.2], [0.8, 0.9]]]), "points_valid": torch.ones(1, 2, dtype=torch.bool)}
    losses = head(trust=0.0).loss(output, targets)
    assert losses["l1"].item() == pytest.approx(0.2)
    assert losses["exists"].item() == pytest.approx(3 * math.log(2))
    output["logit"] = torch.tensor([[2.0, -2.0, 2.0]])
    assert head(trust=0.0).loss(output, targets)["exists"].item() == pytest.approx(3 * math.log(1 + math.exp(-2.0)))


def test_a_surer_proposal_wins_over_a_slightly_nearer_one() -> None:
    output = {"point": torch.tensor([[[0.5, 0.5], [0.5, 0.6]]]), "logit": torch.tensor([[-3.0, 3.0]])}
    targets = {"points": torch.tensor([[[0.5, 0.5]]]), "points_valid": torch.ones(1, 1, dtype=torch.bool)}
    assert head(trust=0.0).loss(output, targets)["l1"].item() == pytest.approx(0.0)
    assert head(trust=0.5).loss(output, targets)["l1"].item() == pytest.approx(0.1)


def test_no_point_is_a_target_too() -> None:
    output = {"point": torch.zeros(2, 3, 2), "logit": torch.zeros(2, 3, requires_grad=True)}
    targets = {"points": torch.zeros(2, 0, 2), "points_valid": torch.zeros(2, 0, dtype=torch.bool)}
    losses = head().loss(output, targets)
    assert losses["l1"].tolist() == [0.0, 0.0]
    assert losses["exists"].tolist() == pytest.approx([3 * math.log(2)] * 2)


def test_tokens_stand_in_the_middle_of_their_cells() -> None:
    shape = (2, 1, 6)
    features = FrameFeatures(
        torch.zeros(*shape, 4), torch.ones(shape, dtype=torch.bool), torch.zeros(2, 1, 2), torch.tensor([[2, 3], [3, 2]])
    )
    centre_NP2, cell_N12 = places(features)
    torch.testing.assert_close(centre_NP2[0, 4], torch.tensor([0.5, 0.75]))
    torch.testing.assert_close(centre_NP2[1, 3], torch.tensor([0.75, 0.5]))
    torch.testing.assert_close(cell_N12[0, 0], torch.tensor([1 / 3, 1 / 2]))


def test_f1_by_hand() -> None:
    size = (60, 80)  # the diagonal is 100 pixels, so that 10 are near
    assert f1([], [], size) == 1.0
    assert f1([[1, 1]], [], size) == 0.0
    assert f1([], [[1, 1]], size) == 0.0
    assert f1([[0, 0]], [[6, 8]], size) == 1.0
    assert f1([[0, 0]], [[6, 8.1]], size) == 0.0
    assert f1([[0, 0], [50, 50], [59, 79]], [[1, 0]], size) == pytest.approx(0.5)
    assert f1([[5, 5], [6, 5]], [[5, 5], [50, 50]], size) == pytest.approx(0.5)


def test_chance_is_the_better_constant() -> None:
    metric = PointMetric()
    for points in ([], [], [[30.0, 40.0]]):
        metric.update([], Target.model_validate({"id": "t", "size": [60, 80], "points": points}))
    assert metric.compute() == {"f1": pytest.approx(2 / 3), "count": pytest.approx(2 / 3)}
    assert metric.chance() == {"f1": pytest.approx(2 / 3), "count": pytest.approx(2 / 3)}


def test_the_reader_takes_what_is_seen(tmp_path: Path) -> None:
    def thing(colour: str, shape: str, x: float, box: list[int] | None) -> dict[str, object]:
        return {"colour": colour, "shape": shape, "centres": [[x, 5.0]], "boxes": [box]}

    things = [thing("red", "ring", 1.0, [0, 0, 2, 2]), thing("red", "cross", 2.0, [0, 0, 3, 3]), thing("blue", "ring", 3.0, None)]
    scene = {"id": "s", "kind": "image", "media": "a.png", "size": [64, 48], "objects": things}
    path = tmp_path / "scenes-train.jsonl"
    path.write_text("".join(json.dumps(scene | {"kind": kind}) + "\n" for kind in ("image", "clip", "image", "image")))
    rows = {(line, row["id"]): (row["messages"][0]["content"][1]["text"], row["targets"][0]["points"]) for line, row in read(path)}
    assert {line for line, _ in rows} == {1, 3, 4}
    assert rows[1, "s-shape"] == ("point to every cross.", [[2.0, 5.0]])
    assert rows[1, "s-colour"] == ("point to everything red.", [[1.0, 5.0], [2.0, 5.0]])
    assert rows[3, "s-all"] == ("point to everything.", [[1.0, 5.0], [2.0, 5.0]])
    assert rows[4, "s-shape"] == ("point to every square.", [])
