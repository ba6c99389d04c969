"""CG-DETR: correlation-guided moment retrieval and highlight detection (Moon et al., arXiv 2311.08835), from features to windows.

Legend: N queries, T clips (time steps), L words (the task embedding among them), K dummies, G global tokens, Q moment queries,
C hidden width, J decoder layers. Windows are cxw: centre and width in 0-1 of the time that the clips cover. Class 0 is the foreground.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tpo_core.types import Tensors
from tpo_heads.temporal.alignment import DummyEncoder, MomentEncoder, SentenceEncoder
from tpo_heads.temporal.config import TemporalConfig
from tpo_heads.temporal.decoder import MomentDecoder, inverse_sigmoid
from tpo_heads.temporal.faults import crossed_negative_mask, crossed_text_mask
from tpo_heads.temporal.layers import EncoderLayer, InputProjection, Perceptron, TextAttentionLayer, sine_code, split_text

TINY = 1e-6


@dataclass(frozen=True)
class Text:
    """What the clips look at: dummies first, then words."""

    tokens_NKC: Tensor
    places_NKC: Tensor
    seen_NK: Tensor

    def take(self, index_N: Tensor) -> Text:
        """Return the text of other rows."""
        return Text(self.tokens_NKC[index_N], self.places_NKC[index_N], self.seen_NK[index_N])

    def then(self, other: Text) -> Text:
        """Return these rows followed by those."""
        pairs = zip((self.tokens_NKC, self.places_NKC, self.seen_NK), (other.tokens_NKC, other.places_NKC, other.seen_NK))
        tokens, places, seen = (torch.cat(pair) for pair in pairs)
        return Text(tokens, places, seen)


class CGDETR(nn.Module):
    """The published network without its unused weights; the task embedding is one more word.

    Args:
        config: sizes.
        clip_width, text_width: widths of the features that `forward` gets.
    """

    def __init__(self, config: TemporalConfig, *, clip_width: int, text_width: int) -> None:
        super().__init__()
        self.config = config
        width, heads, inner, dropout = config.hidden, config.attention_heads, config.inner_width, config.dropout
        self.clip_input = InputProjection(clip_width, width, config.input_dropout)
        self.text_input = InputProjection(text_width, width, config.input_dropout)
        self.kinds = nn.Embedding(2, width)
        text_heads = config.sentence_heads or heads
        self.dummies = DummyEncoder(width, text_heads, inner, dropout, layers=config.dummy_layers, dummies=config.dummies)
        self.sentences = SentenceEncoder(width, text_heads, inner, dropout, layers=config.sentence_layers)
        self.moments = MomentEncoder(width, heads, inner, dropout, layers=config.moment_layers)
        self.text_attention = nn.ModuleList(TextAttentionLayer(width, heads, inner, dropout) for _ in range(config.text_layers))
        self.global_GC = nn.Parameter(torch.randn(config.global_tokens, width))
        self.global_place_C = nn.Parameter(torch.randn(width))
        self.encoder = nn.ModuleList(EncoderLayer(width, heads, inner, dropout) for _ in range(config.encoder_layers))
        self.decoder = MomentDecoder(width, heads, inner, dropout, layers=config.decoder_layers, queries=config.moment_queries)
        self.window = Perceptron((width, width, width, 2))
        self.label = Perceptron((width, 2))
        self.saliency_clip, self.saliency_global = Perceptron((width, width)), Perceptron((width, width))
        self._reset()

    def _reset(self) -> None:
        nn.init.normal_(self.kinds.weight, std=0.02)
        for part in (self.moments.layers, self.text_attention, self.encoder, self.decoder.layers):
            for weight in part.parameters():
                if weight.ndim > 1:
                    nn.init.xavier_uniform_(weight)
        if self.decoder.refine is not None:
            # Every layer starts by keeping the window of the layer below.
            last = self.decoder.refine.layers[-1]
            assert isinstance(last, nn.Linear)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(
        self,
        clips_NTV: Tensor,
        valid_NT: Tensor,
        ends_NT: Tensor,
        text_NLD: Tensor,
        text_valid_NL: Tensor,
        *,
        moment_NT: Tensor | None = None,
        negative_N: Tensor | None = None,
        has_negative_N: Tensor | None = None,
    ) -> Tensors:
        """Return windows, logits and saliency; with `moment_NT` also what the training losses read.

        Args:
            clips_NTV: features of the clips, position channels included; zeros on padding.
            valid_NT: bool.
            ends_NT: end of each clip in 0-1 of the covered time; 1 on padding.
            text_NLD: words and task embedding; text_valid_NL: bool.
            moment_NT: bool, which clips are in the moment (training).
            negative_N: for each row, the row whose text is put to this row's clips as a wrong question (training), or None.
            has_negative_N: bool, whether that row really shows something else; the others' results are not to be read.

        Returns:
            ``spans`` (N, Q, 2), ``logits`` (N, Q, 2), ``saliency`` (N, T), ``attention`` (N, T, K + L): text attention. In training:
            ``lower_spans``, ``lower_logits`` (N, J - 1, Q, 2), ``dummies`` (N, K, C), ``globals`` (N, G, C), ``moment_token``,
            ``other_token``, ``sentence_token``, ``dummy_token`` (N, C), ``framed`` (N, T, C), ``similarity`` (N, T, K + L) and, with
            `negative_N`, ``negative_saliency`` (N, T), ``negative_attention`` (N, T, K + L).
        """
        rows = clips_NTV.shape[0]
        video_NTC = self.clip_input(clips_NTV) + self.kinds.weight[1]
        words_NLC = self.text_input(text_NLD) + self.kinds.weight[0]
        place_NTC = sine_code(ends_NT, self.config.hidden).to(video_NTC.dtype)
        dummy_NKC = self.dummies(words_NLC, text_valid_NL)
        text = self._text(dummy_NKC, words_NLC, text_valid_NL)
        if moment_NT is None or negative_N is None:
            all_video, all_place, all_valid = video_NTC, place_NTC, valid_NT
        else:
            # The wrong questions ride along as further rows, up to the encoder's end: the decoder has nothing to learn from them.
            text = text.then(text.take(negative_N))
            all_video, all_place, all_valid = (torch.cat((part, part)) for part in (video_NTC, place_NTC, valid_NT))
        seen = self._seen(valid_NT, text, has_negative_N)
        local, saliency, attention = self._encode(all_video, all_place, all_valid, text, seen)
        output = self._decode(local[:rows], place_NTC, valid_NT, training=moment_NT is not None)
        output |= {"saliency": saliency[:rows], "attention": attention[:rows]}
        if moment_NT is None:
            return output
        if negative_N is not None:
            output |= {"negative_saliency": saliency[rows:], "negative_attention": attention[rows:]}
        return output | self._align(video_NTC, place_NTC, valid_NT, moment_NT, dummy_NKC, words_NLC, text_valid_NL)

    def _text(self, dummy_NKC: Tensor, words_NLC: Tensor, valid_NL: Tensor) -> Text:
        rows, dummies = dummy_NKC.shape[:2]
        place_NKC = self.dummies.place_KC.to(words_NLC.dtype).expand(rows, -1, -1)
        return Text(
            torch.cat((dummy_NKC, words_NLC), 1),
            torch.cat((place_NKC, torch.zeros_like(words_NLC)), 1),
            torch.cat((valid_NL.new_ones(rows, dummies), valid_NL), 1),
        )

    def _seen(self, valid_NT: Tensor, text: Text, has_negative_N: Tensor | None) -> Tensor:
        """Return which text the clips of each row see, broadcast to (rows of the text, A, T, K + L)."""
        if not self.config.release_faults:
            return text.seen_NK[:, None, None]
        rows, heads = valid_NT.shape[0], self.config.attention_heads
        masks = [crossed_text_mask(valid_NT, text.seen_NK[:rows], heads)]
        if text.seen_NK.shape[0] > rows and has_negative_N is not None:
            masks.append(crossed_negative_mask(valid_NT, text.seen_NK[rows:], heads, has_negative_N))
        return torch.cat(masks)

    def _encode(self, video_NTC: Tensor, place_NTC: Tensor, valid_NT: Tensor, text: Text, seen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return clips that have seen text and one another (N, T, C), saliency (N, T), text attention (N, T, K + L)."""
        keys, values = split_text(text.tokens_NKC, text.places_NKC, self.config.attention_heads, self.config.dummies)
        clips_NTC, maps = video_NTC, []
        for layer in self.text_attention:
            clips_NTC, attention = layer(clips_NTC, place_NTC, keys, values, seen)
            maps.append(attention)
        attention_NTK = torch.stack(maps).mean(0)
        token_N1C = self._saliency_token(video_NTC, valid_NT, attention_NTK[..., self.config.dummies :].sum(-1))
        x = torch.cat((token_N1C, clips_NTC), 1)
        place = torch.cat((self.global_place_C.to(x.dtype).expand(x.shape[0], 1, -1), place_NTC), 1)
        there = torch.cat((valid_NT.new_ones(x.shape[0], 1), valid_NT), 1)[:, None, None]
        for layer in self.encoder:
            x = layer(x, place, there)
        local_NTC = x[:, 1:] + x[:, :1]
        return local_NTC, self._saliency(local_NTC, x[:, 0]), attention_NTK

    def _saliency_token(self, video_NTC: Tensor, valid_NT: Tensor, importance_NT: Tensor) -> Tensor:
        """Return (N, 1, C): the mean clip plus the global tokens that fit the important clips best.

        As published, the mean takes no gradient, and the token passes the text attention with nothing to look at.
        """
        weight_NT = valid_NT.float()
        mean_NC = torch.einsum("nt,ntc->nc", weight_NT, video_NTC.detach().float()) / weight_NT.sum(1, keepdim=True).clamp(min=1)
        apart_NTC = F.normalize(video_NTC.float() - mean_NC[:, None], dim=-1)
        global_GC = self.global_GC.float()
        fit_NTG = (apart_NTC @ F.normalize(global_GC, dim=-1).T).softmax(-1)
        weight_NT = importance_NT.detach() * weight_NT
        weight_NT = weight_NT / weight_NT.sum(1, keepdim=True).clamp(min=TINY)
        fit_NG = torch.einsum("nt,ntg->ng", weight_NT, fit_NTG)
        best = fit_NG.topk(self.config.global_best, dim=1)
        token_NC = torch.einsum("nb,nbc->nc", best.values, global_GC[best.indices]) + mean_NC
        token_N1C = token_NC[:, None].to(video_NTC.dtype)
        for layer in self.text_attention:
            assert isinstance(layer, TextAttentionLayer)
            token_N1C = layer.without_text(token_N1C)
        return token_N1C

    def _saliency(self, local_NTC: Tensor, global_NC: Tensor) -> Tensor:
        """Return <clip projection, global projection> / sqrt(C) in float32; the clips' weight is applied to the one global vector."""
        clip = self.saliency_clip.layers[0]
        assert isinstance(clip, nn.Linear)
        with torch.autocast(local_NTC.device.type, enabled=False):
            query_NC = self.saliency_global(global_NC)
            score_NT = torch.einsum("ntc,nc->nt", local_NTC.float(), query_NC @ clip.weight.float())
            score_NT = score_NT + (query_NC @ clip.bias.float())[:, None]
            saliency_NT: Tensor = score_NT / math.sqrt(self.config.hidden)
            return saliency_NT

    def _decode(self, local_NTC: Tensor, place_NTC: Tensor, valid_NT: Tensor, *, training: bool) -> Tensors:
        hidden_JNQC, starts_JNQ2 = self.decoder(local_NTC, place_NTC, valid_NT)
        if not training:
            hidden_JNQC, starts_JNQ2 = hidden_JNQC[-1:], starts_JNQ2[-1:]
        logits_JNQ2 = self.label(hidden_JNQC)
        spans_JNQ2 = (self.window(hidden_JNQC) + inverse_sigmoid(starts_JNQ2)).sigmoid()
        output = {"spans": spans_JNQ2[-1], "logits": logits_JNQ2[-1]}
        if training:
            output |= {"lower_spans": spans_JNQ2[:-1].transpose(0, 1), "lower_logits": logits_JNQ2[:-1].transpose(0, 1)}
        return output

    def _align(
        self,
        video_NTC: Tensor,
        place_NTC: Tensor,
        valid_NT: Tensor,
        moment_NT: Tensor,
        dummy_NKC: Tensor,
        words_NLC: Tensor,
        text_valid_NL: Tensor,
    ) -> Tensors:
        moment_NC, other_NC, framed_NTC = self.moments(video_NTC, place_NTC, valid_NT, moment_NT)
        sentence_NC, dummy_NC, text_NKC = self.sentences(dummy_NKC, self.dummies.place_KC, words_NLC, text_valid_NL)
        return {
            "moment_token": moment_NC,
            "other_token": other_NC,
            "sentence_token": sentence_NC,
            "dummy_token": dummy_NC,
            "framed": framed_NTC,
            "similarity": framed_NTC.detach().float() @ text_NKC.float().transpose(1, 2),
            "dummies": dummy_NKC,
            "globals": self.global_GC.expand(video_NTC.shape[0], -1, -1),
        }
