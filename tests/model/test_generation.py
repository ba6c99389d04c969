from __future__ import annotations

import dataclasses

import pytest
import torch
from tiny import assemble
from toy_data import box, image, mixed_records, record, target, text

from tpo_core.errors import TPOError
from tpo_core.model import GenerationOptions, generate
from tpo_core.model.generation import _teacher_forced
from tpo_core.prepare.question import ask, first_question
from tpo_core.router.forcing import TaskTokenForcing
from tpo_core.testing.backbones import FAMILIES


def questions(assembly, root, records):
    prepared = [assembly.preparer.question(first_question(r).record, root=root)[0] for r in records]
    return assembly.collator("left")(prepared)


def eager_to_call(assembly, seed):
    """Make start tokens likely, so that rows emit several heads at different steps."""
    model = assembly.model.eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name in model.vocabulary.names:
            row = model.tokens.outputs[name]
            row.copy_(torch.randn(row.shape, generator=generator) * 1.2)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_cached_states_equal_a_teacher_forced_forward_in_left_padded_batches(family, backbones, media_root):
    assembly = assemble(backbones[family])
    model = eager_to_call(assembly, 2)
    batch = questions(assembly, media_root, mixed_records()[:6])
    assert batch.mask_BL[:, 0].min() == 0
    out = generate(model, batch, GenerationOptions(max_new_tokens=60, temperature=1.0, seed=1))
    emitted = [query for row in out.rows for query in row.queries]
    assert len({q.position for q in emitted}) > 1
    assert {q.head for q in emitted} == {"box", "moment"}
    length = batch.ids_BL.shape[1]
    longest = max(len(row.ids) for row in out.rows)
    new = torch.tensor([row.ids + [model.pad_id] * (longest - len(row.ids)) for row in out.rows])
    vision = model.backbone.encode(batch.visual.tensors)
    with torch.no_grad():
        hidden = _teacher_forced(model, batch, vision, torch.cat([batch.ids_BL, new], 1), model.table(batch))
    for i, row in enumerate(out.rows):
        for query in row.queries:
            first = length + query.position + 1
            expected = hidden[i, first : first + query.states_SD.shape[0]]
            torch.testing.assert_close(query.states_SD, expected, rtol=1e-4, atol=2e-5)
        flat = hidden[i][batch.words_BW[i][batch.words_valid_BW[i]] - i * length]
        torch.testing.assert_close(row.words_WD, flat, rtol=1e-4, atol=2e-5)


