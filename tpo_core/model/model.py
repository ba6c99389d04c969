"""`TPOModel`: Batch -> StepOutput. Vision once, language model once, then every head on what they gave.

The way of a batch: vision rows -> embeddings with task tokens written in -> language model -> last hidden state -> L_mllm and L_assign ->
gather per head by position -> head slots -> weighted sum (paper, Eq. 1).

Legend: B rows, L positions, D width, K learnt positions, H heads, N queries, S slots, M media, R vision rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tpo_core.backbone import Backbone, Vision, merged_rows
from tpo_core.model.losses import no_start_loss, token_loss
from tpo_core.model.slot import HeadSlot, divisor, total_counts
from tpo_core.router.injection import Pass, TokenHooks
from tpo_core.router.tokens import TaskTokens
from tpo_core.router.vocabulary import TaskVocabulary
from tpo_core.types import Batch, Denominators, FrameFeatures, HeadBatch, KeptStates, Queries, StepOutput, Tensors, VisualBatch

Keep = Callable[[str, str, Tensor, list[Tensor]], None]
"""Takes a sample's name, note, last hidden states (L, D) and vision features (T, P, V) of each of its media."""


@dataclass(frozen=True)
class _States:
    """What vision and language model gave for a batch."""

    logits_KV: Tensor
    starts_KH: Tensor
    hidden_BLD: Tensor
    rows_RV: Tensor | None


