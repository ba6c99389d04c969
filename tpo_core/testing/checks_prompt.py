"""Check of spatial prompts: a box or a point given in the question, encoded by the codec and embedded by `Head.prompt`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tpo_core.contract import is_head_name
from tpo_core.head import Head, prompt_rows
from tpo_core.model.slot import HeadSlot
from tpo_core.stack import stack_rows
from tpo_core.testing.case import VIEW, Case
from tpo_core.testing.compare import tensors_differ
from tpo_core.testing.report import CheckFailed, DoesNotApply, doing
from tpo_core.types import Target, Tensors


def check_prompt(case: Case) -> None:
    """The card's example prompts are encoded and embedded, each on its own, in float32 and bfloat16; other kinds are refused."""
    with doing(f"{case.loaded.head.__name__}(config, widths)"):
        head = case.head().train()
    _demand_both(case, head)
    with doing("reading the card's prompt_examples as targets"):
        prompts = case.prompts
    encoded = [_encode(case, number, prompt) for number, prompt in enumerate(prompts)]
    rows = (encoded * 3)[: max(len(encoded), 3)]
    together = _embed(case, head, rows)
    if not together.requires_grad:
        raise CheckFailed("no gradient reaches Head.prompt; embed a prompt by trainable parameters of the module")
    torch.autograd.backward(together.float().square().sum())
    assert head.prompt is not None
    silent = [name for name, p in head.prompt.named_parameters() if p.requires_grad and p.grad is None]
    if silent:
        raise CheckFailed(
            f"no gradient reaches {', '.join(silent)} of Head.prompt; use each parameter whatever the prompt, or leave it out"
        )
    head.eval()
    difference = tensors_differ({"row": _embed(case, head, rows).detach()[:1]}, {"row": _embed(case, head, rows[:1]).detach()})
    if difference:
        raise CheckFailed(f"a prompt's embedding changes with the other prompts of the batch: {difference}; treat each row on its own")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _embed(case, head, rows)
    _demand_refusal(case, prompts[0])
    with doing("core's wrapper without any prompt"):
        HeadSlot(case.spec.name, head, weight=1.0, detach=False).embed_prompts(None, VIEW.hidden)


def _demand_both(case: Case, head: Head[Any]) -> None:
    if head.prompt is None and not case.spec.prompt_examples:
        raise DoesNotApply("the head takes no spatial prompts")
    if head.prompt is None:
        raise CheckFailed("the card has prompt_examples, but Head.prompt is None; set it to the module that embeds them, in __init__")
    if not case.spec.prompt_examples:
        raise CheckFailed("the head has a prompt module, but the card has no prompt_examples; give valid prompts, each with its `kind`")


def _encode(case: Case, number: int, prompt: Target) -> Tensors:
    if prompt.kind is None or not is_head_name(prompt.kind):
        raise CheckFailed(f"prompt example {number} has kind {prompt.kind!r}; name its kind, such as box or point")
    before = prompt.model_dump()
    with doing(f"Codec.encode_prompt on prompt example {number}"):
        first = case.codec.encode_prompt(prompt, case.prompt_clip(number))
        again = case.codec.encode_prompt(prompt, case.prompt_clip(number))
    if prompt.model_dump() != before:
        raise CheckFailed(f"Codec.encode_prompt changed prompt example {number}; copy what you change")
    difference = tensors_differ(first, again, exact=True)
    if difference:
        raise CheckFailed(f"Codec.encode_prompt gives other tensors the second time for prompt example {number}: {difference}")
    return first


def _embed(case: Case, head: Head[Any], rows: list[Tensors]) -> Tensor:
    assert head.prompt is not None
    with doing(f"Head.prompt on {len(rows)} prompts"):
        embedding_KD = prompt_rows(head.prompt, stack_rows(rows, case.codec.ragged))
    if embedding_KD.shape != (len(rows), VIEW.hidden) or not bool(torch.isfinite(embedding_KD.float()).all()):
        raise CheckFailed(
            f"Head.prompt gave {tuple(embedding_KD.shape)} for {len(rows)} prompts, expected finite numbers of shape "
            f"({len(rows)}, {VIEW.hidden}): one embedding of the language model's width for each"
        )
    return embedding_KD


def _demand_refusal(case: Case, prompt: Target) -> None:
    strange = prompt.model_copy(update={"kind": "no_such_kind"})
    try:
        case.codec.encode_prompt(strange, case.prompt_clip(0))
    except ValueError:
        return
    except Exception as error:
        raise CheckFailed(f"Codec.encode_prompt raised {type(error).__name__} for an unknown kind, expected ValueError") from error
    raise CheckFailed(f"Codec.encode_prompt takes the kind {strange.kind!r}; raise ValueError for kinds that the head does not know")
