"""Frozen values that pass between the rooms. No torch at import: tensors are named in annotations only.

Legend for the letters behind an underscore in a name: B samples (rows of text), L token positions, D width of the language model,
M media of the batch in reading order, T frames (time steps) of a medium, P vision tokens of a frame, V width of the vision features,
N queries of one head, S slots per query, W words, H W (in that order, pixels) height and width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

Tensors = dict[str, "Tensor"]
Answer = dict[str, Any]
"""One decoded answer of one query: JSON-ready, original pixels, seconds of the medium's own clock."""


class Target(BaseModel):
    """One entry of a record's ``targets``: an annotation for a head, or a spatial prompt (``role: prompt``).

    The fields that core reads are declared; a head's own fields (``boxes``, ``spans``, ``rle``, ...) stay in `model_extra` and are
    reached with ``target["boxes"]`` or ``target.get("boxes")``. A head's codec may name a pydantic model that validates them.
    """

    model_config = ConfigDict(extra="allow", frozen=True, populate_by_name=True, allow_inf_nan=False)

    id: str
    head: str | None = None
    role: Literal["answer", "prompt"] = "answer"
    kind: str | None = Field(None, description="of a prompt: box or point")
    serves: str | None = Field(None, alias="for", description="of a prompt: id of the target it serves")
    media: int = Field(0, ge=0, description="index of the media part in reading order")

    def __getitem__(self, key: str) -> Any:
        return (self.model_extra or {})[key]

    def get(self, key: str, default: Any = None) -> Any:
        """Return a head's own field, or the default where it is absent."""
        return (self.model_extra or {}).get(key, default)

    def fields(self) -> dict[str, Any]:
        """Return the head's own fields as a plain dict."""
        return dict(self.model_extra or {})


class MediaInfo(Protocol):
    """What is known of a medium without decoding its frames.

    Attributes:
        kind: ``image`` or ``video``.
        size: (width, height) in original pixels, after EXIF rotation.
        duration: seconds of the clip as cut; 0 for a picture.
        times: start of every frame in seconds on the clip's own clock (first frame of the cut = 0), ascending; ``(0.0,)`` for a picture.
        key: identity of file, cut and modification time, as a short hex string: names what may be cached.
        path: where it lies, for messages.
    """

    @property
    def kind(self) -> Literal["image", "video"]: ...
    @property
    def size(self) -> tuple[int, int]: ...
    @property
    def duration(self) -> float: ...
    @property
    def times(self) -> Sequence[float]: ...
    @property
    def key(self) -> str: ...
    @property
    def path(self) -> str: ...


class Media(MediaInfo, Protocol):
    """A medium whose frames can be read. Frames are decoded once per sample, on demand."""

    def frames(self, indices: Sequence[int]) -> np.ndarray:
        """Return the frames at these indices of `times`, uint8 RGB, shape (n, H, W, 3), original pixels.

        Raises:
            MediaError: the file breaks off or does not decode.
        """
        ...


@dataclass(frozen=True)
class ClipView:
    """One medium as one head's codec sees it in one sample.

    Args:
        media: the medium.
        targets: this head's targets on this medium in this sample; empty at prediction.
        training: random draws are wanted.
        seed: drawn from (run seed, sample, epoch); every call of `rng` starts anew from it, so that `inputs` and `encode` agree.
        frame_indices: the frames (indices of ``media.times``) that the language model sees.
    """

    media: Media
    targets: tuple[Target, ...] = ()
    training: bool = False
    seed: tuple[int, ...] = (0,)
    frame_indices: tuple[int, ...] = ()

    def rng(self) -> np.random.Generator:
        """Return a fresh generator; equal at every call for the same (run seed, sample, epoch)."""
        import numpy as np

        return np.random.Generator(np.random.Philox(np.random.SeedSequence(self.seed)))


@dataclass(frozen=True)
class BackboneView:
    """Plain values of the backbone that a codec may need; no torch module.

    Args:
        model_type: transformers' name of the architecture.
        frames: how many frames of a video the language model sees at most.
        temporal_patch: frames merged into one time step of the features.
        feature_dim: V, width of `FrameFeatures`.
        hidden: D, width of the language model.
    """

    model_type: str
    frames: int
    temporal_patch: int
    feature_dim: int
    hidden: int


@dataclass(frozen=True)
class Widths:
    """What a head is built for: D (task embeddings), V (vision features), width of the words (= D)."""

    hidden: int
    features: int
    words: int


