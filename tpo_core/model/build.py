"""Join a backbone and a list of heads into a model, with everything that prepares data for it.

This is the one place where codecs, tokens, slots and layout meet; a training script of a dozen lines starts here.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from tpo_core.backbone import Backbone, Layout, LoadedMedium, LoraOptions
from tpo_core.contract import HeadConfig
from tpo_core.errors import ConfigError, HeadNotFound
from tpo_core.head import Codec
from tpo_core.model.model import TPOModel
from tpo_core.model.slot import HeadSlot
from tpo_core.plugins import LoadedHead
from tpo_core.prepare import Collator, SamplePreparer
from tpo_core.router.vocabulary import TaskVocabulary
from tpo_core.types import Tensors, Widths

_TURN_ENDS = ("<|im_end|>", "<end_of_utterance>", "<end_of_turn>", "<|eot_id|>", "<|endoftext|>", "</s>")


@dataclass(frozen=True)
class ModelOptions:
    """What a model is built with beside backbone and heads.

    Args:
        frames: frames of a video that the language model sees.
        max_length: longest sample in tokens.
        lora: adapter on the language model, or None.
        assign_weight: factor of L_assign. assign_every_answer: whether answers in words count in it too.
        start_bias: added to the logits of start tokens where text is generated.
        token_init: ``mean`` (near the vocabulary's mean row) or ``normal`` (drawn with its spread).
        seed: of the new weights.
        allow_outside_root: whether media may lie outside the data's folder.
    """

    frames: int = 8
    max_length: int = 2048
    lora: LoraOptions | None = None
    assign_weight: float = 1.0
    assign_every_answer: bool = False
    start_bias: float = 0.0
    token_init: Literal["mean", "normal"] = "mean"
    seed: int = 0
    allow_outside_root: bool = False


@dataclass(frozen=True)
class Assembly:
    """A model and what belongs to it.

    Args:
        model: the joined model.
        heads, configs, codecs: by head name.
        preparer: records -> prepared samples.
        options: what it was built with.
    """

    model: TPOModel
    heads: dict[str, LoadedHead]
    configs: dict[str, HeadConfig]
    codecs: dict[str, Codec[Any]]
    preparer: SamplePreparer
    options: ModelOptions

    def collator(self, side: Literal["left", "right"] = "right") -> Collator:
        """Return the collator: right-padded for training, left-padded for generation."""
        return Collator(
            layout=self.preparer.layout,
            vocabulary=self.model.vocabulary,
            codecs=self.codecs,
            pad_id=self.model.pad_id,
            side=side,
            every_answer=self.options.assign_every_answer,
        )


def build_model(
    backbone: Backbone,
    heads: Sequence[LoadedHead],
    *,
    configs: Mapping[str, HeadConfig] | None = None,
    options: ModelOptions | None = None,
) -> Assembly:
    """Join a backbone and heads.

    Args:
        backbone: from `load_backbone`; LoRA goes in here where the options ask for it.
        heads: from `Plugins.load_head`.
        configs: head name -> config; a head that is not named gets its defaults.
        options: the rest.

    Raises:
        ConfigError: two heads of one name, or a head that starts from one that is not here.
    """
    options = options or ModelOptions()
    names = [head.name for head in heads]
    if len(set(names)) != len(names) or not names:
        raise ConfigError(f"heads {names}: name each head once, and at least one")
    chosen = {head.name: (configs or {}).get(head.name) or head.config() for head in heads}
    tokenizer = backbone.processor.tokenizer
    vocabulary = TaskVocabulary(backbone.table_rows, {name: config.slots for name, config in chosen.items()})
    known_ids, closing = len(tokenizer), closing_ids(backbone)
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(closing)
    view = backbone.view(options.frames)
    codecs: dict[str, Codec[Any]] = {}
    slots: dict[str, HeadSlot] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        if options.lora is not None:
            backbone.add_lora(options.lora)
        for head in sorted(heads, key=lambda h: h.name):
            with head.blame():
                codecs[head.name] = head.codec(chosen[head.name], view)
                with _weightless(backbone):
                    slots[head.name] = _slot(head, chosen[head.name], backbone.hidden)
    layout = _own_processor(backbone)
    preparer = SamplePreparer(
        processor=layout.processor,
        layout=layout,
        vocabulary=vocabulary,
        codecs=codecs,
        frames=options.frames,
        max_length=options.max_length,
        closing=closing,
        seed=options.seed,
        allow_outside_root=options.allow_outside_root,
    )
    model = TPOModel(
        backbone=backbone,
        slots=slots,
        vocabulary=vocabulary,
        needs_features=frozenset(name for name, codec in codecs.items() if codec.needs_features),
        terms={name: codec.terms for name, codec in codecs.items()},
        known_ids=known_ids,
        closing=closing,
        pad_id=pad_id,
        assign_weight=options.assign_weight,
        start_bias=options.start_bias,
        dummy=_blank_picture(layout),
    )
    _reset_tokens(model, chosen, options)
    return Assembly(model, {h.name: h for h in heads}, chosen, codecs, preparer, options)


def closing_ids(backbone: Backbone) -> frozenset[int]:
    """Return the ids that may close an assistant's turn: those of the generation config, the tokenizer, and known end-of-turn tokens."""
    tokenizer = backbone.processor.tokenizer
    found: set[int] = set()
    eos = getattr(backbone.model.generation_config, "eos_token_id", None)
    found |= set(eos) if isinstance(eos, (list, tuple)) else {eos} if eos is not None else set()
    if tokenizer.eos_token_id is not None:
        found.add(tokenizer.eos_token_id)
    vocabulary = tokenizer.get_vocab()
    found |= {vocabulary[token] for token in _TURN_ENDS if token in vocabulary}
    if not found:
        raise ConfigError(f"{backbone.path}: no token ends an answer; set eos_token_id in its generation config")
    return frozenset(found)


def _weightless(backbone: Backbone) -> AbstractContextManager[Any]:
    """Beside a backbone without weights (a dry run), build modules whose parameters take no memory either."""
    if not backbone.embedding.weight.is_meta:
        return nullcontext()
    from accelerate import init_empty_weights

    context: AbstractContextManager[Any] = init_empty_weights(include_buffers=False)
    return context


def _slot(head: LoadedHead, config: HeadConfig, hidden: int) -> HeadSlot:
    module = head.head(config, Widths(hidden=hidden, features=hidden, words=hidden))
    return HeadSlot(head.name, module, weight=config.weight, detach=config.detach, origin=head.origin)


def _own_processor(backbone: Backbone) -> Layout:
    """Return the layout over a copy of the processor: task strings are added to the copy's tokenizer, never to the backbone's."""
    layout = copy.copy(backbone.layout)
    layout.processor = copy.deepcopy(backbone.processor)
    return layout


def _blank_picture(layout: Layout) -> Tensors:
    import numpy as np

    medium = LoadedMedium("image", np.full((1, 64, 64, 3), 255, dtype=np.uint8), (0.0,), (0.0,), 0.0)
    message = {"role": "user", "content": [*layout.message_parts(medium), {"type": "text", "text": "."}]}
    text = layout.processor.apply_chat_template([message], tokenize=False)
    return layout.join([layout.process(text, [medium]).visual])


def _reset_tokens(model: TPOModel, configs: Mapping[str, HeadConfig], options: ModelOptions) -> None:
    copies = {name: config.init_from for name, config in configs.items() if config.init_from is not None}
    for name, source in copies.items():
        if source not in configs:
            raise HeadNotFound(f"heads.{name}.init_from: this model has no head {source!r}; it has {', '.join(sorted(configs))}")
    tables = [_table(module) for module in (model.backbone.embedding, model.backbone.output)]
    spread = 0.1 if options.token_init == "mean" else 1.0
    if not tables[0].is_meta:
        model.tokens.reset(tables[0], tables[1], copies=copies, seed=options.seed, spread=spread)


def _table(module: nn.Module) -> torch.Tensor:
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    return weight.detach()
