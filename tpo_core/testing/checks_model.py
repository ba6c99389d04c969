"""Checks of the head: small batches on the CPU, as core would make them."""

from __future__ import annotations

import copy
import json
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from tpo_core.head import Head
from tpo_core.model.slot import HeadSlot
from tpo_core.stack import stack_rows
from tpo_core.testing.case import VIEW, Case, Small
from tpo_core.testing.compare import answers_differ, tensors_differ
from tpo_core.testing.report import CheckFailed, doing
from tpo_core.types import Answer, Queries, Tensors

ALL = (0, 1, 2)
ROW = 1
"""The query that is changed to see whether the others notice."""


def check_batch(case: Case) -> None:
    """The head runs on one query and on three, in training and in evaluation; what it returns is N long."""
    with doing(f"{case.loaded.head.__name__}(config, widths)"):
        head = case.head()
    for picks in ((0,), ALL):
        for training in (True, False):
            mode = "training" if training else "evaluation"
            what = f"with N = {len(picks)}, in {mode}"
            with doing(f"making a batch {what}"):
                small = case.small(picks, training=training)
            head.train(training)
            with doing(f"Head.forward {what}"):
                output = head(small.queries, small.targets if training else None)
            _demand_rows(output, len(picks), what)
            with doing(f"Head.loss {what}"):
                head.loss(head(small.queries, small.targets), small.targets)


def check_wrapper(case: Case) -> None:
    """Core's wrapper gives a zero for N = 0 that reaches every trainable parameter and the states."""
    head = case.head().train()
    states_1D = torch.randn(1, VIEW.hidden, requires_grad=True)
    none = torch.zeros(0, dtype=torch.long)
    states_NSD = states_1D.index_select(0, none).unsqueeze(1)
    queries = Queries(states_NSD, none, states_NSD, torch.zeros(0, 1, dtype=torch.bool))
    name = case.spec.name
    try:
        slot = HeadSlot(name, head, weight=1.0, detach=False)
        loss, _ = slot(queries, {}, {f"{name}/{term}": 0.0 for term in case.codec.terms})
        torch.autograd.backward(loss)
    except Exception as error:
        raise CheckFailed(
            f"core's wrapper raised {type(error).__name__}: {error} for N = 0, before the first query; "
            f"make every parameter in __init__, with its final shape (no lazy modules)"
        ) from error
    value = float(loss.detach())
    if value != 0.0:
        raise CheckFailed(f"core's wrapper gave a loss of {value} for N = 0, expected 0; a parameter is not finite at the start")
    missing = [key for key, parameter in head.named_parameters() if parameter.requires_grad and parameter.grad is None]
    if missing or states_1D.grad is None:
        raise CheckFailed(f"for N = 0 the zero does not reach {missing or 'the states'}; ranks without queries would hang")


def check_losses(case: Case) -> None:
    """Every loss term has one finite number per query."""
    for picks in ((0,), ALL):
        for name, rows_N in _losses(case, case.head().train(), case.small(picks, training=True)).items():
            if not isinstance(rows_N, Tensor) or rows_N.shape != (len(picks),):
                shape = tuple(getattr(rows_N, "shape", ()))
                raise CheckFailed(
                    f"loss term {name!r} has shape {shape} for N = {len(picks)}, expected ({len(picks)},): the sum over each query's own "
                    f"boxes or frames; only core divides and adds over queries"
                )
            if not rows_N.dtype.is_floating_point or not bool(torch.isfinite(rows_N).all()):
                raise CheckFailed(f"loss term {name!r} is {rows_N.tolist()} ({rows_N.dtype}), expected finite floats")


def check_gradient(case: Case) -> None:
    """The loss changes the task embeddings: that is what teaches the language model."""
    small = case.small(ALL, training=True)
    states_NSD = small.queries.states_NSD.requires_grad_()
    head = case.head().train()
    total = _total(_losses(case, head, small), head)
    if total.requires_grad:
        torch.autograd.backward(total)
    if states_NSD.grad is None:
        raise CheckFailed("no gradient reaches the task embedding (Queries.states_NSD); do not detach it or take its argmax")
    if not bool(torch.isfinite(states_NSD.grad).all()):
        raise CheckFailed("the gradient of the task embedding is not finite; look for a square root or a logarithm at zero")
    silent = [slot for slot in range(states_NSD.shape[1]) if not bool(states_NSD.grad[:, slot].any())]
    if silent:
        raise CheckFailed(f"no gradient reaches slot {silent} of {states_NSD.shape[1]}; read every slot, or lower the default of `slots`")