@dataclass(frozen=True)
class FrameFeatures:
    """Vision features that the language model already computed, gathered per medium, in reading order.

    Args:
        frames_MTPV: features; pictures have T = 1, tiled pictures give the base view.
        valid_MTP: bool, False on padding.
        time_MT2: [start, end) in seconds on the clip's own clock.
        grid_M2: (rows, columns) of the P tokens of a frame where they form a grid (rows * columns = valid P), else (1, P). CPU int tensor.
    """

    frames_MTPV: Tensor
    valid_MTP: Tensor
    time_MT2: Tensor
    grid_M2: Tensor

    def select(self, media_N: Tensor) -> FrameFeatures:
        """Return one row per query."""
        index = media_N.to(self.frames_MTPV.device)
        grid = self.grid_M2[media_N.to(self.grid_M2.device)]
        return FrameFeatures(self.frames_MTPV[index], self.valid_MTP[index], self.time_MT2[index], grid)


@dataclass(frozen=True)
class Queries:
    """What a head gets: N queries, routed by position.

    Args:
        states_NSD: last hidden state (after the final norm) at the slots.
        media_N: index of each query's medium into `features` and `inputs` (rows of media that this head has queries on).
        words_NWD, words_valid_NW: last hidden states of the instruction's words (the user's last turn before the query).
        features: `FrameFeatures` of those media, or None for a head whose codec sets ``needs_features = False``.
        inputs: what the codec's `inputs` gave, stacked over those media.
        prompts: what the codec's `encode_prompt` gave, one row per query (zeros without a prompt), with ``prompted_N``.
        prompted_N: bool, whether the query came with a spatial prompt.
    """

    states_NSD: Tensor
    media_N: Tensor
    words_NWD: Tensor
    words_valid_NW: Tensor
    features: FrameFeatures | None = None
    inputs: Tensors = field(default_factory=dict)
    prompts: Tensors = field(default_factory=dict)
    prompted_N: Tensor | None = None

    def __len__(self) -> int:
        return int(self.states_NSD.shape[0])

    def with_media(self, features: FrameFeatures | None, inputs: Tensors) -> Queries:
        """Return the same queries over other features and inputs (a chunk of a long video)."""
        return replace(self, features=features, inputs=inputs)


@dataclass(frozen=True)
class Chunk:
    """A piece of a long medium, for `Head.stream`: the codec's inputs and, where asked for, features of its frames.

    `queries` passes a chunk's frames (indices of ``media.times``) in `Codec.chunks`; core decodes and encodes them and fills `features`.
    """

    inputs: Tensors
    frame_indices: tuple[int, ...] = ()
    features: FrameFeatures | None = None


@dataclass
class HeadBatch:
    """One head's share of a batch; positions are flat (row * L + column).

    Args:
        position_NS: where the slots stand; start_N: where the start tokens stand.
        media_N: index into `media_K`'s rows. media_K: index into the batch's media, of those this head has queries on.
        words_NW: flat positions of the instruction's words, padded with 0; words_valid_NW.
        sample_N: row of the batch, for messages and metrics.
        inputs: stacked over K media. targets: stacked over N, {} at prediction. counts: {term: summed count over N}.
        prompts, prompted_N: see `Queries`.
    """

    position_NS: Tensor
    media_N: Tensor
    media_K: Tensor
    words_NW: Tensor
    words_valid_NW: Tensor
    sample_N: list[int]
    inputs: Tensors = field(default_factory=dict)
    targets: Tensors = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)
    prompts: Tensors = field(default_factory=dict)
    prompted_N: Tensor | None = None

    def __len__(self) -> int:
        return int(self.position_NS.shape[0])


@dataclass
class VisualBatch:
    """The media of a batch as the backbone's processor gave them, and where their features lie.

    Args:
        tensors: the processor's tensors by argument name (``pixel_values``, ``image_grid_thw``, ...).
        rows_MTP: index of every (medium, frame, token) into the flat vision rows: first all rows of the image interface, then all of the
            video interface, each in token order; -1 on padding.
        positions: "image" and "video" -> flat positions (row * L + column) of the vision tokens, in token order.
        time_MT2, grid_M2: see `FrameFeatures`.
        keys: identity of each medium, for the feature cache.
    """

    tensors: Tensors
    rows_MTP: Tensor
    positions: Tensors
    time_MT2: Tensor
    grid_M2: Tensor
    keys: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return int(self.rows_MTP.shape[0])


