"""Every loss term of CG-DETR, one number per query.

Legend: J decoder layers, N queries, Q predicted windows, X annotated windows, T clips, L words, K dummies, P pairs.
The published code averages some terms over padding, or over rows of one kind; by default a row here depends on its own clips and words
alone, and `release_faults` brings the published averages back.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tpo_core.types import Tensors
from tpo_heads.temporal.config import TemporalConfig
from tpo_heads.temporal.matching import match
from tpo_heads.temporal.timeline import cxw_to_xx, giou

LEVELS = 11
"""Saliency is the sum of three raters' 0-4; a clip is contrasted once for each level from 1 to 11 that it reaches."""
TEMPERATURE = 0.5
HIDDEN = -1e3
TINY = 1e-6


def window_losses(spans_JNQ2: Tensor, logits_JNQ2: Tensor, windows_NX2: Tensor, there_NX: Tensor, config: TemporalConfig) -> Tensors:
    """Return ``span``, ``giou`` and ``label``, each (J, N): sums over a query's matched windows, the label's mean over Q."""
    spans, logits, windows = spans_JNQ2.float(), logits_JNQ2.float(), windows_NX2.float()
    index_JNX, found_JNX = match(spans, logits, windows, there_NX, config)
    picked_JNX2 = spans.gather(2, index_JNX[..., None].expand(-1, -1, -1, 2))
    span_JNX = (picked_JNX2 - windows).abs().mean(-1)
    giou_JNX = 1 - giou(cxw_to_xx(picked_JNX2), cxw_to_xx(windows))
    queries = logits.shape[2]
    # Windows without a partner write into a column that is cut off.
    slot_JNX = index_JNX.masked_fill(~found_JNX, queries)
    front_JNQ = torch.zeros(*logits.shape[:2], queries + 1, dtype=torch.bool, device=logits.device)
    front_JNQ = front_JNQ.scatter(2, slot_JNX, torch.ones_like(found_JNX))[..., :queries]
    chance = logits.log_softmax(-1)
    label_JNQ = -torch.where(front_JNQ, chance[..., 0], config.background_weight * chance[..., 1])
    return {"span": (span_JNX * found_JNX).sum(-1), "giou": (giou_JNX * found_JNX).sum(-1), "label": label_JNQ.mean(-1)}


def margin(score_NT: Tensor, high_NP: Tensor, low_NP: Tensor, pairs_NP: Tensor, least: float) -> Tensor:
    """Return (N,): twice the mean over pairs of how much the lower clip comes too near to the higher one."""
    gap_NP = least + score_NT.gather(1, low_NP) - score_NT.gather(1, high_NP)
    return 2 * (gap_NP.clamp(min=0) * pairs_NP).mean(1)


def rank_contrast(score_NT: Tensor, level_NT: Tensor, valid_NT: Tensor) -> Tensor:
    """Return (N,): over all levels, clips that reach the level stand out in a softmax over all clips."""
    logits_NT = torch.where(valid_NT, score_NT, HIDDEN) / TEMPERATURE
    logits_NT = logits_NT - logits_NT.amax(1, keepdim=True)
    chance_NT = logits_NT - torch.log(logits_NT.exp().sum(1, keepdim=True) + TINY)
    levels = torch.arange(1, LEVELS + 1, device=score_NT.device)[:, None, None]
    reach = ((level_NT >= levels) & valid_NT).float()
    return -((reach * chance_NT).sum(-1) / (reach.sum(-1) + TINY)).sum(0) / (LEVELS + 1)


def ranking_losses(output: Tensors, config: TemporalConfig) -> Tensors:
    """Return the terms on saliency scores and on the share of attention that goes to words, each (N,)."""
    level_NT, valid_NT = output["level"], output["valid"]
    dummies = config.dummies
    word_NT = output["attention"][..., dummies:].sum(-1).clamp(0, 1)
    rows = valid_NT.shape[0]
    has_N = output["has_negative"]
    scores = {"saliency": output["saliency"].float(), "attention": word_NT}
    if "negative_saliency" in output:
        elsewhere = output["negative_attention"]
        wrong = {"saliency": output["negative_saliency"].float(), "attention": elsewhere[..., dummies:].sum(-1).clamp(0, 1)}
        # -log(1 - x): of a sigmoid that is a softplus; of attention on words, 1 - x is the attention on dummies.
        idle_NT = elsewhere[..., :dummies].sum(-1).clamp(min=1e-12)
        aside = {"saliency": F.softplus(wrong["saliency"]), "attention": -torch.log(idle_NT)}
    else:
        wrong = {name: torch.zeros_like(score) for name, score in scores.items()}
        aside = wrong
    losses: Tensors = {}
    for name, score_NT in scores.items():
        losses[f"{name}_margin"] = margin(score_NT, output["high"], output["low"], output["pairs"], config.saliency_margin)
        both = torch.cat((score_NT, wrong[name]), 1)
        levels = torch.cat((level_NT, torch.zeros_like(level_NT)), 1)
        there = torch.cat((valid_NT, valid_NT & has_N[:, None]), 1)
        losses[f"{name}_rank"] = rank_contrast(both, levels, there)
        losses[f"{name}_negative"] = (aside[name] * (valid_NT & has_N[:, None])).sum(1)
    word_loss_NT = F.binary_cross_entropy(word_NT, level_NT.clamp(0, 1), reduction="none")
    if not config.release_faults:
        return losses | {"attention_words": _mean(word_loss_NT, valid_NT)}
    real, own = has_N.sum(), rows - has_N.sum()
    by_kind_N = rows * torch.where(has_N, 1 / real.clamp(min=1), 1 / own.clamp(min=1))
    # A single row without a wrong question is ranked along the wrong dimension, which leaves nothing of it.
    losses["saliency_rank"] = losses["saliency_rank"] * torch.where(~has_N & (own == 1) & (real > 0), 0.0, by_kind_N)
    # Several such rows are added to a sum that is not read again.
    losses["attention_rank"] = losses["attention_rank"] * torch.where(~has_N & (real > 0), 0.0, by_kind_N)
    for name in scores:
        losses[f"{name}_negative"] = losses[f"{name}_negative"] * rows / real.clamp(min=1)
    return losses | {"attention_words": word_loss_NT.mean(1)}


