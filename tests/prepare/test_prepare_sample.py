from __future__ import annotations

import pickle

import pytest
import torch
from tiny import assemble
from toy_data import box, image, mixed_records, moment, record, target, text, video

from tpo_core.errors import BackboneError, DataError
from tpo_core.prepare.chat import ChatReader
from tpo_core.prepare.question import ask, first_question
from tpo_core.router.vocabulary import TaskVocabulary
from tpo_core.testing.backbones import FAMILIES


@pytest.fixture(scope="module")
def assembly(backbones):
    return assemble(backbones["qwen3_vl"])


def prepare(assembly, sample, root):
    return assembly.preparer.training(sample, root=root, seed=(0,))


@pytest.mark.parametrize("family", FAMILIES)
def test_markers_leave_the_ids_of_the_unmarked_rendering(family, backbones, media_root):
    """Taking the markers out gives the ids that the family's own processor gives without them."""
    built = assemble(backbones[family])
    sample = record([image(), text("where is it?")], "Right there.")
    prepared = prepare(built, sample, media_root)
    loaded = built.preparer.load_media(sample, media_root)
    plain = [
        {"role": "user", "content": [*built.preparer.layout.message_parts(loaded.medium[0]), {"type": "text", "text": "where is it?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Right there."}]},
    ]
    unmarked = built.preparer.processor.apply_chat_template(plain, tokenize=False)
    assert prepared.ids == built.preparer.layout.process(unmarked, loaded.medium).ids


def test_only_the_assistant_learns_in_several_turns(assembly, media_root):
    one = record([image(), text("first?")], "yes", id="a")
    two = record([image(), text("second?")], [text("at "), target("t0")], [box()], id="b")
    asked = two.messages[0].model_copy(update={"content": two.messages[0].content[1:]})
    both = one.model_copy(update={"messages": (*one.messages, asked, two.messages[1]), "targets": two.targets})
    prepared = prepare(assembly, both, media_root)
    decoded = assembly.preparer.processor.tokenizer.decode([t for t in prepared.labels if t < assembly.model.vocabulary.rows])
    assert decoded == "yes<|im_end|>at <|im_end|>"
    words = assembly.preparer.processor.tokenizer.decode([prepared.ids[p] for p in prepared.queries[0].words])
    assert words == "second?"


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (record([text("say <|tpo:box|>")], "no"), "token of the model"),
        (record([text("an <|image_pad|> here")], "no"), "token of the model"),
        (record([image(), text("x" * 3000)], "no"), "more than model.max_length = 2048"),
        (record([image("nothing.png"), text("x")], "no"), "nothing.png"),
        (record([image(), text("x")], [target("t0")], [{"id": "t0", "head": "pose", "media": 0}]), "head 'pose'"),
    ],
)
def test_bad_samples_are_one_sentence(assembly, media_root, sample, message):
    with pytest.raises(DataError, match=message.replace("|", r"\|")):
        prepare(assembly, sample, media_root)


def test_preparer_and_collator_travel_between_processes(assembly, media_root):
    preparer, collator = pickle.loads(pickle.dumps((assembly.preparer, assembly.collator())))
    mine = [prepare(assembly, r, media_root) for r in mixed_records()]
    theirs = [preparer.training(r, root=media_root, seed=(0,)) for r in mixed_records()]
    first, second = assembly.collator()(mine), collator(theirs)
    assert torch.equal(first.ids_BL, second.ids_BL)
    assert torch.equal(first.heads["box"].targets["box_4"], second.heads["box"].targets["box_4"])


def test_left_and_right_padding_keep_positions_on_the_same_tokens(assembly, media_root):
    prepared = [prepare(assembly, r, media_root) for r in mixed_records()]
    right, left = assembly.collator("right")(prepared), assembly.collator("left")(prepared)
    for name in ("box", "moment"):
        for field in ("position_NS", "words_NW"):
            one, other = getattr(right.heads[name], field), getattr(left.heads[name], field)
            valid = right.heads[name].words_valid_NW if field == "words_NW" else torch.ones_like(one, dtype=torch.bool)
            assert torch.equal(right.ids_BL.flatten()[one[valid]], left.ids_BL.flatten()[other[valid]])
    assert torch.equal(right.ids_BL.flatten()[right.learn_K], left.ids_BL.flatten()[left.learn_K])
    assert right.mask_BL.sum() == left.mask_BL.sum()


def test_media_are_shared_by_the_queries_on_them(assembly, media_root):
    sample = record(
        [video(), text("two things")], [target("t0"), text(" "), target("t1")], [moment("t0"), moment("t1", [[0.0, 2.0]])], "two"
    )
    batch = assembly.collator()([prepare(assembly, sample, media_root)])
    share = batch.heads["moment"]
    assert share.media_N.tolist() == [0, 0]
    assert share.media_K.tolist() == [0]


def test_a_question_hides_the_answer_and_keeps_the_prompt(media_root, assembly):
    question = first_question(mixed_records()[5])
    assert [m.role for m in question.record.messages] == ["user"]
    assert question.record.targets[0].head == "box"
    assert [t.id for t in question.targets] == ["t0"]
    prepared, _ = assembly.preparer.question(question.record, root=media_root)
    assert len(prepared.prompts) == 1
    assert prepared.learn == []


def test_a_template_that_loses_a_marker_is_refused(assembly):
    import copy

    processor = copy.deepcopy(assembly.model.backbone.processor)
    reader = ChatReader(processor, TaskVocabulary(300, {"box": 1}), frozenset({258}))
    opened = processor.tokenizer.convert_tokens_to_ids("<|tpo:answer|>")
    with pytest.raises(BackboneError, match="dropped a marker"):
        reader.read([1, opened, 2], {})
    with pytest.raises(BackboneError, match="doubled or reordered"):
        reader.read([opened, 2, opened], {})


def test_ask_builds_history_and_prompts(assembly, media_root):
    asked = ask((mixed_records()[0].media_parts()[0],), "and this?", history=mixed_records()[2].messages)
    prepared, loaded = assembly.preparer.question(asked, root=media_root)
    assert len(loaded.media) == 1
    words = assembly.preparer.processor.tokenizer.decode([prepared.ids[p] for p in prepared.words])
    assert words == "and this?"
