"""The temporal head: task embedding, words and frames -> windows and highlights.

Legend: M media (of this head), N queries, S slots, T time steps, L words (W of the instruction, and the S slots), D width of the language
model, V width of the clip features, X annotated windows, Q predicted windows, J decoder layers. Windows are cxw in 0-1 of the time that
the steps cover; steps are [start, end) in seconds of the clip's own clock.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tpo_core.head import Head
from tpo_core.types import Queries, Tensors, Widths
from tpo_heads.temporal.config import TemporalConfig
from tpo_heads.temporal.labels import make_labels
from tpo_heads.temporal.layers import Perceptron
from tpo_heads.temporal.losses import alignment_losses, ranking_losses, window_losses
from tpo_heads.temporal.network import CGDETR
from tpo_heads.temporal.pooling import MeanPooling, QueryPooling
from tpo_heads.temporal.timeline import TINY, covered, relative, tile_steps, xx_to_cxw

MIXING = frozenset({"saliency_rank", "saliency_negative", "attention_rank", "attention_negative", "align_sentence", "align_dummy"})
SURE = 1e4
"""A logit whose softmax is exactly 0 or 1 in float32."""


class TemporalHead(Head[TemporalConfig]):
    """CG-DETR on features that the language model already computed, or on precomputed ones; or a plain MLP (``kind: mlp``)."""

    def __init__(self, config: TemporalConfig, widths: Widths) -> None:
        super().__init__(config, widths)
        self.mixing_terms = MIXING & config.factors.keys()
        self.mlp: Perceptron | None = None
        if config.kind == "mlp":
            self.mlp = Perceptron((config.slots * widths.hidden, config.hidden, 4))
            return
        files = config.files
        self.pool: MeanPooling | QueryPooling | None = None
        if files is None:
            self.pool = QueryPooling(config, widths) if config.pooling == "query" else MeanPooling(config, widths)
        clip_width = self.pool.width if self.pool is not None else files.clip_width if files is not None else 0
        text_width = files.word_width if files is not None and files.word_width is not None else widths.words
        self.state_to_word = nn.Linear(widths.hidden, text_width) if text_width != widths.hidden else nn.Identity()
        # Two more channels: where a clip starts and ends, in 0-1.
        self.network = CGDETR(config, clip_width=clip_width + 2, text_width=text_width)

    @property
    def term_weights(self) -> Mapping[str, float]:
        return self.config.factors

    def forward(self, queries: Queries, targets: Tensors | None = None) -> Tensors:
        """Return ``spans`` (N, Q, 2), ``logits`` (N, Q, 2; class 0 is the foreground), ``origin`` and ``length`` (N,) in seconds, and with
        CG-DETR ``saliency`` (N, T), ``steps`` (N, T, 2), ``valid`` (N, T); with targets also what `loss` reads."""
        if self.mlp is not None:
            return self._answer_plainly(queries, targets)
        clips_NTV, steps_NT2, valid_NT = self._clips(queries)
        origin_N, length_N = covered(steps_NT2, valid_NT)
        place_NT2 = relative(steps_NT2, valid_NT, origin_N, length_N)
        clips_NTV = torch.cat((clips_NTV, place_NT2.to(clips_NTV.dtype)), -1) * valid_NT[..., None]
        text_NLD, text_valid_NL = self._text(queries)
        labels: Tensors = {}
        if targets is not None:
            labels = make_labels(steps_NT2, valid_NT, origin_N, length_N, targets)
            wrong_N, has_wrong_N = choose_wrong_questions(self._videos(queries), next_only=self.config.release_faults)
            dummies = text_valid_NL.new_ones(len(queries), self.config.dummies)
            labels |= {"has_negative": has_wrong_N, "text_valid": torch.cat((dummies, text_valid_NL), 1)}
        mixed = targets is not None and len(queries) > 1
        output = self.network(
            clips_NTV,
            valid_NT,
            place_NT2[..., 1],
            text_NLD,
            text_valid_NL,
            moment_NT=labels.get("moment"),
            negative_N=wrong_N if mixed else None,
            has_negative_N=has_wrong_N if mixed else None,
        )
        return {**output, **labels, "steps": steps_NT2, "valid": valid_NT, "origin": origin_N, "length": length_N}

    def loss(self, output: Tensors, targets: Tensors) -> Tensors:
        """Return every term, (N,)."""
        with torch.autocast(output["spans"].device.type, enabled=False):
            spans, logits = output["spans"][None], output["logits"][None]
            if self.mlp is None:
                spans = torch.cat((output["lower_spans"].transpose(0, 1), spans))
                logits = torch.cat((output["lower_logits"].transpose(0, 1), logits))
            parts = window_losses(spans, logits, output["windows"], output["windows_valid"], self.config)
            last = len(spans) - 1
            losses = {name if j == last else f"{name}_{j}": part[j] for name, part in parts.items() for j in range(len(spans))}
            if self.mlp is None:
                losses |= ranking_losses(output, self.config) | alignment_losses(output, self.config)
            return losses

    def ideal(self, targets: Tensors) -> Tensors:
        """Return the annotated windows, sure of themselves, and the annotated saliency on its own clips."""
        duration_N = targets["duration"].float().clamp(min=TINY)
        there_NX = targets["spans_valid"].bool()
        spans_NX2 = xx_to_cxw(targets["spans"].float() / duration_N[:, None, None])
        front_NX = torch.where(there_NX, SURE, -SURE)
        scores_NS = targets["saliency"].float()
        edges_S = torch.arange(scores_NS.shape[1], device=scores_NS.device)
        steps_NS2 = torch.stack((edges_S, edges_S + 1), -1) * targets["clip_seconds"].float()[:, None, None]
        return {
            "spans": spans_NX2,
            "logits": torch.stack((front_NX, -front_NX), -1),
            "saliency": scores_NS,
            "steps": steps_NS2,
            "valid": targets["saliency_valid"].bool(),
            "origin": torch.zeros_like(duration_N),
            "length": duration_N,
        }

    def _answer_plainly(self, queries: Queries, targets: Tensors | None) -> Tensors:
        assert self.mlp is not None
        numbers_N4 = self.mlp(queries.states_NSD.flatten(1))
        window_N2 = self._rows(queries.inputs["window"], queries.media_N).float()
        origin_N, end_N = window_N2.unbind(-1)
        output = {"spans": numbers_N4[:, None, :2].sigmoid(), "logits": numbers_N4[:, None, 2:]}
        output |= {"origin": origin_N, "length": (end_N - origin_N).clamp(min=TINY)}
        if targets is None:
            return output
        share_NX2 = ((targets["spans"].float() - origin_N[:, None, None]) / output["length"][:, None, None]).clamp(0, 1)
        windows_NX2 = xx_to_cxw(share_NX2)
        return output | {"windows": windows_NX2, "windows_valid": targets["spans_valid"].bool() & (windows_NX2[..., 1] > 0)}

    def _clips(self, queries: Queries) -> tuple[Tensor, Tensor, Tensor]:
        """Return features (N, T, V), steps (N, T, 2) in seconds, and which are valid (N, T)."""
        media_N, inputs = queries.media_N, queries.inputs
        if self.pool is None:
            media_N = media_N.to(inputs["clips"].device)
            return inputs["clips"][media_N], inputs["clip_times"][media_N].float(), inputs["clips_valid"][media_N].bool()
        features = queries.features
        if features is None:
            raise ValueError("the temporal head got no frame features; use source: files, or a backbone that gives them")
        media_N = media_N.to(features.frames_MTPV.device)
        valid_MT = features.valid_MTP.any(-1)
        steps_MT2 = tile_steps(features.time_MT2, valid_MT, inputs["window"])
        clips_NTV = self.pool(features, media_N, queries.states_NSD.mean(1), queries.words_NWD, queries.words_valid_NW)
        return clips_NTV, steps_MT2[media_N], valid_MT[media_N]

    def _text(self, queries: Queries) -> tuple[Tensor, Tensor]:
        """Return words with the task embedding as further words, (N, L, D or the word files' width), and which are valid.

        Words have no position, so the end of the row is as good a place as right after the last valid word.
        """
        words, valid = queries.words_NWD, queries.words_valid_NW
        if "words" in queries.inputs:
            media_N = queries.media_N.to(queries.inputs["words"].device)
            words, valid = queries.inputs["words"][media_N], queries.inputs["words_valid"][media_N].bool()
            asked_NW = queries.inputs["word_target"][media_N]
            valid = valid & ((asked_NW == _place_among_equals(media_N)[:, None]) | (asked_NW < 0))
        states_NSD = self.state_to_word(queries.states_NSD)
        slots = valid.new_ones(states_NSD.shape[:2])
        return torch.cat((words.to(states_NSD.dtype), states_NSD), 1), torch.cat((valid, slots), 1)

    def _videos(self, queries: Queries) -> Tensor:
        return self._rows(queries.inputs["video"], queries.media_N)

    @staticmethod
    def _rows(values: Tensor, media_N: Tensor) -> Tensor:
        return values[media_N.to(values.device)]


def choose_wrong_questions(video_N: Tensor, *, next_only: bool) -> tuple[Tensor, Tensor]:
    """Return for each row the nearest following row (around the end) that asks about another video, and whether there is one; (N,).

    Args:
        video_N: a number for each video.
        next_only: look at the next row alone, as published.
    """
    rows = len(video_N)
    order_N = torch.arange(rows, device=video_N.device)
    if next_only:
        next_N = (order_N + 1) % rows
        return next_N, video_N[next_N] != video_N
    gap_NN = (order_N[None] - order_N[:, None]) % rows
    gap_NN = gap_NN.masked_fill(video_N[None] == video_N[:, None], rows)
    nearest_N, index_N = gap_NN.min(1)
    return index_N, nearest_N < rows


def _place_among_equals(values_N: Tensor) -> Tensor:
    """Return how many earlier entries equal each entry, (N,)."""
    return torch.tril(values_N[:, None] == values_N[None], diagonal=-1).sum(1)