def test_a_batch_answers_as_its_rows_alone(backbones, media_root):
    assembly = assemble(backbones["qwen3_vl"])
    model = eager_to_call(assembly, 0)
    records = mixed_records()[:6]
    together = generate(model, questions(assembly, media_root, records), GenerationOptions(max_new_tokens=16))
    for record_, row in zip(records, together.rows, strict=True):
        (alone,) = generate(model, questions(assembly, media_root, [record_]), GenerationOptions(max_new_tokens=16)).rows
        assert alone.ids == row.ids
        for one, other in zip(alone.queries, row.queries, strict=True):
            torch.testing.assert_close(one.states_SD, other.states_SD, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("budget", [1, 2, 3, 4, 5, 9])
def test_a_start_token_at_the_end_of_the_budget_cannot_leave_a_slot_unread(budget, backbones, media_root):
    assembly = assemble(backbones["llava_onevision"], slots=2)
    model = assembly.model.eval()
    batch = questions(assembly, media_root, mixed_records()[:3])
    out = generate(model, batch, GenerationOptions(max_new_tokens=budget, temperature=1.0, seed=5))
    with torch.no_grad():
        # A state of the prompt's end as output row: its start logit dominates wherever it is allowed.
        state = torch.stack([row.words_WD.mean(0) for row in out.rows]).mean(0)
        model.tokens.outputs["box"].copy_(state * 20)
    out = generate(model, batch, GenerationOptions(max_new_tokens=budget, temperature=1.0, seed=5))
    starts = model.vocabulary.start_id("box")
    seen = sum(row.ids.count(starts) for row in out.rows)
    assert seen == sum(len(row.queries) for row in out.rows)
    assert (seen > 0) == (budget >= 4)
    for row in out.rows:
        assert len(row.ids) <= budget
        for query in row.queries:
            assert row.ids[query.position + 1 : query.position + 3] == list(model.vocabulary.slot_ids("box"))


def test_forcing_is_stateless_and_bans_what_does_not_fit():
    from tpo_core.router.vocabulary import TaskVocabulary

    vocabulary = TaskVocabulary(10, {"a": 1, "b": 3})
    forcing = TaskTokenForcing(vocabulary, prompt_length=2, budget=5)
    scores = torch.zeros(3, 16)
    ids = torch.tensor([[1, 2], [1, vocabulary.start_id("b")], [1, vocabulary.slot_ids("b")[2]]])
    out = forcing(ids, scores)
    assert out[1].argmax() == vocabulary.slot_ids("b")[0]
    assert torch.isinf(out[1]).sum() == 15
    assert torch.isfinite(out[0]).sum() == 16
    assert torch.isfinite(out[2]).sum() == 16
    late = forcing(torch.cat([ids, ids[:, :1]], 1), scores)
    assert torch.isinf(late[0, vocabulary.start_id("b")])
    assert torch.isfinite(late[0, vocabulary.start_id("a")])
    only = TaskTokenForcing(vocabulary, prompt_length=2, budget=50, allowed=[frozenset({"a"}), frozenset(), frozenset({"b"})])(ids, scores)
    assert torch.isinf(only[0, vocabulary.start_id("b")])
    assert torch.isfinite(only[0, vocabulary.start_id("a")])
    assert torch.isinf(only[2, vocabulary.start_id("a")])


def test_a_bias_moves_start_tokens_alone_and_slots_stay_forced():
    from tpo_core.router.vocabulary import TaskVocabulary

    vocabulary = TaskVocabulary(10, {"a": 1, "b": 3})
    ids = torch.tensor([[1, 2], [1, vocabulary.start_id("b")]])
    scores = torch.randn(2, 16)
    plain = TaskTokenForcing(vocabulary, prompt_length=2, budget=50)(ids, scores)
    biased = TaskTokenForcing(vocabulary, prompt_length=2, budget=50, start_bias=-1.5)(ids, scores)
    expected = plain[0].clone()
    expected[[vocabulary.start_id("a"), vocabulary.start_id("b")]] -= 1.5
    torch.testing.assert_close(biased[0], expected)
    torch.testing.assert_close(biased[1], plain[1])


def test_heads_are_called_as_the_bias_says(backbones, media_root):
    """The model's own bias counts unless one is given; training does not know it."""
    assembly = assemble(backbones["qwen3_vl"])
    model = eager_to_call(assembly, 2)
    records = mixed_records()[:4]
    batch = questions(assembly, media_root, records)

    def calls(**options):
        rows = generate(model, batch, GenerationOptions(max_new_tokens=12, temperature=1.0, seed=1, **options)).rows
        return sum(len(row.queries) for row in rows)

    free = calls()
    assert free > 0
    assert calls(start_bias=-1000.0) == 0
    prepared = [assembly.preparer.training(r, root=media_root, seed=(i,)) for i, r in enumerate(records)]
    learnt = assembly.collator("right")(prepared)
    before = model(learnt, learnt.counts).loss
    model.start_bias = -1000.0
    assert calls() == 0
    assert calls(start_bias=0.0) == free
    torch.testing.assert_close(model(learnt, learnt.counts).loss, before, rtol=0, atol=0)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_bias_that_is_no_number_is_refused(wrong):
    with pytest.raises(TPOError, match="expected a finite number"):
        GenerationOptions(start_bias=wrong)


@pytest.mark.parametrize("family", ["qwen3_vl", "llava_onevision", "idefics3"])
def test_beam_search_reads_the_chosen_text_by_a_second_forward(family, backbones, media_root):
    assembly = assemble(backbones[family])
    model = eager_to_call(assembly, 3)
    batch = questions(assembly, media_root, mixed_records()[:4])
    out = generate(model, batch, GenerationOptions(max_new_tokens=12, num_beams=3))
    emitted = [q for row in out.rows for q in row.queries]
    assert emitted
    length = batch.ids_BL.shape[1]
    for i, row in enumerate(out.rows):
        if not row.queries:
            continue
        (alone,) = [questions(assembly, media_root, [mixed_records()[i]])]
        vision = model.backbone.encode(alone.visual.tensors) if alone.visual is not None else None
        sequence = torch.cat([alone.ids_BL, torch.tensor([row.ids])], 1)
        with torch.no_grad():
            hidden = _teacher_forced(model, alone, vision, sequence, model.table(alone))
        for query in row.queries:
            first = alone.ids_BL.shape[1] + query.position + 1
            torch.testing.assert_close(query.states_SD, hidden[0, first : first + query.states_SD.shape[0]], rtol=1e-4, atol=2e-5)
    assert length == batch.ids_BL.shape[1]


def test_slots_in_the_history_are_filled_and_not_answered_again(backbones, media_root):
    assembly = assemble(backbones["qwen3_vl"])
    one = record([image(), text("where?")], [target("t0")], [box()])
    follow = ask((), "and what is it?", history=one.messages)
    follow = follow.model_copy(update={"targets": one.targets})
    prepared, _ = assembly.preparer.question(follow, root=media_root)
    vocabulary = assembly.model.vocabulary
    assert prepared.ids.count(vocabulary.start_id("box")) == 1
    assert all(prepared.ids.count(token) == 1 for token in vocabulary.slot_ids("box"))
    out = generate(assembly.model.eval(), assembly.collator("left")([prepared]), GenerationOptions(max_new_tokens=3, heads=frozenset()))
    assert out.rows[0].queries == []


def test_padded_rows_of_the_vocabulary_are_never_generated(backbones, media_root):
    assembly = assemble(backbones["qwen3_vl"])
    model = assembly.model.eval()
    with torch.no_grad():
        model.backbone.output.weight[model.known_ids :] *= 1000
    batch = questions(assembly, media_root, mixed_records()[:2])
    out = generate(model, batch, GenerationOptions(max_new_tokens=8, temperature=2.0))
    tokens = [t for row in out.rows for t in row.ids]
    assert all(t < model.known_ids or t >= model.vocabulary.rows for t in tokens)


def test_global_random_state_is_untouched(backbones, media_root):
    assembly = assemble(backbones["qwen3_vl"])
    batch = questions(assembly, media_root, mixed_records()[:1])
    torch.manual_seed(7)
    before = torch.get_rng_state()
    generate(assembly.model.eval(), batch, GenerationOptions(max_new_tokens=4, temperature=1.0))
    assert torch.equal(before, torch.get_rng_state())


def test_question_batches_do_not_carry_stale_positions(backbones, media_root):
    """A text-only question after a video question gives the same text as in a fresh model (M-RoPE keeps deltas)."""
    used, fresh = assemble(backbones["qwen3_vl"]), assemble(backbones["qwen3_vl"])
    fresh.model.load_state_dict(used.model.state_dict())
    generate(used.model.eval(), questions(used, media_root, mixed_records()[1:2]), GenerationOptions(max_new_tokens=4))
    chat = questions(used, media_root, mixed_records()[2:3])
    first = generate(used.model, chat, GenerationOptions(max_new_tokens=12))
    second = generate(fresh.model.eval(), dataclasses.replace(chat), GenerationOptions(max_new_tokens=12))
    assert first.rows[0].ids == second.rows[0].ids
