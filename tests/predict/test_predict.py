from __future__ import annotations

import dataclasses

import pytest
import torch
from tiny import assemble
from toy_data import mixed_records

from tpo_core.data.records import Part
from tpo_core.model import GenerationOptions
from tpo_core.model.generation import EmittedQuery, GeneratedRow
from tpo_core.predict import Predictor
from tpo_core.predict.pictures import draw_picture
from tpo_core.prepare.question import ask, first_question
from tpo_core.types import Chunk


@pytest.fixture
def predictor(backbones):
    assembly = assemble(backbones["qwen3_vl"], slots=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name in assembly.model.vocabulary.names:
            row = assembly.model.tokens.outputs[name]
            row.copy_(torch.randn(row.shape, generator=generator) * 1.2)
    return Predictor(assembly)


def test_predictions_hold_words_and_answers_in_their_places(predictor, media_root):
    questions = [first_question(r).record for r in mixed_records()[:6]]
    out = predictor.predict(questions, root=media_root, options=GenerationOptions(max_new_tokens=40, temperature=1.0, seed=1))
    assert any(p.heads for p in out)
    for prediction in out:
        for answer in prediction.heads:
            assert f"[{answer.head}: {answer.text}]" in prediction.text
        assert "<|tpo" not in prediction.text


def test_a_group_of_tokens_in_a_row_is_one_answer(predictor):
    from tpo_core.predict.predictor import _groups

    state = torch.zeros(1, 4)
    row = GeneratedRow(
        [],
        [EmittedQuery("box", 0, state), EmittedQuery("box", 2, state), EmittedQuery("moment", 4, state), EmittedQuery("box", 9, state)],
        state,
    )
    assert [[q.position for q in g] for g in _groups(row, {"box": 1, "moment": 1})] == [[0, 2], [4], [9]]


def test_heads_read_the_medium_that_they_work_on(predictor, media_root):
    predictor.assembly.codecs["moment"].__class__ = type(
        "VideoOnly", (type(predictor.assembly.codecs["moment"]),), {"kinds": frozenset({"video"})}
    )
    parts = (Part(type="video", path="clip.mp4"), Part(type="image", path="red.png"))
    asked = ask(parts, "x")
    _, loaded = predictor.assembly.preparer.question(asked, root=media_root)
    assert predictor._medium_of("moment", loaded) == 0
    assert predictor._medium_of("box", loaded) == 1
    only = dataclasses.replace(loaded, media=loaded.media[1:])
    assert predictor._able(only) == {"box"}


def test_a_head_without_a_medium_cannot_be_called(predictor, media_root):
    """The chat row of a batch never calls a head, however likely its start token is; its neighbours do."""
    questions = [first_question(mixed_records()[i]).record for i in (0, 2)]
    out = predictor.predict(questions, root=media_root, options=GenerationOptions(max_new_tokens=40, temperature=1.0, seed=1))
    assert out[0].heads
    assert out[1].heads == ()


def test_chunks_with_frames_are_encoded_like_the_language_models_own(predictor, media_root):
    """Features of a chunk of the same frames equal the rows that the language model read."""
    record = first_question(mixed_records()[1]).record
    prepared, loaded = predictor.assembly.preparer.question(record, root=media_root)
    batch = predictor.assembly.collator("left")([prepared])
    from tpo_core.backbone import merged_rows
    from tpo_core.model import gather_features

    predictor.model.eval()
    with torch.no_grad():
        rows = merged_rows(predictor.model.backbone.encode(batch.visual.tensors))
        expected = gather_features(rows, batch.visual, torch.tensor([0]))
        found = predictor.encode_frames(loaded.media[0], loaded.indices[0])
    torch.testing.assert_close(found.frames_MTPV, expected.frames_MTPV)
    torch.testing.assert_close(found.time_MT2, expected.time_MT2)


def test_a_head_that_streams_merges_its_chunks(predictor, media_root):
    codec = predictor.assembly.codecs["moment"]

    def chunks(clip):
        yield Chunk({}, frame_indices=(0, 1))
        yield Chunk({}, frame_indices=(2, 3, 4, 5))

    codec.chunks = chunks
    codec.merge = lambda answers, clip: {"scores": [s for a in answers for s in a["scores"]]}
    record = first_question(mixed_records()[1]).record
    out = predictor.predict([record], root=media_root, options=GenerationOptions(max_new_tokens=30, temperature=1.0, seed=1))
    moments = out[0].of("moment")
    assert moments
    # Qwen merges two frames per step: one step, then two.
    assert len(moments[0].answers[0]["scores"]) == 3


def test_pictures_of_what_was_answered(predictor, media_root, tmp_path):
    record = first_question(mixed_records()[1]).record
    (prediction,) = predictor.predict([record], root=media_root, options=GenerationOptions(max_new_tokens=30, temperature=1.0, seed=1))
    _, loaded = predictor.assembly.preparer.question(record, root=media_root)
    canvases = draw_picture(loaded.media, prediction, predictor.assembly.heads, title="when?")
    picture = canvases[0].picture(title="when?")
    assert picture.width > 300
    assert len(canvases[0].frames) == 6


def test_questions_without_media_are_answered(predictor, media_root):
    (prediction,) = predictor.predict([ask((), "hello")], root=media_root, options=GenerationOptions(max_new_tokens=5, heads=frozenset()))
    assert prediction.heads == ()