def alignment_losses(output: Tensors, config: TemporalConfig) -> Tensors:
    """Return ``align_sentence``, ``align_dummy`` (both look at other rows), ``align_clips``, ``distill``, ``orthogonal``, each (N,)."""
    moment, other, sentence, dummy = (
        F.normalize(output[name].float(), dim=-1) for name in ("moment_token", "other_token", "sentence_token", "dummy_token")
    )
    valid_NT, moment_NT = output["valid"], output["moment"]
    here_N = moment_NT.any(1).float()
    own = torch.eye(len(moment), dtype=torch.bool, device=moment.device)
    match_N2N = torch.cat((moment @ sentence.T, other @ sentence.T), 1)
    apart_N2N = torch.cat((moment @ dummy.T, other @ dummy.T), 1)
    logit_NT = torch.einsum("nc,ntc->nt", output["moment_token"].float(), output["framed"].float())
    losses = {"align_sentence": -match_N2N.log_softmax(1)[:, : len(moment)].diagonal() * here_N}
    divergence_NTK = F.kl_div(torch.log(output["attention"] + TINY), _distill_target(output, config), reduction="none")
    if config.release_faults:
        first = torch.where(own[0], 1, 0)
        clip_loss_NT = F.binary_cross_entropy(logit_NT.sigmoid(), output["level"].clamp(0, 1), reduction="none")
        losses["align_dummy"] = F.cross_entropy(apart_N2N, first, reduction="none")
        losses["align_clips"] = (clip_loss_NT * valid_NT).mean(1)
        losses["distill"] = (divergence_NTK.mean(-1) * moment_NT).sum(1) * len(moment) / moment_NT.sum().clamp(min=1)
    else:
        # Push the moment away from its own dummies: -log of the chance of all others.
        others = apart_N2N.masked_fill(F.pad(own, (0, len(moment))), float("-inf"))
        losses["align_dummy"] = (apart_N2N.logsumexp(1) - others.logsumexp(1)) * here_N
        clip_loss_NT = F.binary_cross_entropy_with_logits(logit_NT, output["level"].clamp(0, 1), reduction="none")
        losses["align_clips"] = _mean(clip_loss_NT, valid_NT) * here_N
        losses["distill"] = _mean(_mean(divergence_NTK, output["text_valid"][:, None].expand_as(divergence_NTK)), moment_NT)
    losses["orthogonal"] = _overlap(output["dummies"]) + _overlap(output["globals"])
    return losses


def _distill_target(output: Tensors, config: TemporalConfig) -> Tensor:
    """Return softmax over dummies and words (N, T, K + L) of how much each resembles a clip; it takes no gradient."""
    similarity = output["similarity"].detach().float()
    if not config.release_faults:
        similarity = similarity.masked_fill(~output["text_valid"][:, None], float("-inf"))
    return similarity.softmax(-1)


def _overlap(tokens_NKC: Tensor) -> Tensor:
    """Return (N,): mean |cosine| between different tokens, of which one side takes the gradient (the diagonal counts as 0)."""
    unit = tokens_NKC.float()
    unit = unit / unit.norm(dim=-1, keepdim=True).clamp(min=TINY)
    cosine = unit @ unit.transpose(1, 2).detach()
    same = torch.eye(cosine.shape[-1], dtype=torch.bool, device=cosine.device)
    overlap_N: Tensor = cosine.abs().masked_fill(same, 0.0).mean((1, 2))
    return overlap_N


def _mean(values: Tensor, there: Tensor) -> Tensor:
    """Return the mean over the last dimension of what is there; 0 where nothing is."""
    mean: Tensor = (values * there).sum(-1) / there.sum(-1).clamp(min=1)
    return mean
