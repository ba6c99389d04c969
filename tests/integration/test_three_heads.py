"""The three built-in heads on three layouts that differ, through their own entry points: one step of training, then answers."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from pycocotools import mask as coco
from toy_data import image, record, target, text, video

from tpo_core import build_model, load_backbone, load_plugins
from tpo_core.backbone import LoraOptions
from tpo_core.model import GenerationOptions
from tpo_core.model.build import ModelOptions
from tpo_core.predict import Predictor
from tpo_core.prepare.question import first_question

LAYOUTS = ["llava_onevision", "qwen2_5_vl", "qwen3_vl", "idefics3"]
SMALL = {"hidden": 16, "attention_heads": 2, "inner_width": 16, "moment_queries": 3, "dummies": 2}


def rle(left: int) -> dict:
    mask = np.zeros((48, 80), dtype=np.uint8, order="F")
    mask[10:30, left : left + 20] = 1
    encoded = coco.encode(mask)
    return {"size": [48, 80], "counts": encoded["counts"].decode()}


def records():
    region = {"id": "t0", "head": "region", "media": 0, "size": [80, 48], "boxes": [[8, 8, 40, 24]]}
    moment = {"id": "t0", "head": "temporal", "media": 0, "duration": 3.0, "spans": [[0.5, 1.5]]}
    mask = {"id": "t0", "head": "mask", "media": 0, "size": [80, 48], "frames": [0, 2, 4], "rle": [rle(5), rle(15), rle(25)]}
    return [
        record([image(), text("where?")], [target("t0")], [region], "region"),
        record([video(), text("when?")], [target("t0")], [moment], "temporal"),
        record([video("long.mp4"), text("when else?")], [target("t0")], [{**moment, "duration": 4.5}], "temporal2"),
        record([video(), text("follow it")], [target("t0")], [mask], "mask"),
        record([image(), text("outline it")], [target("t0")], [{**mask, "frames": [0], "rle": [rle(30)]}], "mask-image"),
        record([text("hello")], "hi", id="chat"),
        record(
            [image(), video(), text("all")],
            [target("t0"), text(" "), target("t1"), text(" "), target("t2")],
            [region, {**moment, "id": "t1", "media": 1}, {**mask, "id": "t2", "media": 1}],
            "all",
        ),
    ]


def build(folder):
    plugins = load_plugins()
    heads = [plugins.load_head(name) for name in ("mask", "region", "temporal")]
    configs = {"temporal": heads[2].config(**SMALL), "mask": heads[0].config(sam="tiny", image_size=64, trains="decoder")}
    options = ModelOptions(frames=4, lora=LoraOptions(r=4, alpha=8))
    return build_model(load_backbone(folder), heads, configs=configs, options=options)


@pytest.mark.parametrize("family", LAYOUTS)
def test_three_heads_train_and_answer(family, backbones, media_root):
    built = build(backbones[family])
    prepared = [built.preparer.training(r, root=media_root, seed=(i,)) for i, r in enumerate(records())]
    batch = built.collator()(prepared)
    assert {name: len(share) for name, share in batch.heads.items()} == {"region": 2, "temporal": 3, "mask": 3}
    out = built.model.train()(batch, {key: max(value, 1.0) for key, value in batch.counts.items()})
    out.loss.backward()
    assert torch.isfinite(out.loss)
    for name in ("region", "temporal", "mask"):
        gradient = built.model.tokens.inputs[name].grad
        assert gradient[1:].abs().max() > 0, f"no gradient reaches the slot of {name}"
    assert max(float(p.grad.abs().max()) for p in built.model.groups()["lora"].values() if p.grad is not None) > 0

    for name in built.model.vocabulary.names:
        questions = [first_question(r).record for r in records() if name in r.id or r.id == "all"]
        answers = ask_head(built, name, questions, media_root)
        assert answers
        for answer in answers:
            json.dumps(answer.to_json())


def ask_head(built, name, questions, root):
    """Make one head's start token the likeliest word, and ask."""
    model = built.model
    probe = built.collator("left")([built.preparer.question(q, root=root)[0] for q in questions])
    from tpo_core.model import generate

    rows = generate(model.eval(), probe, GenerationOptions(max_new_tokens=2, heads=frozenset())).rows
    state = torch.stack([row.words_WD.mean(0) for row in rows]).mean(0)
    with torch.no_grad():
        model.tokens.outputs[name].copy_(state * 10)
    options = GenerationOptions(max_new_tokens=8, heads=frozenset({name}))
    return [a for p in Predictor(built).predict(questions, root=root, options=options) for a in p.of(name)]
