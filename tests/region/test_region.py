"""The region head, its codec, its metric and its drawing."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn

from tpo_core.canvas import Canvas
from tpo_core.types import BackboneView, ClipView, Queries, Target, Widths
from tpo_heads.region import tpo_heads as announce
from tpo_heads.region.codec import RegionCodec
from tpo_heads.region.config import RegionConfig
from tpo_heads.region.draw import draw
from tpo_heads.region.head import RegionHead
from tpo_heads.region.metric import RegionMetric

VIEW = BackboneView(model_type="tiny", frames=4, temporal_patch=1, feature_dim=8, hidden=16)
WIDTHS = Widths(hidden=16, features=8, words=16)


@dataclass(frozen=True)
class Picture:
    size: tuple[int, int] = (64, 48)
    kind: str = "image"
    duration: float = 0.0
    times: tuple[float, ...] = (0.0,)
    key: str = "k"
    path: str = "cat.png"


def clip_of(media: Any = Picture()) -> ClipView:
    return ClipView(media=media)


def target_of(boxes: list[list[float]], **fields: Any) -> Target:
    return Target.model_validate({"id": "t0", "head": "region", "size": [64, 48], "boxes": boxes, **fields})


def codec_of(**options: Any) -> RegionCodec:
    return RegionCodec(RegionConfig(**options), VIEW)


def head_of(**options: Any) -> RegionHead:
    torch.manual_seed(0)
    return RegionHead(RegionConfig(**options), WIDTHS)


def queries_of(states_NSD: torch.Tensor) -> Queries:
    count = len(states_NSD)
    words = torch.zeros(count, 1, states_NSD.shape[-1])
    return Queries(states_NSD, torch.zeros(count, dtype=torch.long), words, torch.ones(count, 1, dtype=torch.bool))


def states(count: int, slots: int = 1) -> torch.Tensor:
    return torch.randn(count, slots, 16, generator=torch.Generator().manual_seed(1))


def test_the_card_names_what_exists_and_its_examples_fit() -> None:
    (spec,) = announce()
    assert (spec.name, spec.primary, spec.fidelity) == ("region", "acc@0.5", 1.0)
    for example in spec.examples:
        codec_of().check(target_of(**example), Picture())


class TestCodec:
    def test_boxes_become_queries_in_the_order_given(self) -> None:
        encoded = codec_of().encode(target_of([[16, 12, 32, 48], [0, 0, 64, 24]]), clip_of())
        assert [row["box_xyxy"].tolist() for row in encoded] == [[0.25, 0.25, 0.5, 1.0], [0.0, 0.0, 1.0, 0.5]]
        assert encoded[0]["box_xyxy"].dtype == torch.float32

    def test_no_box_gives_no_query(self) -> None:
        assert codec_of().encode(target_of([]), clip_of()) == []

    def test_a_rounded_box_is_clipped(self) -> None:
        target = target_of([[-0.4, 0, 64.5, 48.9]])
        codec_of().check(target, Picture())
        assert codec_of().encode(target, clip_of())[0]["box_xyxy"].tolist() == [0, 0, 1, 1]

    @pytest.mark.parametrize(
        ("target", "sentence"),
        [
            (target_of([[0, 0, 5, 5], [30, 10, 20, 30]]), r"box 1 \[30.*\] is empty or reversed; write \[x1, y1, x2, y2\] with x1 < x2"),
            (target_of([[5, 5, 5, 9]]), "box 0 .* is empty or reversed"),
            (target_of([[0, 0, 66, 5]]), r"box 0 \[0.0, 0.0, 66.0, 5.0\] lies outside the medium of 64 x 48 pixels"),
            (target_of([[0, -2, 6, 5]]), "lies outside"),
            (target_of([[100, 100, 160, 150]]), "lies outside"),
            (target_of([[0, 0, 5, 5]], size=[48, 64]), r"size of \[48, 64\] but the medium is \[64, 48\] .*EXIF.*as shown"),
            (target_of([[0, 0, 5, 5]], size=[640, 480]), r"size of \[640, 480\] but the medium is \[64, 48\]; give"),
            (target_of([[0, 0, 5, 5]], frame=1), "frame 1 was expected in 0 to 0"),
            (target_of([[0, 0, 5, float("nan")]]), "finite number"),
            (target_of([[0, 0, 5]]), r"boxes\.0\.3"),
            (target_of([[0, 0, 5, 5]], colour="red"), "colour"),
        ],
    )
    def test_a_wrong_annotation_is_one_error(self, target: Target, sentence: str) -> None:
        with pytest.raises(ValueError, match=sentence):
            codec_of().check(target, Picture())

    def test_a_box_prompt_is_one_box(self) -> None:
        prompt = target_of([[16, 12, 32, 48]], role="prompt", kind="box", frame=0)
        assert codec_of().encode_prompt(prompt, clip_of())["box_xyxy"].tolist() == [0.25, 0.25, 0.5, 1.0]
        with pytest.raises(ValueError, match="holds one box, got 2"):
            codec_of().encode_prompt(target_of([[0, 0, 1, 1]] * 2, role="prompt", kind="box"), clip_of())
        with pytest.raises(ValueError, match="takes box prompts, got kind 'point'"):
            codec_of().encode_prompt(target_of([], role="prompt", kind="point"), clip_of())

    def test_an_answer_is_in_pixels_and_inside(self) -> None:
        answer = codec_of().decode({"box_xyxy": torch.tensor([-0.1, 0.25, 0.5, 1.2])}, clip_of())
        assert answer == {"box": [0.0, 12.0, 32.0, 48.0]}
        with pytest.raises(ValueError, match="not finite"):
            codec_of().decode({"box_xyxy": torch.tensor([float("nan"), 0, 0, 0])}, clip_of())

    def test_answers_in_words(self) -> None:
        assert codec_of().describe([]) == "no box"
        assert codec_of().describe([{"box": [0.2, 12.0, 32.0, 48.0]}]) == "box x 0-32, y 12-48"

    def test_it_travels_to_workers(self) -> None:
        assert pickle.loads(pickle.dumps(codec_of(l1=3))).config.l1 == 3

    @settings(deadline=None)
    @given(
        size=st.tuples(st.integers(2, 5000), st.integers(2, 5000)),
        shares=st.tuples(*[st.floats(0, 1) for _ in range(4)]),
    )
    def test_round_trip_on_any_size(self, size: tuple[int, int], shares: tuple[float, ...]) -> None:
        low_x, high_x = sorted(shares[:2])
        low_y, high_y = sorted(shares[2:])
        box = [low_x * size[0], low_y * size[1], high_x * size[0], high_y * size[1]]
        clip = clip_of(Picture(size=size))
        (encoded,) = codec_of().encode(target_of([box], size=list(size)), clip)
        assert codec_of().decode(encoded, clip)["box"] == pytest.approx(box, abs=0.006)


class TestHead:
    def test_it_is_linear_relu_linear(self) -> None:
        head = head_of(loss="mse", slots=2, hidden=5)
        reference = nn.Sequential(nn.Linear(32, 5), nn.ReLU(), nn.Linear(5, 4))
        reference.load_state_dict(dict(zip(reference.state_dict(), head.mlp.state_dict().values())))
        torch.testing.assert_close(head(queries_of(states(3, 2)))["box_xyxy"], reference(states(3, 2).reshape(3, 32)))

    def test_sigmoid_boxes_are_centre_and_extent(self) -> None:
        head = head_of()
        nn.init.zeros_(head.mlp.outer.weight)
        with torch.no_grad():
            head.mlp.outer.bias.copy_(torch.logit(torch.tensor([0.5, 0.25, 0.2, 0.1])))
        expected = torch.tensor([[0.4, 0.2, 0.6, 0.3]] * 2)
        torch.testing.assert_close(head(queries_of(states(2)))["box_xyxy"], expected)

    def test_losses_by_hand(self) -> None:
        output = {"box_xyxy": torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.2, 0.2, 0.4, 0.4]])}
        targets = {"box_xyxy": torch.tensor([[0.0, 0.0, 0.5, 1.0], [0.2, 0.2, 0.4, 0.4]])}
        # Row 0: corners differ by (0, 0, .5, 0), centre and extent by (.25, 0, .5, 0); IoU = GIoU = .5.
        losses = head_of().loss(output, targets)
        torch.testing.assert_close(losses["l1"], torch.tensor([0.1875, 0.0]))
        torch.testing.assert_close(losses["giou"], torch.tensor([0.5, 0.0]))
        torch.testing.assert_close(head_of(form="xyxy_raw").loss(output, targets)["l1"], torch.tensor([0.125, 0.0]))
        torch.testing.assert_close(head_of(loss="mse").loss(output, targets), {"mse": torch.tensor([0.0625, 0.0])})

    def test_weights_and_terms_follow_the_config(self) -> None:
        assert head_of().term_weights == {"l1": 5.0, "giou": 2.0}
        assert head_of(loss="mse").term_weights == {"mse": 1.0}
        for loss in ("l1_giou", "mse"):
            codec, head = codec_of(loss=loss), head_of(loss=loss)
            (encoded,) = codec.encode(target_of([[1, 2, 30, 40]]), clip_of())
            targets = {name: tensor[None] for name, tensor in encoded.items()}
            terms = set(head.loss(head(queries_of(states(1))), targets))
            assert terms == set(codec.terms) == set(codec.counts(encoded)) == set(head.term_weights)

    def test_the_published_code_can_be_written_as_a_config(self) -> None:
        head = head_of(form="xyxy_raw", l1=2, giou=0.2)
        predicted, true = torch.tensor([[0.1, 0.1, 0.6, 0.5]]), torch.tensor([[0.2, 0.1, 0.6, 0.6]])
        # L1 = mean(.1, 0, 0, .1) = .05. Overlap .4*.4 = .16, union .2 + .2 - .16 = .24, hull .5*.5 = .25.
        expected = 2 * 0.05 + (1 - (0.16 / 0.24 - 0.01 / 0.25)) / 5
        losses = head.loss({"box_xyxy": predicted}, {"box_xyxy": true})
        assert sum(head.term_weights[name] * row.item() for name, row in losses.items()) == pytest.approx(expected)

    @pytest.mark.parametrize("loss", ["l1_giou", "mse"])
    def test_half_precision_does_not_round_the_box(self, loss: str) -> None:
        head = head_of(loss=loss).bfloat16()
        exact = head_of(loss=loss)
        exact.load_state_dict(head.state_dict())
        half = states(4).bfloat16()
        output = head(queries_of(half))["box_xyxy"]
        assert output.dtype == torch.float32
        torch.testing.assert_close(output, exact(queries_of(half.float()))["box_xyxy"])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(exact(queries_of(half.float()))["box_xyxy"], output)

    @pytest.mark.parametrize("options", [{}, {"loss": "mse"}, {"form": "xyxy_raw"}])
    def test_it_learns_boxes_from_states(self, options: dict[str, Any]) -> None:
        head = head_of(hidden=32, **options)
        queries, optimiser = queries_of(states(6)), torch.optim.Adam(head.parameters(), lr=0.02)
        low = torch.rand(6, 2, generator=torch.Generator().manual_seed(2)) * 0.5
        targets = {"box_xyxy": torch.cat([low, low + 0.3], dim=1)}
        for _ in range(300):
            losses = head.loss(head(queries), targets)
            optimiser.zero_grad()
            torch.stack([head.term_weights[name] * row.sum() for name, row in losses.items()]).sum().backward()
            optimiser.step()
        torch.testing.assert_close(head(queries)["box_xyxy"], targets["box_xyxy"], atol=0.03, rtol=0)

    def test_prompts_are_embedded_by_two_layers(self) -> None:
        head = head_of(hidden=5)
        assert head.prompt is not None
        reference = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 16))
        reference.load_state_dict(dict(zip(reference.state_dict(), head.prompt.state_dict().values())))
        boxes = torch.rand(3, 4, generator=torch.Generator().manual_seed(4))
        torch.testing.assert_close(head.prompt({"box_xyxy": boxes}), reference(boxes))

    def test_default_width_is_the_language_models(self) -> None:
        assert head_of().mlp.inner.out_features == 16

    def test_the_config_refuses_what_it_does_not_know(self) -> None:
        with pytest.raises(ValidationError, match="widht"):
            RegionConfig(widht=3)  # type: ignore[call-arg]


def scored(*pairs: tuple[list[list[float]], list[list[float]]]) -> dict[str, float]:
    return metric_of(*pairs).compute()


def metric_of(*pairs: tuple[list[list[float]], list[list[float]]]) -> RegionMetric:
    metric = RegionMetric()
    for answers, boxes in pairs:
        metric.update([{"box": box} for box in answers], target_of(boxes))
    return metric


class TestMetric:
    def test_one_box_is_the_refcoco_measure(self) -> None:
        # IoU .5 exactly (a hit: >=), .4, 0 (no answer).
        scores = scored(([[0, 0, 10, 5]], [[0, 0, 10, 10]]), ([[0, 0, 10, 4]], [[0, 0, 10, 10]]), ([], [[0, 0, 10, 10]]))
        assert scores == pytest.approx({"acc@0.5": 1 / 3, "acc@0.75": 0, "miou": 0.3})

    def test_three_quarters_is_reached_with_equality(self) -> None:
        assert scored(([[0, 0, 10, 7.5]], [[0, 0, 10, 10]]))["acc@0.75"] == 1

    def test_several_boxes_are_matched_in_any_order(self) -> None:
        assert scored(([[30, 0, 40, 10], [0, 0, 10, 10]], [[0, 0, 10, 10], [30, 0, 40, 10]])) == {"acc@0.5": 1, "acc@0.75": 1, "miou": 1}

    def test_matching_takes_the_largest_sum_not_the_best_first(self) -> None:
        # IoU of the first answer: .75 and .5; of the second: 4 / 10.5 and 0. Greedy would keep .75 alone.
        answers, boxes = [[0, 0, 10, 10], [6, 0, 13, 10]], [[2.5, 0, 10, 10], [0, 0, 5, 10]]
        assert scored((answers, boxes))["miou"] == pytest.approx((0.5 + 4 / 10.5) / 2)

    def test_a_box_missing_and_a_box_too_many_both_cost(self) -> None:
        one, two = [[0, 0, 10, 10]], [[0, 0, 10, 10], [30, 0, 40, 10]]
        assert scored((one, two)) == scored((two, one)) == pytest.approx({"acc@0.5": 0.5, "acc@0.75": 0.5, "miou": 0.5})

    def test_nothing_there_is_right_only_without_an_answer(self) -> None:
        scores = scored(([], []), ([[0, 0, 5, 5]], []), ([[0, 0, 5, 5]], [[0, 0, 5, 5]]))
        assert scores == pytest.approx({"acc@0.5": 2 / 3, "acc@0.75": 2 / 3, "miou": 2 / 3, "n_acc": 0.5})

    def test_a_reversed_answer_is_wrong(self) -> None:
        assert scored(([[10, 10, 0, 0]], [[0, 0, 10, 10]]))["miou"] == 0

    def test_chance_is_the_mean_box_of_shares(self) -> None:
        # Shares (0,0,.5,1) and (.5,0,1,1): mean (.25,0,.75,1), which overlaps each in .25 of .75.
        metric = metric_of(([], [[0, 0, 32, 48]]), ([], [[32, 0, 64, 48]]))
        assert metric.chance() == pytest.approx({"acc@0.5": 0, "acc@0.75": 0, "miou": 1 / 3})
        same = metric_of(([], [[8, 8, 32, 24]]), ([], [[8, 8, 32, 24]]))
        assert same.chance() == pytest.approx({"acc@0.5": 1, "acc@0.75": 1, "miou": 1})

    def test_chance_scales_with_the_image(self) -> None:
        metric = RegionMetric()
        metric.update([], target_of([[0, 0, 32, 24]]))
        metric.update([], target_of([[0, 0, 500, 100]], size=[1000, 200]))
        assert metric.chance()["miou"] == pytest.approx(1)

    def test_chance_where_nothing_is_there(self) -> None:
        assert metric_of(([], [])).chance() == {"acc@0.5": 1, "acc@0.75": 1, "miou": 1, "n_acc": 1}

    def test_an_empty_metric(self) -> None:
        assert (RegionMetric().compute(), RegionMetric().chance()) == ({}, {})


class TestDraw:
    def board(self, count: int = 1) -> Canvas:
        media = Picture(kind="video", duration=count / 2, times=tuple(i / 2 for i in range(count)))
        return Canvas(media, {i: np.full((48, 64, 3), 90, dtype=np.uint8) for i in range(count)})

    def frames(self, canvas: Canvas) -> list[np.ndarray]:
        board = np.asarray(canvas.picture())
        width, height = 64 * 4, 48 * 4
        return [board[12 : 12 + height, 12 + i * (width + 8) : 12 + i * (width + 8) + width] for i in range(len(canvas.frames))]

    def test_answer_and_annotation_stand_on_the_named_frame(self) -> None:
        canvas = self.board(3)
        draw(canvas, [{"box": [10, 10, 30, 30]}], target_of([[20, 20, 50, 40]], frame=1))
        first, second, third = self.frames(canvas)
        assert (first == 90).all()
        assert (third == 90).all()
        assert tuple(second[100, 80]) == (255, 255, 255)
        assert tuple(second[80, 40]) not in {(90, 90, 90), (255, 255, 255)}

    def test_prediction_without_annotation(self) -> None:
        canvas = self.board()
        draw(canvas, [{"box": [10, 10, 30, 30]}, {"box": [40, 10, 50, 30]}], None)
        assert (self.frames(canvas)[0] != 90).any()

    def test_no_box_is_said(self) -> None:
        canvas = self.board()
        draw(canvas, [], target_of([]))
        assert (self.frames(canvas)[0] == 90).all()
        assert canvas.picture().height > self.board().picture().height
