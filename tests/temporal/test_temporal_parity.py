"""Parity with the published CG-DETR, number for number, from copied weights.

The reference is a folder of values (see its README): weights, inputs, outputs, losses, gradient norms that the published code gave.
``TPO_PARITY_CGDETR`` names another folder of the same layout, of any sizes.
"""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tpo_core.types import Tensors
from tpo_heads.temporal.config import TemporalConfig
from tpo_heads.temporal.head import choose_wrong_questions
from tpo_heads.temporal.losses import alignment_losses, ranking_losses, window_losses
from tpo_heads.temporal.network import CGDETR
from tpo_heads.temporal.published import convert, is_idle, rules

FOLDER = Path(os.environ.get("TPO_PARITY_CGDETR") or Path(__file__).parent / "cgdetr")

SALIENCY = (
    "saliency_margin",
    "saliency_rank",
    "saliency_negative",
    "attention_margin",
    "attention_rank",
    "attention_negative",
    "attention_words",
)
PARTS = {
    "loss_saliency": SALIENCY,
    "loss_ms_align": ("align_sentence", "align_dummy", "align_clips"),
    "loss_distill": ("distill",),
    "loss_orthogonal_dummy": ("orthogonal",),
}


class Reference(NamedTuple):
    values: dict[str, Any]
    tensors: Tensors
    weights: Tensors
    config: TemporalConfig


@cache
def reference() -> Reference:
    values = json.loads((FOLDER / "values.json").read_text())
    given = values["config"]
    config = TemporalConfig(
        hidden=given["hidden_dim"],
        attention_heads=given["nheads"],
        sentence_heads=8,
        inner_width=given["dim_feedforward"],
        dummy_layers=given["dummy_layers"],
        text_layers=given["t2v_layers"],
        encoder_layers=given["enc_layers"],
        decoder_layers=given["dec_layers"],
        sentence_layers=given["sent_layers"],
        moment_layers=given["moment_layers"],
        moment_queries=given["num_queries"],
        dummies=given["num_dummies"],
        global_tokens=given["total_prompts"],
        global_best=given["num_prompts"],
        dropout=0.0,
        input_dropout=0.0,
        span_weight=given["span_loss_coef"],
        giou_weight=given["giou_loss_coef"],
        label_weight=given["label_loss_coef"],
        saliency_weight=given["lw_saliency"],
        attention_weight=given["lw_wattn"],
        align_weight=given["lw_ms_align"],
        distill_weight=given["lw_distill"],
        orthogonal_weight=given["lw_distill"],
        background_weight=given["eos_coef"],
        saliency_margin=given["saliency_margin"],
        match_span=given["set_cost_span"],
        match_giou=given["set_cost_giou"],
        match_label=given["set_cost_class"],
        release_faults=True,
    )
    return Reference(values, load_file(FOLDER / "tensors.safetensors"), load_file(FOLDER / "state_dict.safetensors"), config)


def build() -> CGDETR:
    given, ref = reference().values["config"], reference()
    network = CGDETR(ref.config, clip_width=given["v_feat_dim"], text_width=given["t_feat_dim"])
    network.load_state_dict(convert(ref.weights, ref.config))
    return network


def wrong_questions() -> tuple[Tensor, Tensor]:
    """Rows of one video are not negatives of each other; in QVHighlights (``hl``) a name ends in the cut's start and end."""
    values = reference().values
    cut = values["config"]["dset_name"] == "hl"
    videos = [name.rsplit("_", 2)[0] if cut else name for name in values["video_names"]]
    number = torch.tensor([videos.index(video) for video in videos])
    return choose_wrong_questions(number, next_only=True)


def run(network: CGDETR, *, training: bool) -> Tensors:
    given = reference().tensors
    valid, text_valid = given["video_mask"].bool(), given["text_mask"].bool()
    ends = valid.cumsum(1) / valid.sum(1, keepdim=True)
    wrong_N, has_wrong_N = wrong_questions()
    output = network(
        given["video"],
        valid,
        ends,
        given["text"],
        text_valid,
        moment_NT=given["saliency_labels"] > 0 if training else None,
        negative_N=wrong_N if training else None,
        has_negative_N=has_wrong_N if training else None,
    )
    windows = torch.nn.utils.rnn.pad_sequence([given[f"spans_cxw.{i}"] for i in range(len(valid))], batch_first=True)
    counts = torch.tensor([len(given[f"spans_cxw.{i}"]) for i in range(len(valid))])
    dummies = torch.ones(len(valid), reference().config.dummies, dtype=torch.bool)
    labels = {
        "windows": windows,
        "windows_valid": torch.arange(windows.shape[1]) < counts[:, None],
        "level": given["saliency_labels"],
        "moment": given["saliency_labels"] > 0,
        "high": given["saliency_pos"],
        "low": given["saliency_neg"],
        "pairs": torch.ones_like(given["saliency_pos"], dtype=torch.bool),
        "has_negative": has_wrong_N,
        "valid": valid,
        "text_valid": torch.cat((dummies, text_valid), 1),
    }
    return output | labels