class TPOModel(nn.Module):
    """A backbone, the task tokens and the heads, joined.

    Args:
        backbone: with LoRA already injected where a run uses it (hooks go on after).
        slots: head name -> wrapped head.
        vocabulary: ids of the task tokens.
        needs_features: heads whose codec reads `Queries.features`.
        terms: head name -> names of its loss terms (from its codec).
        known_ids: number of ids that the tokenizer itself knows; padded rows above it are never generated.
        closing: ids that end an answer. pad_id: id that pads text.
        assign_weight: factor of L_assign.
        start_bias: added to the logits of start tokens where text is generated, never where the model is trained.
        dummy: visual tensors of one blank picture; while vision or connector trains, a batch without pictures encodes it times zero.

    Attributes:
        keep: where states of a batch's `KeptStates` go that were computed now; None: nowhere.
    """

    def __init__(
        self,
        *,
        backbone: Backbone,
        slots: Mapping[str, HeadSlot],
        vocabulary: TaskVocabulary,
        needs_features: frozenset[str],
        terms: Mapping[str, tuple[str, ...]],
        known_ids: int,
        closing: frozenset[int],
        pad_id: int,
        assign_weight: float = 1.0,
        start_bias: float = 0.0,
        dummy: Tensors | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.tokens = TaskTokens(vocabulary, backbone.hidden)
        self.slots = nn.ModuleDict({name: slots[name] for name in sorted(slots)})
        self.vocabulary = vocabulary
        self.needs_features = needs_features
        self.known_ids = known_ids
        self.closing = closing
        self.pad_id = pad_id
        self.assign_weight = assign_weight
        self.start_bias = start_bias
        self.keep: Keep | None = None
        self._terms = {name: terms[name] for name in vocabulary.names}
        self._dummy = dummy
        self.hooks = TokenHooks(backbone.embedding, backbone.output, backbone.decoder, vocabulary.rows)

    def slot(self, name: str) -> HeadSlot:
        """Return one head's slot."""
        slot = self.slots[name]
        assert isinstance(slot, HeadSlot)
        return slot

    def terms(self) -> tuple[str, ...]:
        """Keys of `Batch.counts`, in an order that is equal on every rank."""
        return ("lm", "assign", *(f"{name}/{term}" for name in self.vocabulary.names for term in self._terms[name]))

    def groups(self) -> dict[str, dict[str, nn.Parameter]]:
        """Parameters by group: ``vision``, ``connector``, ``llm``, ``lora``, ``tokens.<name>``, ``heads.<name>``."""
        groups = {
            group: {f"backbone.model.{name}": parameter for name, parameter in parameters.items()}
            for group, parameters in self.backbone.groups().items()
        }
        for name in self.vocabulary.names:
            groups[f"tokens.{name}"] = {
                f"tokens.inputs.{name}": self.tokens.inputs[name],
                f"tokens.outputs.{name}": self.tokens.outputs[name],
            }
        for name, slot in self.slots.items():
            groups[f"heads.{name}"] = {f"slots.{name}.{key}": parameter for key, parameter in slot.named_parameters()}
        return groups

    def idle_parameters(self, denominators: Denominators) -> list[nn.Parameter]:
        """Parameters of heads, and input rows of tokens, that no query of this step reached on any rank."""
        idle: list[nn.Parameter] = []
        for name, slot in self.slots.items():
            if total_counts(denominators, name) == 0:
                idle += list(slot.parameters())
                idle.append(self.tokens.inputs[name])
        return idle

    def forward(self, batch: Batch, denominators: Denominators) -> StepOutput:
        """Return this micro-batch's share of the step's loss; see `StepOutput`."""
        states = self._states(batch) if batch.kept is None else self._known_states(batch, batch.kept)
        loss, metrics = self._language_loss(batch, states.logits_KV, states.starts_KH, denominators)
        loss = loss + self._dummy_share(batch, states.logits_KV)
        for name, slot in self.slots.items():
            share = batch.heads.get(name)
            queries = self.queries(name, share, batch.visual, states.hidden_BLD, states.rows_RV)
            head_loss, head_metrics = slot(queries, share.targets if share is not None else {}, denominators)
            loss = loss + head_loss
            metrics |= head_metrics
        metrics["loss"] = loss.detach()
        return StepOutput(loss=loss, metrics=metrics)

    def queries(
        self, name: str, share: HeadBatch | None, visual: VisualBatch | None, hidden_BLD: Tensor, rows_RV: Tensor | None
    ) -> Queries:
        """Gather one head's queries by position; without any, N = 0 rows that still hang on the states."""
        flat = hidden_BLD.flatten(0, 1)
        if share is None:
            none = torch.zeros(0, dtype=torch.long, device=flat.device)
            states = flat.index_select(0, none).unsqueeze(1)
            return Queries(states, none, states, torch.zeros(0, 1, dtype=torch.bool, device=flat.device))
        n, s = share.position_NS.shape
        states = flat.index_select(0, share.position_NS.flatten()).view(n, s, -1)
        words = flat.index_select(0, share.words_NW.flatten()).view(*share.words_NW.shape, -1)
        features = None
        if name in self.needs_features and visual is not None and rows_RV is not None:
            features = gather_features(rows_RV, visual, share.media_K)
        return Queries(
            states_NSD=states,
            media_N=share.media_N,
            words_NWD=words * share.words_valid_NW.unsqueeze(-1).to(words.dtype),
            words_valid_NW=share.words_valid_NW,
            features=features,
            inputs=share.inputs,
            prompts=share.prompts,
            prompted_N=share.prompted_N,
        )

    def _states(self, batch: Batch) -> _States:
        vision = self._encode(batch.visual)
        current = Pass(self.table(batch), self.tokens.start_rows(), keep_K=batch.learn_K)
        with self.hooks.active(current):
            logits_KV = self._language(batch, vision)
        assert current.hidden_BLD is not None
        assert current.starts_KH is not None
        return _States(logits_KV, current.starts_KH, current.hidden_BLD, self._vision_rows(batch.visual, vision, current))

    def _known_states(self, batch: Batch, kept: KeptStates) -> _States:
        """Return the states of a batch of which some are known: only the others pass through the language model."""
        fresh = None if kept.fresh is None else self._states(kept.fresh)
        like = fresh.hidden_BLD if fresh is not None else next(iter(kept.hidden.values()))
        hidden_BLD = like.new_zeros(*batch.ids_BL.shape, like.shape[-1])
        for row, hidden_LD in kept.hidden.items():
            hidden_BLD[row, : len(hidden_LD)] = hidden_LD
        frames = dict(kept.frames)
        if fresh is not None and kept.fresh is not None:
            hidden_BLD[kept.fresh_B, : fresh.hidden_BLD.shape[1]] = fresh.hidden_BLD
            frames |= _fresh_frames(kept, fresh.rows_RV)
            self._keep(batch, kept, hidden_BLD, frames)
        rows_RV = torch.cat([frames[medium].flatten(0, 1) for medium in sorted(frames)]) if frames else None
        learnt_KD = hidden_BLD.flatten(0, 1).index_select(0, batch.learn_K)
        starts_KH = learnt_KD @ self.tokens.start_rows().to(learnt_KD.dtype).T
        return _States(self.backbone.output(learnt_KD), starts_KH, hidden_BLD, rows_RV)

    def _keep(self, batch: Batch, kept: KeptStates, hidden_BLD: Tensor, frames: Mapping[int, Tensor]) -> None:
        if self.keep is None:
            return
        for row in kept.fresh_B:
            if kept.names[row]:
                own = [frames[medium] for medium, owner in enumerate(kept.owner_M) if owner == row]
                self.keep(kept.names[row], kept.notes[row], hidden_BLD[row, : int(batch.mask_BL[row].sum())].detach(), own)

    def _encode(self, visual: VisualBatch | None) -> Vision | None:
        return self.backbone.encode(visual.tensors) if visual is not None else None

    def table(self, batch: Batch) -> Tensor:
        """Rows for ids beyond the vocabulary: task tokens, then this batch's prompts, heads in order of name."""
        rows = [self.tokens.table()]
        for name in self.vocabulary.names:
            embedded = self.slot(name).embed_prompts(batch.prompts.get(name), self.backbone.hidden)
            rows.append(embedded.to(rows[0].device, rows[0].dtype))
        return torch.cat(rows)

    def language_inputs(self, batch: Batch, vision: Vision | None) -> dict[str, Any]:
        """Return the keyword arguments of the backbone's forward or generate for a batch."""
        names = self.backbone.argument_names()
        inputs: dict[str, Any] = {"input_ids": batch.ids_BL, "attention_mask": batch.mask_BL}
        inputs |= {key: value for key, value in batch.extra.items() if key in names}
        if batch.visual is not None and vision is not None:
            pixels = () if vision.outputs is None else ("pixel_values", "pixel_values_videos")
            inputs |= {k: v for k, v in batch.visual.tensors.items() if k in names and k not in pixels}
            if vision.outputs is not None:
                inputs["mm_encoder_outputs"] = vision.outputs
        return inputs

    def _language(self, batch: Batch, vision: Vision | None) -> Tensor:
        inputs = self.language_inputs(batch, vision)
        out = self.backbone.model(**inputs, use_cache=False)
        logits: Tensor = out.logits
        return logits.flatten(0, -2)

    def _language_loss(
        self, batch: Batch, logits_KV: Tensor, starts_KH: Tensor, denominators: Denominators
    ) -> tuple[Tensor, dict[str, Tensor]]:
        loss_K = token_loss(logits_KV, starts_KH, batch.label_K, self.vocabulary.rows)
        zero = torch.zeros_like(loss_K)
        words = torch.where(batch.start_K, zero, loss_K).sum() / divisor(denominators, "lm")
        chosen = torch.where(batch.start_K, loss_K, zero).sum()
        if batch.open_K is not None:
            chosen = chosen + no_start_loss(logits_KV[batch.open_K], starts_KH[batch.open_K]).sum()
        assign = chosen / divisor(denominators, "assign")
        # A batch without a learnt position still hangs on the language model, so that ranks stay in step.
        loss = words + self.assign_weight * assign + logits_KV[:1, :1].float().sum() * 0.0
        return loss, {"lm": words.detach(), "assign": assign.detach()}

    def _vision_rows(self, visual: VisualBatch | None, vision: Vision | None, current: Pass) -> Tensor | None:
        if visual is None or vision is None:
            return None
        if vision.outputs is None:
            assert current.embeds_BLD is not None
            vision = self.backbone.gather_merged(current.embeds_BLD, visual.positions)
        return merged_rows(vision)

    def _dummy_share(self, batch: Batch, like: Tensor) -> Tensor:
        """While vision or connector trains, keep a rank without a picture in step: encode a blank one, times zero."""
        zero = like.new_zeros((), dtype=torch.float32)
        if not self.training or self._dummy is None or batch.visual is not None or not self._vision_trains():
            return zero
        vision = self.backbone.encode({key: value.to(like.device) for key, value in self._dummy.items()})
        rows = merged_rows(vision)
        return zero if rows is None else rows.float().sum() * 0.0

    def _vision_trains(self) -> bool:
        groups = self.backbone.groups()
        return any(p.requires_grad for group in ("vision", "connector") for p in groups[group].values())


def _fresh_frames(kept: KeptStates, rows_RV: Tensor | None) -> dict[int, Tensor]:
    """Return the features (T, P, V) of the media that were encoded now, zeros on padding, by their place in the whole batch."""
    fresh_M = [medium for medium, row in enumerate(kept.owner_M) if row in kept.fresh_B]
    if not fresh_M:
        return {}
    assert kept.fresh is not None
    assert kept.fresh.visual is not None
    assert rows_RV is not None
    out = {}
    for rows_TP, medium in zip(kept.fresh.visual.rows_MTP, fresh_M, strict=True):
        steps, tokens = kept.shape_M[medium]
        index = rows_TP[:steps, :tokens]
        frames = rows_RV.index_select(0, index.clamp(min=0).flatten()).view(steps, tokens, -1)
        out[medium] = frames * (index >= 0).unsqueeze(-1).to(frames.dtype)
    return out


def gather_features(rows_RV: Tensor, visual: VisualBatch, media_K: Tensor) -> FrameFeatures:
    """Return the features of some media of a batch, (K, T, P, V), zeros on padding."""
    index_KTP = visual.rows_MTP.index_select(0, media_K)
    valid_KTP = index_KTP >= 0
    flat = rows_RV.index_select(0, index_KTP.clamp(min=0).flatten())
    frames = flat.view(*index_KTP.shape, -1) * valid_KTP.unsqueeze(-1).to(flat.dtype)
    return FrameFeatures(
        frames_MTPV=frames,
        valid_MTP=valid_KTP,
        time_MT2=visual.time_MT2.index_select(0, media_K),
        grid_M2=visual.grid_M2.index_select(0, media_K),
    )