def check_mixing(case: Case) -> None:
    """A query's output and loss do not change with the other queries of the batch, nor with their number."""
    head = case.head()
    alone, together = case.small((0,)), case.small(ALL)
    other = case.small(ALL, shift={ROW: 2})
    kept = [n for n in ALL if n != ROW]
    head.eval()
    difference = tensors_differ(_forward(head, together), _forward(head, other), kept)
    if difference:
        raise CheckFailed(f"in evaluation, outputs of two queries change with a third: {difference}; treat each row on its own")
    for training in (False, True):
        head.train(training)
        ours, theirs = (_rows(case, head, small) for small in (together, other))
        difference = tensors_differ(ours, theirs, kept)
        if difference:
            mode = "training" if training else "evaluation"
            raise CheckFailed(
                f"in {mode}, losses of two queries change with a third: {difference}; treat each row on its own (no batch norm, no "
                f"mean over N), or name the term in Head.mixing_terms"
            )
    head.eval()
    difference = tensors_differ(_rows(case, head, alone), _rows(case, head, together), [0])
    if difference:
        raise CheckFailed(
            f"a query's loss changes with the size of the batch: {difference}; sum over the query's own entries, use the `_valid` masks of "
            f"ragged tensors, and leave every division to core"
        )


def check_targets(case: Case) -> None:
    """What is decoded in evaluation is the same whether targets are given or not, and whichever."""
    head = case.head().eval()
    small = case.small(ALL)
    plain = _answers(case, small, _forward(head, small))
    for what, targets in (("its targets", small.targets), ("other targets", {k: v.roll(1, 0) for k, v in small.targets.items()})):
        with doing(f"Head.forward in evaluation with {what}"):
            output = _forward(head, small, targets)
        difference = answers_differ(plain, _answers(case, small, output))
        if difference:
            raise CheckFailed(
                f"with {what}, the decoded answer differs from that without: {difference}; a score would be better than the model is: "
                f"use targets for the loss only"
            )


def check_eval(case: Case) -> None:
    """In evaluation the same queries give the same output, whatever the state of the global generator."""
    head = case.head().eval()
    small = case.small(ALL)
    difference = tensors_differ(_forward(head, small, seed=1), _forward(head, small, seed=2))
    if difference:
        raise CheckFailed(f"in evaluation the same queries gave other outputs the second time: {difference}; obey self.training")


