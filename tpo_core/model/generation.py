"""One cached generation pass: the same hooks write slots and read their states while the text is generated.

The state at generated token k arrives one step later, so the forcing processor leaves room for one token after the last slot. Beam search,
several returned sequences and speculative decoding reorder or drop cached rows; there the states are read by one teacher-forced forward
over the chosen text.

Legend: B rows, L length of the prompt, G generated tokens, S slots, D width, W words.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tpo_core.backbone import Vision, merged_rows
from tpo_core.errors import TPOError
from tpo_core.model.model import TPOModel
from tpo_core.router.forcing import TaskTokenForcing
from tpo_core.router.injection import Pass
from tpo_core.types import Batch


@dataclass(frozen=True)
class GenerationOptions:
    """How text is generated.

    Args:
        max_new_tokens: budget of new tokens, slots included.
        num_beams: 1 is greedy or sampled.
        temperature: 0 is greedy.
        top_p: nucleus, used when sampling.
        seed: of the sampling.
        heads: heads that may be called; None allows all.
        start_bias: added to the logits of start tokens; None: the model's own (`TPOModel.start_bias`).

    Raises:
        TPOError: the bias is not a finite number.
    """

    max_new_tokens: int = 128
    num_beams: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    heads: frozenset[str] | None = None
    start_bias: float | None = None

    def __post_init__(self) -> None:
        if self.start_bias is not None and not math.isfinite(self.start_bias):
            raise TPOError(f"start_bias: found {self.start_bias}, expected a finite number, such as -2 (fewer calls of heads) or 0")


@dataclass(frozen=True)
class EmittedQuery:
    """A head that the model called: where its start token stands among the row's new tokens, and what its slots hold."""

    head: str
    position: int
    states_SD: Tensor


@dataclass(frozen=True)
class GeneratedRow:
    """One row's new ids (closing token included) and the queries in them, with the states of its instruction's words."""

    ids: list[int]
    queries: list[EmittedQuery]
    words_WD: Tensor


@dataclass(frozen=True)
class Generated:
    """What a generation gave: the rows, and the batch's vision rows (R, V) for the heads."""

    rows: list[GeneratedRow]
    vision_RV: Tensor | None


@torch.no_grad()
def generate(model: TPOModel, batch: Batch, options: GenerationOptions, *, able: Sequence[frozenset[str]] | None = None) -> Generated:
    """Generate text and task embeddings for a left-padded batch.

    Args:
        able: per row, the heads that can answer about its media; None: all of them.

    Raises:
        TPOError: generation stopped before a slot was fed (a stopping rule other than the budget cut it off).
    """
    backbone = model.backbone
    backbone.prepare_generation()
    vision = backbone.encode(batch.visual.tensors) if batch.visual is not None else None
    table = model.table(batch)
    current = Pass(
        table,
        model.tokens.start_rows(),
        append=True,
        blocked=table.shape[0] - len(model.vocabulary.slots),
        vocabulary=model.known_ids,
    )
    arguments = model.language_inputs(batch, vision) | _text_options(model, batch, options, able)
    if "mm_encoder_outputs" in arguments:
        # Beam search repeats the encoder's outputs in place; the heads and the second way need them as they are.
        arguments["mm_encoder_outputs"] = {key: copy.copy(value) for key, value in arguments["mm_encoder_outputs"].items()}
    devices = [batch.ids_BL.device] if batch.ids_BL.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), model.hooks.active(current):
        torch.manual_seed(options.seed)
        sequences = backbone.model.generate(**arguments)
    length = batch.ids_BL.shape[1]
    new_ids = [_until_closing(row, model.closing) for row in sequences[:, length:].tolist()]
    assert current.hidden_BLD is not None or options.num_beams > 1
    if options.num_beams > 1:
        hidden_BLD = _teacher_forced(model, batch, vision, sequences, table)
        states_BGD = hidden_BLD[:, length:]
    else:
        assert current.hidden_BLD is not None
        hidden_BLD = current.hidden_BLD
        states_BGD = torch.stack(current.states[1:], dim=1) if len(current.states) > 1 else hidden_BLD[:, :0]
    prompt_rows_BLD = hidden_BLD[:, :length]
    rows = [GeneratedRow(ids, _emitted(model, ids, states_BGD[i]), _words(batch, prompt_rows_BLD, i)) for i, ids in enumerate(new_ids)]
    if batch.visual is None or vision is None:
        return Generated(rows, None)
    if vision.outputs is None:
        assert current.embeds_BLD is not None
        repeat = max(1, options.num_beams)
        vision = backbone.gather_merged(current.embeds_BLD[::repeat], batch.visual.positions)
    return Generated(rows, merged_rows(vision))