def loss_means(output: Tensors) -> dict[str, Tensor]:
    """Every term as core reduces it: the sum over queries, divided by the sum of the counts (windows, or queries)."""
    config = reference().config
    spans = torch.cat((output["lower_spans"].transpose(0, 1), output["spans"][None]))
    logits = torch.cat((output["lower_logits"].transpose(0, 1), output["logits"][None]))
    rows = len(output["spans"])
    counts = {"label": rows, "span": int(output["windows_valid"].sum()), "giou": int(output["windows_valid"].sum())}
    means: dict[str, Tensor] = {}
    for name, part_JN in window_losses(spans, logits, output["windows"], output["windows_valid"], config).items():
        for layer, part_N in enumerate(part_JN):
            suffix = "" if layer == len(part_JN) - 1 else f"_{layer}"
            means[f"{name}{suffix}"] = part_N.sum() / counts[name]
    for name, part_N in {**ranking_losses(output, config), **alignment_losses(output, config)}.items():
        assert part_N.shape == (rows,)
        means[name] = part_N.sum() / rows
    return means


def close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> None:
    scale = float(theirs.abs().max())
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance * scale)


def test_outputs_in_evaluation_equal_the_published_ones() -> None:
    given = reference().tensors
    output = run(build().eval(), training=False)
    close(output["spans"], given["eval.pred_spans"])
    close(output["logits"], given["eval.pred_logits"])
    close(output["saliency"] * given["video_mask"], given["eval.saliency_scores"] * given["video_mask"])
    close(output["attention"], given["eval.attn_weights"])


def test_outputs_in_training_equal_the_published_ones_layer_by_layer() -> None:
    given = reference().tensors
    output = run(build().train(), training=True)
    close(output["spans"], given["train.pred_spans"])
    close(output["logits"], given["train.pred_logits"])
    close(output["saliency"] * given["video_mask"], given["train.saliency_scores"] * given["video_mask"])
    for layer in range(reference().config.decoder_layers - 1):
        close(output["lower_spans"][:, layer], given[f"train.aux{layer}.pred_spans"])
        close(output["lower_logits"][:, layer], given[f"train.aux{layer}.pred_logits"])
    real = output["has_negative"]
    if real.any():
        mask = given["video_mask"][real]
        close(output["negative_saliency"][real] * mask, given["eval.saliency_scores_neg"] * mask)


def test_every_loss_term_equals_the_published_one() -> None:
    means = loss_means(run(build().train(), training=True))
    theirs = reference().values["losses"]
    checked = 0
    for name, value in theirs.items():
        if name.startswith("class_error"):
            continue
        ours = sum(float(means[part].detach()) for part in PARTS.get(name, (name.removeprefix("loss_"),)))
        assert ours == pytest.approx(value, rel=1e-5), name
        checked += 1
    assert checked == 4 + 3 * reference().config.decoder_layers


def test_weighted_total_and_every_gradient_equal_the_published_ones() -> None:
    network, values = build().train(), reference().values
    means = loss_means(run(network, training=True))
    assert means.keys() == reference().config.factors.keys()
    total = torch.stack([weight * means[name] for name, weight in reference().config.factors.items()]).sum()
    assert float(total.detach()) == pytest.approx(values["total"], rel=1e-5)
    total.backward()
    norms = values["grad_norms"]
    parameters = dict(network.named_parameters())
    checked = set()
    for rule in rules(reference().config):
        gradient = parameters[rule.ours].grad
        assert gradient is not None, rule.ours
        for name, piece in rule.split(gradient).items():
            # Some published gradients are zero but for rounding (biases that a softmax cancels).
            assert float(piece.norm()) == pytest.approx(norms[name], rel=1e-4, abs=1e-6), name
            checked.add(name)
    assert {name for name in norms if name not in checked and not is_idle(name)} == set()
    # What is left behind has no gradient there either.
    assert all(norm < 1e-6 for name, norm in norms.items() if is_idle(name))


def test_every_weight_of_ours_comes_from_a_published_one_and_takes_part() -> None:
    network = build()
    assert {rule.ours for rule in rules(reference().config)} == set(network.state_dict())
    taken = {name for rule in rules(reference().config) for row in rule.rows for name in row}
    assert {name for name in reference().weights if name not in taken and not is_idle(name)} == set()