def check_bf16(case: Case) -> None:
    """Forward, loss, gradient and decode work under bfloat16 autocast with bfloat16 states and features."""
    head = case.head().train()
    with doing("making a bfloat16 batch"):
        small = case.small(ALL, training=True, dtype=torch.bfloat16)
    small.queries.states_NSD.requires_grad_()
    with doing("Head.forward and Head.loss under bfloat16 autocast"):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses = head.loss(head(small.queries, small.targets), small.targets)
        torch.autograd.backward(_total(losses, head))
    odd = {name: rows_N.tolist() for name, rows_N in losses.items() if not bool(torch.isfinite(rows_N.float()).all())}
    if odd:
        raise CheckFailed(f"under bfloat16 autocast the loss is {odd}; compute exponents, logarithms and small differences in float32")
    head.eval()
    small = case.small(ALL, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = _forward(head, small)
    with doing("Codec.decode of a bfloat16 output (call .float() before .numpy())"):
        for n, clip in enumerate(small.clips):
            case.codec.decode({name: tensor[n] for name, tensor in output.items()}, clip)


def check_state(case: Case) -> None:
    """A head loaded from another's safetensors gives the same output."""
    ours, theirs = case.head(seed=0).eval(), case.head(seed=1).eval()
    small = case.small(ALL)
    expected = _forward(ours, small)
    try:
        saved = save_tensors({key: value.contiguous() for key, value in ours.state_dict().items()})
    except Exception as error:
        raise CheckFailed(
            f"the state dict cannot be written as safetensors ({type(error).__name__}: {error}); every entry must be a tensor "
            f"with memory of its own"
        ) from error
    with doing("load_state_dict of the head's own state"):
        theirs.load_state_dict(load_tensors(saved))
    difference = tensors_differ(expected, _forward(theirs, small))
    if difference:
        raise CheckFailed(
            f"a head loaded from the other's state gives another output: {difference}; keep what the head needs in parameters or "
            f"buffers (register_buffer), not in plain attributes or non-persistent buffers that are drawn at random"
        )


def check_predict(case: Case) -> None:
    """The way of prediction (chunks, stream, decode, merge, describe) gives answers that JSON can hold."""
    head = case.head().eval()
    for example in range(len(case.examples)):
        answers = predict_example(case, head, example)
        try:
            json.dumps(answers, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise CheckFailed(
                f"the answer {answers} is not JSON-ready ({error}); give plain floats, ints, strings, lists and dicts"
            ) from error
        with doing("Codec.describe"):
            words = case.codec.describe(answers)
        if not isinstance(words, str) or (answers and not words.strip()):
            raise CheckFailed(f"Codec.describe returned {words!r}, expected a few words")


def predict_example(case: Case, head: Head[Any], example: int) -> list[Answer]:
    """Return the answers of an untrained head on one example's medium, for as many queries as the example has; none gives one."""
    rows = case.rows(training=False)
    picks = [n for n, row in enumerate(rows) if row.example == example]
    if not picks:
        return []
    with doing(f"making a batch of example {example}"):
        small = case.small(picks)
    clip = case.clip(example, training=False, annotated=False)
    with doing(f"Codec.chunks on example {example}"):
        chunks = list(case.codec.chunks(clip))
    ready = []
    for chunk in chunks:
        features = case.features(example, chunk.frame_indices) if chunk.frame_indices else None
        ready.append(type(chunk)(stack_rows([chunk.inputs], case.codec.ragged), chunk.frame_indices, features))
    with torch.no_grad(), doing(f"Head.stream on example {example}"):
        outputs = list(head.stream(small.queries.with_media(small.queries.features, {}), ready))
    merged = []
    for n in range(len(picks)):
        answers = [_decode(case, output, n, clip) for output in outputs]
        with doing(f"Codec.merge on example {example}"):
            merged.append(case.codec.merge(answers, clip))
    return merged


def _decode(case: Case, output: Tensors, n: int, clip: Any) -> Answer:
    row = {name: tensor[n].detach().cpu() for name, tensor in output.items()}
    before = copy.deepcopy(row)
    with doing("Codec.decode of an untrained head's output"):
        answer = case.codec.decode(row, clip)
    if tensors_differ(before, row, exact=True):
        raise CheckFailed("Codec.decode changed the output it was given; copy what you change")
    return answer


def _answers(case: Case, small: Small, output: Tensors) -> list[Answer]:
    return [_decode(case, output, n, clip) for n, clip in enumerate(small.clips)]


@torch.no_grad()
def _forward(head: Head[Any], small: Small, targets: Tensors | None = None, seed: int = 0) -> Tensors:
    torch.manual_seed(seed)
    with doing("Head.forward"):
        output: Tensors = head(small.queries, targets)
    return output


def _losses(case: Case, head: Head[Any], small: Small) -> Tensors:
    torch.manual_seed(0)
    with doing("Head.forward and Head.loss"):
        losses: Tensors = head.loss(head(small.queries, small.targets), small.targets)
    return losses


@torch.no_grad()
def _rows(case: Case, head: Head[Any], small: Small) -> Tensors:
    """Return the loss terms that must not mix."""
    return {name: rows for name, rows in _losses(case, head, small).items() if name not in head.mixing_terms}


def _total(losses: Tensors, head: Head[Any]) -> Tensor:
    weights = head.term_weights
    total = torch.zeros(())
    for name, rows in losses.items():
        total = total + float(weights.get(name, 1.0)) * rows.float().sum()
    return total


def _demand_rows(output: object, count: int, what: str) -> None:
    if not isinstance(output, dict) or not all(isinstance(value, Tensor) for value in output.values()):
        raise CheckFailed(f"Head.forward {what} returned {type(output).__name__}, expected a dict of tensors")
    for name, tensor in output.items():
        if tensor.ndim == 0 or tensor.shape[0] != count:
            raise CheckFailed(f"Head.forward {what}: {name!r} has shape {tuple(tensor.shape)}, expected ({count}, ...): one row per query")