def _text_options(model: TPOModel, batch: Batch, options: GenerationOptions, able: Sequence[frozenset[str]] | None) -> dict[str, Any]:
    from transformers import LogitsProcessorList

    placeholders = (model.backbone.layout.image_id, model.backbone.layout.video_id)
    every = frozenset(model.vocabulary.names) if options.heads is None else options.heads
    allowed = [every & row for row in able] if able is not None else [every] * len(batch)
    forcing = TaskTokenForcing(
        model.vocabulary,
        prompt_length=batch.ids_BL.shape[1],
        budget=options.max_new_tokens,
        allowed=allowed,
        banned=tuple(token for token in placeholders if token is not None),
        start_bias=model.start_bias if options.start_bias is None else options.start_bias,
    )
    sampling: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if options.temperature > 0:
        sampling = {"do_sample": True, "temperature": options.temperature, "top_p": options.top_p, "top_k": 0}
    return {
        "max_new_tokens": options.max_new_tokens,
        "num_beams": options.num_beams,
        "logits_processor": LogitsProcessorList([forcing]),
        "eos_token_id": sorted(model.closing),
        "pad_token_id": model.pad_id,
        "use_cache": True,
        **sampling,
    }


def _until_closing(ids: list[int], closing: frozenset[int]) -> list[int]:
    for index, token in enumerate(ids):
        if token in closing:
            return ids[: index + 1]
    return ids


def _emitted(model: TPOModel, ids: list[int], states_GD: Tensor) -> list[EmittedQuery]:
    starts: Mapping[int, str] = {model.vocabulary.start_id(name): name for name in model.vocabulary.names}
    queries = []
    for position, token in enumerate(ids):
        name = starts.get(token)
        if name is None:
            continue
        last = position + model.vocabulary.slots[name]
        if last >= states_GD.shape[0]:
            raise TPOError(
                f"generation stopped before the slots of head {name!r} were read ({states_GD.shape[0]} states for token {last}); "
                "raise max_new_tokens or remove the stopping rule"
            )
        queries.append(EmittedQuery(name, position, states_GD[position + 1 : last + 1]))
    return queries


def _words(batch: Batch, prompt_BLD: Tensor, row: int) -> Tensor:
    assert batch.words_BW is not None
    assert batch.words_valid_BW is not None
    flat = prompt_BLD.flatten(0, 1)
    index = batch.words_BW[row][batch.words_valid_BW[row]]
    return flat.index_select(0, index)


def _teacher_forced(model: TPOModel, batch: Batch, vision: Vision | None, sequences: Tensor, table: Tensor) -> Tensor:
    """Return the last hidden states (B, L + G, D) of a forward over the chosen text."""
    model.backbone.prepare_generation()
    extra = sequences.shape[1] - batch.ids_BL.shape[1]
    pad = torch.nn.functional.pad
    longer = Batch(
        ids_BL=sequences,
        mask_BL=pad(batch.mask_BL, (0, extra), value=1),
        learn_K=batch.learn_K[:0],
        label_K=batch.label_K[:0],
        start_K=batch.start_K[:0],
        extra={key: pad(value, (0, extra)) for key, value in batch.extra.items()},
        visual=batch.visual,
        heads={},
        prompts=batch.prompts,
        counts=batch.counts,
        sample_ids=batch.sample_ids,
    )
    current = Pass(table, model.tokens.start_rows(), keep_K=longer.learn_K)
    with model.hooks.active(current):
        model.backbone.model(**model.language_inputs(longer, vision), use_cache=False)
    assert current.hidden_BLD is not None
    return current.hidden_BLD
