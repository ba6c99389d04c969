"""Options of the temporal head."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tpo_core.contract import HeadConfig


class FeatureFiles(BaseModel):
    """Where precomputed features lie (``source: files``). Patterns may use {stem} and {dir} of the clip's file.

    Word patterns may use a target's own fields as well, such as {id} or {qid}.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    clips: tuple[str, ...] = Field(min_length=1, description="patterns of clip features (.npz, .npy, .safetensors); several are joined")
    clip_key: str = Field("features", description="name of the array inside a file of clip features")
    clip_width: int = Field(ge=1, description="width of the clip features (joined)")
    clip_seconds: float = Field(gt=0, description="length of a clip in seconds")
    words: str | None = Field(None, description="pattern of word features; null: the language model's own words are used")
    word_key: str = Field("last_hidden_state", description="name of the array inside a file of word features")
    word_width: int | None = Field(None, ge=1, description="width of the word features")
    max_words: int = Field(100, ge=1, description="further words are cut off")
    normalize: bool = Field(True, description="scale every row to length 1 (each file's rows by themselves)")

    @model_validator(mode="after")
    def _words_have_a_width(self) -> Self:
        if (self.words is None) != (self.word_width is None):
            raise ValueError("give words and word_width together, or neither")
        return self


class TemporalConfig(HeadConfig):
    """Sizes and weights default to the published CG-DETR; small worlds want a small ``hidden`` and one layer of each kind."""

    kind: Literal["cg_detr", "mlp"] = Field("cg_detr", description="cg_detr, or a plain MLP on the task embedding (the paper's ablation)")
    source: Literal["backbone", "files"] = Field("backbone", description="features that the model computed, or precomputed ones")
    files: FeatureFiles | None = Field(None, description="where precomputed features lie, for source: files")
    pooling: Literal["query", "mean"] = Field(
        "query", description="a frame's tokens become one vector: by attention of the question, or by their mean"
    )

    hidden: int = Field(256, ge=8, description="width of the head; a multiple of 4 and of attention_heads")
    attention_heads: int = Field(8, ge=1, description="attention heads")
    sentence_heads: int | None = Field(
        None, ge=1, description="heads of the dummies' and sentence encoders (the published code always has 8); null: attention_heads"
    )
    inner_width: int = Field(1024, ge=1, description="inner width of the feed-forward layers")
    dummy_layers: int = Field(2, ge=1, description="layers that condition the dummies on the words")
    text_layers: int = Field(2, ge=1, description="layers in which clips attend to the text")
    encoder_layers: int = Field(3, ge=1, description="self-attention layers over the clips")
    decoder_layers: int = Field(3, ge=1, description="layers that refine the windows")
    sentence_layers: int = Field(1, ge=1, description="layers of the sentence token (training only)")
    moment_layers: int = Field(1, ge=1, description="layers of the moment token (training only)")
    moment_queries: int = Field(10, ge=1, description="windows that are predicted")
    dummies: int = Field(45, ge=1, description="learnt tokens that take up attention which belongs to no word")
    global_tokens: int = Field(10, ge=1, description="learnt tokens from which the saliency token is made")
    global_best: int = Field(1, ge=1, description="how many of them are used per query")
    dropout: float = Field(0.1, ge=0, lt=1, description="in attention, feed-forward and whole residual branches")
    input_dropout: float = Field(0.5, ge=0, lt=1, description="on the raw features")

    span_weight: float = Field(10.0, ge=0, description="mean |d| of centre and width")
    giou_weight: float = Field(1.0, ge=0, description="1 - generalised temporal IoU")
    label_weight: float = Field(4.0, ge=0, description="cross-entropy of foreground and background")
    saliency_weight: float = Field(4.0, ge=0, description="the terms on saliency scores")
    attention_weight: float = Field(1.0, ge=0, description="the same terms on the text attention, relative to saliency_weight")
    align_weight: float = Field(1.0, ge=0, description="moment and sentence tokens of the batch agree")
    distill_weight: float = Field(1.0, ge=0, description="text attention follows the similarity of clips and words")
    orthogonal_weight: float = Field(1.0, ge=0, description="dummies differ from one another, global tokens too")
    background_weight: float = Field(0.1, ge=0, description="factor of background queries in the label term")
    saliency_margin: float = Field(0.2, ge=0, description="by how much a clip of the moment should score above another")
    match_span: float = Field(10.0, ge=0, description="matching cost of |d|")
    match_giou: float = Field(1.0, ge=0, description="matching cost of generalised IoU")
    match_label: float = Field(4.0, ge=0, description="matching cost of the class probability")
    release_faults: bool = Field(
        False, description="reproduce the published code's faults, for comparison only (docs/temporal-head.md lists them)"
    )

    window_seconds: float = Field(150.0, gt=0, description="longer clips are predicted in overlapping windows of this length")
    window_overlap: float = Field(0.5, ge=0, lt=1, description="share of a window that the next one repeats")
    saliency_rank: float = Field(
        0.0,
        ge=0,
        description="how much a window's saliency, less that outside it, adds to its score's log-odds in the answer; published: 0. The "
        "saliency is learnt long before the windows' classes are",
    )
    min_score: float = Field(0.0, ge=0, lt=1, description="windows that do not score above this are left out of the answer")
    nms: float | None = Field(None, gt=0, le=1, description="drop windows whose IoU with a better one is above this; null keeps all")
    merge_nms: float = Field(0.7, gt=0, le=1, description="the same where windows of a long clip are merged")
    round_to: float = Field(0.0, ge=0, description="round windows to multiples of this many seconds; 0: do not")
    overrun: float = Field(0.05, ge=0, description="share of the clip by which an annotated window may pass its end; it is clipped")

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        heads = self.attention_heads, self.sentence_heads or self.attention_heads
        if self.hidden % 4 or any(self.hidden % count for count in heads):
            raise ValueError(f"hidden is {self.hidden}; it must be a multiple of 4 and of the numbers of heads {heads}")
        if self.global_best > self.global_tokens:
            raise ValueError(f"global_best is {self.global_best}, but there are only {self.global_tokens} global_tokens")
        if (self.source == "files") != (self.files is not None):
            raise ValueError("give `files` with source: files, and only then")
        return self

    @property
    def queries(self) -> int:
        """Return how many windows the head predicts for a query."""
        return self.moment_queries if self.kind == "cg_detr" else 1

    @property
    def factors(self) -> dict[str, float]:
        """Return the factor of each loss term; ``_0``, ``_1``, .. are the lower decoder layers."""
        windows = {"span": self.span_weight, "giou": self.giou_weight, "label": self.label_weight}
        if self.kind == "mlp":
            return windows
        factors = dict(windows)
        for layer in range(self.decoder_layers - 1):
            factors |= {f"{name}_{layer}": weight for name, weight in windows.items()}
        for name, weight in (("saliency", self.saliency_weight), ("attention", self.saliency_weight * self.attention_weight)):
            factors |= {f"{name}_{part}": weight for part in ("margin", "rank", "negative")}
        factors["attention_words"] = self.saliency_weight * self.attention_weight
        factors |= {f"align_{part}": self.align_weight for part in ("sentence", "dummy", "clips")}
        return {**factors, "distill": self.distill_weight, "orthogonal": self.orthogonal_weight}
