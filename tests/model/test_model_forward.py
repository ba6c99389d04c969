from __future__ import annotations

import dataclasses

import pytest
import torch
from tiny import assemble, gradients
from toy_data import box, image, mixed_records, moment, record, target, text, video

from tpo_core.backbone import LoraOptions, load_backbone
from tpo_core.model.losses import no_start_loss, token_loss
from tpo_core.testing.backbones import FAMILIES


def batch_of(assembly, records, root, side="right"):
    prepared = [assembly.preparer.training(r, root=root, seed=(i,)) for i, r in enumerate(records)]
    return assembly.collator(side)(prepared)


@pytest.mark.parametrize("family", FAMILIES)
def test_three_layouts_train_with_mixed_batches(family, backbones, media_root):
    assembly = assemble(backbones[family])
    batch = batch_of(assembly, mixed_records(), media_root)
    assert batch.counts["assign"] == 7
    assert len(batch.heads["box"]) == 5
    assert len(batch.heads["moment"]) == 2
    out = assembly.model.train()(batch, batch.counts)
    out.loss.backward()
    assert torch.isfinite(out.loss)
    for group in ("lora", "tokens.box", "tokens.moment", "heads.box", "heads.moment"):
        for name, parameter in assembly.model.groups()[group].items():
            assert parameter.grad is not None, name
    slots = assembly.model.tokens.inputs["box"].grad
    assert slots.abs().sum(1).min() > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_vision_runs_once_for_language_model_and_heads(family, backbones, media_root, monkeypatch):
    assembly = assemble(backbones[family])
    batch = batch_of(assembly, mixed_records(), media_root)
    calls = {"image": 0, "video": 0}
    model = assembly.model.backbone.model
    tower_calls = []
    model.get_encoder(modality="image").register_forward_hook(lambda *a: tower_calls.append(1))
    for modality in calls:
        original = getattr(model, f"get_{modality}_features", None)
        if original is None:
            continue

        def counted(*a, _m=modality, _o=original, **k):
            calls[_m] += 1
            return _o(*a, **k)

        counted.__signature__ = __import__("inspect").signature(original)
        monkeypatch.setattr(model, f"get_{modality}_features", counted)
    assembly.model(batch, batch.counts)
    if family == "idefics3":
        assert calls["image"] == 1
    else:
        # Two clip lengths are two shapes for llava_onevision; the Qwen towers take both in one call.
        lengths = {
            len(r.rows_TP) for s in mixed_records() for r in assembly.preparer.training(s, root=media_root, seed=(0,)).rows if r.video
        }
        assert calls["image"] == 1
        assert calls["video"] == (len(lengths) if family == "llava_onevision" else 1)
    assert len(tower_calls) == sum(calls.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_the_rows_that_the_language_model_reads(family, backbones, media_root):
    """The rows given to heads equal the merged embeddings at the medium's own vision tokens."""
    assembly = assemble(backbones[family])
    batch = batch_of(assembly, mixed_records(), media_root)
    seen = {}
    model = assembly.model
    original = type(model).queries

    def spy(self, name, share, visual, hidden, rows):
        out = original(self, name, share, visual, hidden, rows)
        seen.setdefault("rows", rows)
        seen[name] = out
        return out

    def keep(module, args, kwargs):
        seen.setdefault("embeds", kwargs["inputs_embeds"])

    model.backbone.decoder.register_forward_pre_hook(keep, with_kwargs=True)
    type(model).queries = spy
    try:
        model(batch, batch.counts)
    finally:
        type(model).queries = original
    flat = seen["embeds"].flatten(0, 1)
    merged = torch.cat([flat[index] for key in ("image", "video") if (index := batch.visual.positions.get(key)) is not None])
    torch.testing.assert_close(seen["rows"], merged)
    features = seen["moment"].features
    assert features.frames_MTPV.shape[0] == 2
    steps = features.valid_MTP.any(-1).sum(1).tolist()
    merged_frames = 2 if family.startswith("qwen") else 1
    assert steps == [-(-6 // merged_frames), -(-6 // merged_frames)]
    assert features.time_MT2[0, 0, 0] == 0
    assert features.time_MT2[0, steps[0] - 1, 1] == pytest.approx(3.0)


def test_families_without_encoder_outputs_gather_the_same_rows(backbones, media_root):
    """The merged layout reads vision rows out of the model's own embeddings; losses are the same."""
    first = assemble(backbones["idefics3"])
    batch = batch_of(first, mixed_records(), media_root)
    reference = first.model(batch, batch.counts)
    from tpo_core.backbone.layout import MergedLayout

    layout = first.model.backbone.layout
    first.model.backbone.layout = type("Merged", (MergedLayout,), {})(layout.processor, first.model.backbone.model.config)
    merged = first.model(batch, batch.counts)
    torch.testing.assert_close(merged.loss, reference.loss)
    torch.testing.assert_close(merged.metrics["moment/frames"], reference.metrics["moment/frames"])


def test_nothing_of_the_backbone_is_resized_and_hooks_are_silent_outside(backbones, media_root):
    plain = load_backbone(backbones["qwen3_vl"])
    assembly = assemble(backbones["qwen3_vl"], lora=False)
    model = assembly.model.backbone.model
    assert model.get_input_embeddings().weight.shape == plain.model.get_input_embeddings().weight.shape
    ids = torch.randint(0, 200, (2, 9))
    torch.testing.assert_close(model(input_ids=ids).logits, plain.model(input_ids=ids).logits, rtol=0, atol=0)
    assert len(plain.processor.tokenizer) == len(assembly.model.backbone.processor.tokenizer)


def test_kept_rows_give_the_loss_of_full_logits(backbones, media_root):
    """Cross-entropy over cut rows and separate start logits = cross-entropy over the concatenated full logits."""
    assembly = assemble(backbones["qwen2_5_vl"])
    model = assembly.model.eval()
    batch = batch_of(assembly, mixed_records(), media_root)
    out = model(batch, {**batch.counts, "lm": 1.0, "assign": 1.0})
    whole = dataclasses.replace(batch, learn_K=torch.arange(batch.ids_BL.numel()))
    from tpo_core.router.injection import Pass

    current = Pass(model.table(batch), model.tokens.start_rows(), keep_K=whole.learn_K)
    with model.hooks.active(current):
        logits = model._language(batch, model._encode(batch.visual))
    full = torch.cat([logits, current.starts_KH], dim=-1)[batch.learn_K]
    losses = torch.nn.functional.cross_entropy(full, batch.label_K, reduction="none")
    torch.testing.assert_close(out.metrics["lm"], losses[~batch.start_K].sum())
    torch.testing.assert_close(out.metrics["assign"], losses[batch.start_K].sum())


def test_no_start_loss_by_hand():
    logits, starts = torch.tensor([[0.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    assert no_start_loss(logits, starts).item() == pytest.approx(-torch.log(torch.tensor(3 / 5)).item())


def test_answers_in_words_count_in_assign_if_asked(backbones, media_root):
    """Every answer counts as much as any other: a start token by its own chance, words by the chance of no start token."""
    plain = assemble(backbones["qwen3_vl"])
    every = assemble(backbones["qwen3_vl"], assign_every_answer=True)
    records = mixed_records()
    batch, both = batch_of(plain, records, media_root), batch_of(every, records, media_root)
    # "Here: <box>", "Hello to you.", and the cat that is not there, which is said in words.
    in_words = ["one-box", "chat", "absent"]
    assert batch.open_K is None
    assert int(both.open_K.sum()) == len(in_words)
    assert both.counts["assign"] == batch.counts["assign"] + len(in_words)
    assert both.counts["lm"] == batch.counts["lm"]
    ones = dict.fromkeys(plain.model.terms(), 1.0)
    seen = {}
    original = type(every.model)._language_loss

    def spy(self, batch, logits, starts, denominators):
        seen.update(logits=logits, starts=starts)
        return original(self, batch, logits, starts, denominators)

    every.model._language_loss = spy.__get__(every.model)
    one, other = plain.model.eval()(batch, ones).metrics, every.model.eval()(both, ones).metrics
    chance = torch.cat([seen["logits"], seen["starts"]], 1).softmax(-1)[both.open_K]
    expected = -torch.log(1 - chance[:, seen["logits"].shape[1] :].sum(1)).sum()
    assert other["assign"] - one["assign"] == pytest.approx(expected.item(), abs=1e-5)
    assert other["lm"] == one["lm"]


def test_token_loss_by_hand():
    logits = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    starts = torch.tensor([[3.0], [1.0]])
    loss = token_loss(logits, starts, torch.tensor([1, 8]), rows=8)
    e = torch.exp
    first = -torch.log(e(torch.tensor(2.0)) / (e(torch.tensor(1.0)) + e(torch.tensor(2.0)) + e(torch.tensor(3.0))))
    second = -torch.log(e(torch.tensor(1.0)) / (1 + 1 + e(torch.tensor(1.0))))
    torch.testing.assert_close(loss, torch.stack([first, second]))


def test_one_batch_equals_micro_batches_on_gradients(backbones, media_root):
    """Denominators first: 1 batch of all samples = micro-batches of unequal content with the summed counts."""
    records = mixed_records() * 2
    whole, parts = assemble(backbones["qwen3_vl"]), assemble(backbones["qwen3_vl"])
    parts.model.load_state_dict(whole.model.state_dict())
    batch = batch_of(whole, records, media_root)
    whole.model(batch, batch.counts).loss.backward()
    micro = [batch_of(parts, records[i : i + 3], media_root) for i in range(0, len(records), 3)]
    counts = {key: sum(m.counts[key] for m in micro) for key in parts.model.terms()}
    assert counts == {key: batch.counts[key] for key in counts}
    for one in micro:
        parts.model(one, counts).loss.backward()
    expected, found = gradients(whole.model), gradients(parts.model)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=2e-4, atol=2e-6, msg=name)


def test_labels_of_start_slots_and_the_token_after(backbones, media_root):
    assembly = assemble(backbones["llava_onevision"], slots=2)
    one = record([image(), text("where?")], [text("At "), target("t0"), text(".")], [box()])
    sample = assembly.preparer.training(one, root=media_root, seed=(0,))
    vocabulary = assembly.model.vocabulary
    start = sample.ids.index(vocabulary.start_id("box"))
    slots = list(vocabulary.slot_ids("box"))
    assert sample.ids[start + 1 : start + 3] == slots
    assert sample.queries[0].slots == (start + 1, start + 2)
    learnt = dict(zip(sample.learn, sample.labels, strict=True))
    assert learnt[start - 1] == vocabulary.start_id("box")
    assert start not in learnt
    assert start + 1 not in learnt
    assert learnt[start + 2] == sample.ids[start + 3]
    tokenizer = assembly.preparer.processor.tokenizer
    assert sample.labels[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>")
    words = tokenizer.decode([sample.ids[p] for p in sample.queries[0].words])
    assert words == "where?"


def test_several_boxes_give_groups_in_a_row_and_none_gives_words(backbones, media_root):
    assembly = assemble(backbones["qwen3_vl"], slots=1)
    two, absent = mixed_records()[3], mixed_records()[6]
    sample = assembly.preparer.training(two, root=media_root, seed=(0,))
    starts = [q.start for q in sample.queries]
    assert starts[1] == starts[0] + 2
    torch.testing.assert_close(sample.queries[1].encoded["box_4"], torch.tensor([3 / 40, 4 / 64, 30 / 40, 60 / 64]))
    none = assembly.preparer.training(absent, root=media_root, seed=(0,))
    assert none.queries == []
    text_of = assembly.preparer.processor.tokenizer.decode(list(none.labels))
    assert "It is not there." in text_of


def test_routing_survives_shuffled_rows(backbones, media_root):
    """Each query reads its own positions: permuting the batch permutes the queries' states and nothing else."""
    assembly = assemble(backbones["qwen3_vl"])
    model = assembly.model.eval()
    records = [r for r in mixed_records() if r.id != "chat"]
    states = {}
    original = type(model).queries
    for order in ([0, 1, 2, 3, 4, 5], [5, 3, 1, 0, 2, 4]):
        batch = batch_of(assembly, [records[i] for i in order], media_root)
        found = {}

        def spy(self, name, share, visual, hidden, rows, _found=found):
            out = original(self, name, share, visual, hidden, rows)
            _found[name] = out
            return out

        type(model).queries = spy
        try:
            model(batch, batch.counts)
        finally:
            type(model).queries = original
        key = {i: batch.sample_ids[i] for i in range(len(order))}
        rows = batch.heads["box"].sample_N
        states[tuple(order)] = {(key[r], k): found["box"].states_NSD[k] for k, r in enumerate(rows)}
    first, second = states.values()
    by_id = {}
    for (name, _), value in second.items():
        by_id.setdefault(name, []).append(value)
    for (name, _), value in first.items():
        assert any(torch.allclose(value, other, atol=1e-5) for other in by_id[name]), name


def test_detach_cuts_the_head_from_the_language_model(backbones, media_root):
    assembly = assemble(backbones["qwen3_vl"])
    model = assembly.model
    batch = batch_of(assembly, [mixed_records()[0]], media_root)
    model.slots["box"].detach = True
    model(batch, {**batch.counts, "lm": 1e12, "assign": 1e12}).loss.backward()
    lora = [p.grad.abs().max() for p in model.groups()["lora"].values()]
    assert max(lora) < 1e-8
    assert model.slots["box"].head.net.weight.grad.abs().max() > 0


def test_head_without_queries_gets_a_zero_that_hangs_on_the_states(backbones, media_root):
    assembly = assemble(backbones["qwen3_vl"])
    model = assembly.model.train()
    batch = batch_of(assembly, [mixed_records()[2]], media_root)
    assert batch.heads == {}
    model(batch, batch.counts).loss.backward()
    for name, parameter in model.groups()["heads.moment"].items():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() == 0
    idle = {id(p) for p in model.idle_parameters(batch.counts)}
    assert {id(p) for p in model.groups()["heads.moment"].values()} <= idle
    assert id(model.tokens.inputs["box"]) in idle
    assert id(model.tokens.outputs["box"]) not in idle


def test_spatial_prompt_reaches_the_embeddings_and_the_query(backbones, media_root):
    assembly = assemble(backbones["qwen3_vl"])
    batch = batch_of(assembly, [mixed_records()[5], mixed_records()[0]], media_root)
    vocabulary = assembly.model.vocabulary
    assert (batch.ids_BL == vocabulary.prompt_base).sum() == 1
    share = batch.heads["box"]
    assert share.prompted_N.tolist() == [True, False]
    torch.testing.assert_close(share.prompts["box_4"][0], torch.tensor([1 / 80, 1 / 48, 20 / 80, 20 / 48]))
    assembly.model(batch, batch.counts).loss.backward()
    assert assembly.model.slots["box"].head.prompt.net.weight.grad.abs().max() > 0


def test_lora_lies_only_in_the_language_model(backbones):
    for family in FAMILIES:
        backbone = load_backbone(backbones[family])
        names = backbone.add_lora(LoraOptions(r=2, alpha=4))
        prefix = backbone.decoder_name
        assert names
        assert all(name.startswith(f"{prefix}.") for name in names)
        outside = [n for n, _ in backbone.model.named_parameters() if ".lora_" in n and not n.startswith(f"{prefix}.")]
        assert outside == []


def test_adapter_has_the_layout_of_peft(backbones, tmp_path):
    import json

    from peft import PeftModel
    from safetensors.torch import save_file

    backbone = load_backbone(backbones["qwen3_vl"])
    backbone.add_lora(LoraOptions(r=2, alpha=4))
    for name, parameter in backbone.groups()["lora"].items():
        torch.nn.init.normal_(parameter, std=0.1) if "lora_B" in name else None
    (tmp_path / "adapter_config.json").write_text(json.dumps(backbone.adapter_config))
    save_file({k: v.contiguous() for k, v in backbone.adapter_state().items()}, tmp_path / "adapter_model.safetensors")
    ids = torch.randint(0, 200, (1, 7))
    expected = backbone.model(input_ids=ids).logits
    loaded = PeftModel.from_pretrained(load_backbone(backbones["qwen3_vl"]).model, tmp_path)
    torch.testing.assert_close(loaded(input_ids=ids).logits, expected)


def test_clips_of_different_length_share_a_batch(backbones, media_root):
    assembly = assemble(backbones["llava_onevision"], frames=9)
    rows = [
        record([video("clip.mp4"), text("a")], [target("t0")], [moment()]),
        record([video("long.mp4"), text("b")], [target("t0")], [moment()]),
    ]
    together = batch_of(assembly, rows, media_root)
    out = assembly.model.eval()(together, together.counts)
    alone = [assembly.model(b, together.counts) for b in (batch_of(assembly, [r], media_root) for r in rows)]
    torch.testing.assert_close(out.loss, alone[0].loss + alone[1].loss, rtol=1e-4, atol=1e-5)
