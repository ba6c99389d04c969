"""The head on made-up queries: what enters, what it must not depend on, what it costs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tpo_core.errors import CheckpointError
from tpo_core.stack import stack_rows
from tpo_core.types import FrameFeatures, Queries, Tensors, Widths
from tpo_heads.temporal import matching
from tpo_heads.temporal.config import TemporalConfig
from tpo_heads.temporal.head import TemporalHead
from tpo_heads.temporal.network import CGDETR
from tpo_heads.temporal.pooling import QueryPooling, deviation
from tpo_heads.temporal.published import convert, rules

D, V, T, P = 16, 12, 6, 5
SMALL: dict[str, Any] = {"hidden": 16, "attention_heads": 2, "inner_width": 16, "dummies": 3, "decoder_layers": 2, "encoder_layers": 1}


def build(**options: Any) -> TemporalHead:
    torch.manual_seed(0)
    return TemporalHead(TemporalConfig(**{**SMALL, **options}), Widths(hidden=D, features=V, words=D))


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def ask(media: list[int], *, videos: list[int], slots: int = 1, duration: float = 12.0) -> Queries:
    """Queries on clips of T frames; two words each."""
    count, clips = len(media), len(videos)
    start = torch.arange(T) * duration / T
    time = torch.stack((start, start + 0.1), -1).expand(clips, T, 2)
    features = FrameFeatures(noise(clips, T, P, V, seed=1), torch.ones(clips, T, P, dtype=torch.bool), time, torch.tensor([[1, P]] * clips))
    inputs = {"window": torch.tensor([[0.0, duration]] * clips), "video": torch.tensor(videos)}
    words, valid = noise(count, 2, D, seed=2), torch.ones(count, 2, dtype=torch.bool)
    return Queries(noise(count, slots, D, seed=3), torch.tensor(media), words, valid, features, inputs)


def aim(spans: list[list[list[float]]], duration: float = 12.0) -> Tensors:
    rows = [
        {
            "spans": torch.tensor(span).reshape(-1, 2),
            "duration": torch.tensor(duration),
            "saliency": torch.zeros(0),
            "clip_seconds": torch.tensor(0.0),
            "draws": torch.full((4,), 0.3),
        }
        for span in spans
    ]
    return stack_rows(rows, frozenset({"spans", "saliency"}))


def test_the_order_of_the_words_is_no_matter_so_the_embedding_may_stand_at_the_end() -> None:
    head, queries = build().eval(), ask([0, 1], videos=[1, 2])
    swapped = replace(queries, words_NWD=queries.words_NWD.flip(1))
    torch.testing.assert_close(head(queries)["spans"], head(swapped)["spans"], rtol=1e-4, atol=1e-5)


def test_padded_words_and_padded_steps_change_nothing() -> None:
    head, queries = build().eval(), ask([0, 1], videos=[1, 2])
    features = queries.features
    assert features is not None
    more = FrameFeatures(
        torch.cat((features.frames_MTPV, noise(2, 3, P, V, seed=9)), 1),
        torch.cat((features.valid_MTP, torch.zeros(2, 3, P, dtype=torch.bool)), 1),
        torch.cat((features.time_MT2, torch.full((2, 3, 2), 99.0)), 1),
        features.grid_M2,
    )
    wide = replace(
        queries,
        words_NWD=torch.cat((queries.words_NWD, noise(2, 4, D, seed=8)), 1),
        words_valid_NW=torch.cat((queries.words_valid_NW, torch.zeros(2, 4, dtype=torch.bool)), 1),
        features=more,
    )
    plain, padded = head(queries), head(wide)
    for name in ("spans", "logits", "origin", "length"):
        torch.testing.assert_close(plain[name], padded[name], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(plain["saliency"], padded["saliency"][:, :T], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("slots", [1, 3])
def test_every_slot_is_a_word_and_learns(slots: int) -> None:
    head, queries = build(slots=slots), ask([0, 1], videos=[1, 2], slots=slots)
    states = queries.states_NSD.requires_grad_()
    head(queries)["spans"].sum().backward()
    assert states.grad is not None
    assert states.grad.abs().sum((0, 2)).gt(0).all()


def test_a_question_without_words_is_answered_from_the_embedding_alone() -> None:
    queries = ask([0], videos=[1])
    bare = replace(queries, words_NWD=queries.words_NWD[:, :0], words_valid_NW=queries.words_valid_NW[:, :0])
    assert torch.isfinite(build().eval()(bare)["spans"]).all()


def test_frames_are_pooled_by_what_is_asked() -> None:
    queries = ask([0, 0], videos=[1])
    assert queries.features is not None
    by_query = build(pooling="query").pool
    by_mean = build(pooling="mean").pool
    assert by_query is not None
    assert by_mean is not None
    question = (queries.states_NSD.mean(1), queries.words_NWD, queries.words_valid_NW)
    asked = by_query(queries.features, queries.media_N, *question)
    assert not torch.allclose(asked[0], asked[1], atol=1e-3)
    plain = by_mean(queries.features, queries.media_N, *question)
    torch.testing.assert_close(plain[0], queries.features.frames_MTPV[0].mean(1))
    torch.testing.assert_close(plain[0], plain[1])


def test_what_to_look_for_is_read_off_the_words_and_off_the_embedding_only_where_there_are_none() -> None:
    queries = ask([0, 0], videos=[1])
    pool = build(pooling="query").pool
    assert isinstance(pool, QueryPooling)
    states, words, seen = queries.states_NSD.mean(1), queries.words_NWD, queries.words_valid_NW
    wanted = pool._query(states, words, seen)
    assert torch.equal(pool._query(states + 1, words, seen), wanted)
    assert not torch.allclose(pool._query(states, words.flip(0), seen), wanted)
    # A word that is padding says nothing, however loud.
    padded = torch.cat((words, 99 * torch.ones_like(words)), 1), torch.cat((seen, torch.zeros_like(seen)), 1)
    torch.testing.assert_close(pool._query(states, *padded), wanted)
    mute = torch.zeros_like(seen)
    torch.testing.assert_close(pool._query(states, words, mute), pool._query(states, states[:, None], mute[:, :1] | True))


def test_deviation_by_hand() -> None:
    values = torch.tensor([[[1.0], [1.0], [4.0], [99.0]], [[2.0], [2.0], [2.0], [2.0]]])
    valid = torch.tensor([[True, True, True, False], [True] * 4])
    # The mean of 1, 1, 4 is 2; the mean square of -1, -1, 2 is 2.
    expected = torch.tensor([[[-1.0], [-1.0], [2.0], [0.0]], [[0.0]] * 4]) / 2**0.5
    torch.testing.assert_close(deviation(values, valid), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("videos", [[1, 2], [1, 1]])
def test_training_without_another_video_in_the_batch_is_finite(videos: list[int]) -> None:
    head = build()
    for media in ([0], [0, 1], [1, 1]):
        queries, targets = ask(media, videos=videos), aim([[[1.0, 5.0]]] * len(media))
        losses = head.loss(head(queries, targets), targets)
        assert all(bool(torch.isfinite(loss).all()) for loss in losses.values())
        lonely = len({videos[m] for m in media}) < 2
        assert (float(losses["saliency_negative"].sum().detach()) == 0) == lonely


def test_every_parameter_learns_in_one_step() -> None:
    head = build()
    queries, targets = ask([0, 1, 1], videos=[1, 2]), aim([[[1.0, 5.0], [7.0, 9.0]], [], [[0.0, 12.0]]])
    losses = head.loss(head(queries, targets), targets)
    torch.stack([loss.sum() for loss in losses.values()]).sum().backward()
    assert [name for name, parameter in head.named_parameters() if parameter.grad is None] == []


def test_costs_cross_to_the_cpu_once_for_all_layers_and_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    crossings = 0
    original = torch.Tensor.cpu

    def counted(self: Tensor) -> Tensor:
        nonlocal crossings
        crossings += 1
        return original(self)

    head = build()
    queries, targets = ask([0, 1, 1], videos=[1, 2]), aim([[[1.0, 5.0]]] * 3)
    output = head(queries, targets)
    monkeypatch.setattr(torch.Tensor, "cpu", counted)
    head.loss(output, targets)
    assert crossings == 1
    assert matching.match.__name__ == "match"


def test_the_decoder_sees_the_right_questions_only(monkeypatch: pytest.MonkeyPatch) -> None:
    head = build()
    rows: list[int] = []
    head.network.decoder.register_forward_hook(lambda module, given, output: rows.append(given[0].shape[0]))
    layers: list[int] = []
    head.network.encoder[0].register_forward_hook(lambda module, given, output: layers.append(given[0].shape[0]))
    head(ask([0, 1], videos=[1, 2]), aim([[[1.0, 5.0]]] * 2))
    assert rows == [2]
    assert layers == [4]


def test_spans_scores_and_losses_stay_in_float32_under_bf16() -> None:
    head, queries, targets = build(), ask([0, 1], videos=[1, 2]), aim([[[1.0, 5.0]]] * 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = head(queries, targets)
        losses = head.loss(output, targets)
    for name in ("spans", "logits", "lower_spans", "saliency", "attention", "origin", "length", "steps"):
        assert output[name].dtype == torch.float32, name
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    assert all(bool(torch.isfinite(loss).all()) for loss in losses.values())


def test_the_same_length_normalises_and_decodes_whatever_the_duration() -> None:
    for duration in (0.3, 7.3, 151.0):
        output = build().eval()(ask([0], videos=[1], duration=duration))
        assert float(output["origin"]) == 0
        assert float(output["length"]) == pytest.approx(duration)
        assert float(output["steps"][0, -1, 1]) == pytest.approx(duration)


def test_the_plain_mlp_reads_the_embedding_alone() -> None:
    head, queries = build(kind="mlp").eval(), ask([0, 1], videos=[1, 2])
    output = head(replace(queries, features=None))
    assert output["spans"].shape == (2, 1, 2)
    targets = aim([[[1.0, 5.0], [7.0, 8.0]], []])
    losses = head.loss(head(queries, targets), targets)
    assert losses.keys() == {"span", "giou", "label"}
    assert float(losses["span"][1].detach()) == 0


def test_a_backbone_without_features_is_told() -> None:
    with pytest.raises(ValueError, match="got no frame features; use source: files"):
        build()(replace(ask([0], videos=[1]), features=None))


def test_published_weights_are_converted_with_a_prefix_and_refused_where_they_do_not_fit() -> None:
    config = TemporalConfig(**SMALL)
    network = CGDETR(config, clip_width=V, text_width=D)
    published: Tensors = {}
    for rule in rules(config):
        for name, piece in rule.split(network.state_dict()[rule.ours]).items():
            # A bias that is a sum of two is one of them and zero.
            published[f"cg_model.{name}"] = piece.clone() if f"cg_model.{name}" not in published else piece
    state = convert(published, config, prefix="cg_model.")
    assert state.keys() == network.state_dict().keys()
    torch.testing.assert_close(state["encoder.0.qkv.weight"], network.state_dict()["encoder.0.qkv.weight"])
    name = "decoder.layers.1.among.query_key.weight"
    torch.testing.assert_close(state[name], network.state_dict()[name])
    with pytest.raises(CheckpointError, match=r"missing \['class_embed.bias'"):
        convert(published, config)
    with pytest.raises(CheckpointError, match=r"unknown \['surplus.weight'\] \(1\)"):
        convert({**published, "cg_model.surplus.weight": torch.zeros(1)}, config, prefix="cg_model.")
    deeper = TemporalConfig(**{**SMALL, "encoder_layers": 2})
    with pytest.raises(CheckpointError, match=r"transformer\.encoder\.layers\.1"):
        convert(published, deeper, prefix="cg_model.")
