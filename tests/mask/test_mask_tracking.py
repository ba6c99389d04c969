"""Tracking from a box, through the real model: the box stands in the question, and SAM2 follows it by one of three paths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy_data import record, target, text, video

from tpo_core import build_model, load_backbone, load_plugins
from tpo_core.model import GenerationOptions, generate
from tpo_core.model.build import ModelOptions
from tpo_core.predict import Predictor
from tpo_core.prepare.question import first_question
from tpo_heads.mask.codec import MaskCodec
from tpo_heads.mask.config import MaskConfig
from tpo_heads.mask.track import corner_tokens, decode_first, encode_frames

SIZE = [80, 48]
BOX = [8, 8, 40, 32]


def track_record() -> Any:
    prompt = {"id": "p0", "role": "prompt", "kind": "box", "for": "t0", "media": 0, "frame": 0, "size": SIZE, "boxes": [BOX]}
    truth = {"id": "t0", "head": "mask", "size": SIZE, "frames": [0, 2, 4], "boxes": [BOX, None, [16, 8, 48, 32]], "visible": [1, 0, 1]}
    return record([video(), target("p0"), text("follow it")], [target("t0")], [prompt, truth], "track")


def build(backbones: dict[str, Path], **options: Any) -> Any:
    head = load_plugins().load_head("mask")
    config = MaskConfig(**options)
    return build_model(load_backbone(backbones["qwen3_vl"]), [head], configs={"mask": config}, options=ModelOptions(frames=4))


@pytest.mark.parametrize("path", ["embedding", "both"])
def test_a_training_step_reaches_the_prompt_and_the_language_model(backbones: dict[str, Path], media_root: Path, path: Any) -> None:
    built = build(backbones, path=path)
    batch = built.collator()([built.preparer.training(track_record(), root=media_root, seed=(0,))])
    share = batch.heads["mask"]
    assert share.prompted_N.tolist() == [True]
    assert batch.counts["mask/projection"] == 2
    assert batch.counts["mask/object"] == 3
    out = built.model.train()(batch, {name: max(count, 1.0) for name, count in batch.counts.items()})
    out.loss.backward()
    head = built.model.slots["mask"].head
    assert head.prompt.box[0].weight.grad.abs().sum() > 0
    assert head.adapter.layers[0].weight.grad.abs().sum() > 0
    assert built.model.tokens.inputs["mask"].grad.abs().sum() > 0


def ask(built: Any, root: Path) -> dict[str, Any]:
    """Make the mask head's start token the likeliest word, and ask."""
    model, question = built.model.eval(), first_question(track_record()).record
    probe = built.collator("left")([built.preparer.question(question, root=root)[0]])
    state = generate(model, probe, GenerationOptions(max_new_tokens=2, heads=frozenset())).rows[0].words_WD.mean(0)
    with torch.no_grad():
        model.tokens.outputs["mask"].copy_(state * 10)
    (prediction,) = Predictor(built).predict([question], root=root, options=GenerationOptions(max_new_tokens=3))
    answer: dict[str, Any] = prediction.of("mask")[0].answers[0]
    return answer


def test_the_three_paths_side_by_side(backbones: dict[str, Path], media_root: Path) -> None:
    """``box`` is plain SAM2 with the same box, whatever the language model says; the other two are not."""
    answers = {}
    for path in ("embedding", "box", "both"):
        built = build(backbones, path=path)
        sam = built.model.slots["mask"].head.sam
        with torch.no_grad():
            sam.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.fill_(5)
            for network in sam.sam_mask_decoder.output_hypernetworks_mlps:
                network.layers[-1].weight.mul_(30)
        answers[path] = ask(built, media_root)
        assert answers[path]["frames"] == list(range(6))
    assert isinstance(built.codecs["mask"], MaskCodec)
    clip = built.preparer.view("mask", built.preparer.question(first_question(track_record()).record, root=media_root)[1], 0)
    with torch.no_grad():
        frame = built.codecs["mask"].inputs(clip)["frames"][:1]
        step = decode_first(sam, encode_frames(sam, frame), corner_tokens(sam, torch.tensor([BOX]) / torch.tensor([*SIZE, *SIZE])))
    row = {
        "masks": step.masks_BMhw[:, 0],
        "iou": step.iou_BM[:, 0],
        "object": step.object_B,
        "frame_index": torch.tensor([0]),
        "valid": torch.tensor([True]),
    }
    plain = built.codecs["mask"].decode(row, clip)
    assert answers["box"]["rle"][0] == plain["rle"][0]
    assert answers["box"]["boxes"][0] is not None
    assert np.isfinite(answers["box"]["boxes"][0]).all()
    assert answers["embedding"]["rle"] != answers["box"]["rle"] != answers["both"]["rle"]