@dataclass
class KeptStates:
    """What a frozen language model gave for samples of a batch, and which of them it has yet to see (see `StageConfig.keep_states`).

    Args:
        fresh: the samples without states, as a batch of their own that nothing is learnt from; None where there are none.
        fresh_B: their rows in the whole batch.
        owner_M: row of the batch that each of its media belongs to. shape_M: (T, P) of each medium.
        hidden: row -> last hidden states (L, D) of the others. frames: medium -> vision features (T, P, V) of the others.
        names, notes: of every row: under which name its states are kept (empty: they are not), and what else is kept with them.
    """

    fresh: Batch | None
    fresh_B: list[int]
    owner_M: list[int]
    shape_M: list[tuple[int, int]]
    hidden: dict[int, Tensor]
    frames: dict[int, Tensor]
    names: list[str]
    notes: list[str]


@dataclass
class Batch:
    """One micro-batch, ready for `TPOModel.forward`.

    Args:
        ids_BL, mask_BL: token ids (task tokens beyond the vocabulary) and attention mask.
        learn_K: flat positions (row * L + column) whose *next* token is learnt. label_K: the id of that next token: words of the
            assistant, its closing token, start tokens; never slots. start_K: bool, which of them are start tokens.
        extra: other per-token tensors of the processor (``mm_token_type_ids``, ...), shape (B, L).
        visual: None for a batch of plain text.
        heads: head name -> its share; heads without a query are absent.
        prompts: head name -> what `encode_prompt` gave, stacked over that head's prompts in the batch. Their ids follow the
            vocabulary's, heads in order of name.
        words_BW, words_valid_BW: for generation: flat positions of the words of each row's last user turn.
        counts: {"lm": tokens, "assign": start tokens (and answers in words, see `open_K`), "<head>/<term>": count}: this micro-batch's
            denominators.
        sample_ids: the records' ids.
        open_K: bool, which of the learnt tokens open an answer in words; None where L_assign counts start tokens alone.
        kept: states that the language model need not compute again; then `visual` holds no tensors, and its rows count the media's
            frames and tokens one after the other.
    """

    ids_BL: Tensor
    mask_BL: Tensor
    learn_K: Tensor
    label_K: Tensor
    start_K: Tensor
    extra: Tensors
    visual: VisualBatch | None
    heads: dict[str, HeadBatch]
    prompts: dict[str, Tensors]
    counts: dict[str, float]
    sample_ids: list[str]
    words_BW: Tensor | None = None
    words_valid_BW: Tensor | None = None
    open_K: Tensor | None = None
    kept: KeptStates | None = None

    def __len__(self) -> int:
        return int(self.ids_BL.shape[0])

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch with every tensor on the device (counts stay numbers)."""
        moved: Batch = _move(self, device)
        return moved


@dataclass(frozen=True)
class StepOutput:
    """What a trainer sees of a model.

    Args:
        loss: scalar; this micro-batch's share of the step's loss (sums over denominators, weighted). Adding the shares of all
            micro-batches and ranks gives the loss of the whole optimiser step.
        metrics: name -> detached scalar share, additive in the same way.
    """

    loss: Tensor
    metrics: dict[str, Tensor]


class Trainable(Protocol):
    """What a trainer needs of a model (an `nn.Module` as well); it knows nothing else of it."""

    def __call__(self, batch: Batch, denominators: Denominators) -> StepOutput: ...

    def terms(self) -> tuple[str, ...]:
        """Keys of the counts, in an order that is equal on every rank."""
        ...

    def groups(self) -> dict[str, dict[str, torch.nn.Parameter]]:
        """Parameters by group, then by name: ``vision``, ``connector``, ``llm``, ``lora``, ``tokens``, ``heads.<name>``."""
        ...

    def idle_parameters(self, denominators: Denominators) -> list[torch.nn.Parameter]:
        """Parameters that no query of this step reached on any rank: their gradient becomes None, so that momentum does not move them."""
        ...


Denominators = Mapping[str, float]
"""Summed counts of an optimiser step over micro-batches and ranks, by the keys of `Batch.counts`."""


def _move(value: Any, device: torch.device | str) -> Any:
    import dataclasses

    if hasattr(value, "to") and not dataclasses.is_dataclass(value):
        return value.to(device, non_blocking=True)
    if isinstance(value, dict):
        return {key: _move(item, device) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(value, **{f.name: _move(getattr(value, f.name), device) for f in dataclasses.fields(value)})
    return value


__all__ = [
    "Answer",
    "BackboneView",
    "Batch",
    "Chunk",
    "ClipView",
    "Denominators",
    "FrameFeatures",
    "HeadBatch",
    "Media",
    "MediaInfo",
    "Queries",
    "StepOutput",
    "Target",
    "Tensors",
    "Trainable",
    "VisualBatch",
    "Widths",
]
