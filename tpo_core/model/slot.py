"""`HeadSlot`: one head as the one unit that may be sharded. It runs forward and loss, divides, and knows what N = 0 means.

Legend: N queries, S slots, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from tpo_core.head import Head, prompt_rows
from tpo_core.plugins import blame
from tpo_core.types import Denominators, FrameFeatures, Queries, Tensors


class HeadSlot(nn.Module):
    """Wraps a head so that authors never see N = 0, ranks, or denominators.

    On every step it adds a zero that reaches every trainable parameter of the head **and hangs on the queries' states**: without the
    first a rank without queries would leave its peers waiting, without the second FSDP2 hangs in backward.

    Args:
        name: of the head.
        head: the module.
        weight: factor of the head's loss in the total.
        detach: cut the head's gradient from the language model (the ablation of the paper's claim).
        origin: package and version, for blame notes.
    """

    def __init__(self, name: str, head: Head[Any], *, weight: float, detach: bool, origin: str = "") -> None:
        super().__init__()
        self.name = name
        self.head = head
        self.weight = weight
        self.detach = detach
        self.origin = origin

    def forward(self, queries: Queries, targets: Tensors, denominators: Denominators) -> tuple[Tensor, dict[str, Tensor]]:
        """Return this micro-batch's share of the head's weighted loss, and each term's unweighted share by ``<head>/<term>``.

        Args:
            queries: N of them; N may be 0. A slot of weight 0 does not ask its head.
            targets: stacked over N.
            denominators: summed counts of the whole optimiser step, with keys ``<head>/<term>``.

        Raises:
            ValueError: the head's loss is not {term: (N,)} with finite shapes and known terms.
        """
        loss = self.touch(queries.states_NSD)
        if len(queries) == 0 or self.weight == 0:
            return loss, {}
        if self.detach:
            queries = _detached(queries)
        with self.blame():
            output = self.head(queries, targets)
            rows = self.head.loss(output, targets)
            weights = self.head.term_weights
            shares: dict[str, Tensor] = {}
            for term, row_N in rows.items():
                key = f"{self.name}/{term}"
                if row_N.shape != (len(queries),) or key not in denominators:
                    raise ValueError(
                        f"loss term {term!r} has shape {tuple(row_N.shape)}, expected ({len(queries)},), and must be named in Codec.terms"
                    )
                share = row_N.float().sum() / divisor(denominators, key)
                shares[key] = share.detach()
                loss = loss + self.weight * float(weights.get(term, 1.0)) * share
        return loss, shares

    def touch(self, states_NSD: Tensor) -> Tensor:
        """Return a zero that reaches every trainable parameter and hangs on the states."""
        zero = states_NSD.float().sum() * 0.0
        for parameter in self.head.parameters():
            if parameter.requires_grad:
                zero = zero + parameter.reshape(-1)[:1].float().sum() * 0.0
        return zero

    def embed_prompts(self, tensors: Tensors | None, hidden: int) -> Tensor:
        """Return the embeddings (P, D) of this head's spatial prompts; P = 0 without any.

        It is called on every step and its result hangs on the prompt module's parameters, whatever P: where slots are sharded, all ranks
        must gather them equally often, in backward as well.

        Raises:
            ValueError: the head has no prompt module.
        """
        with self.blame():
            if self.head.prompt is None:
                if tensors is None:
                    return next(self.head.parameters()).new_zeros(0, hidden)
                raise ValueError(f"head {self.name!r} has no prompt module, but its codec encoded a prompt")
            if tensors is not None:
                return prompt_rows(self.head.prompt, tensors)
            zero = sum(p.reshape(-1)[:1].float().sum() for p in self.head.prompt.parameters()) * 0.0
            return zero * torch.zeros(0, hidden, device=next(self.head.prompt.parameters()).device)

    def blame(self) -> AbstractContextManager[None]:
        """Return a context that notes head, package and version on an exception raised inside the head."""
        return blame(self.name, self.origin)


def _detached(queries: Queries) -> Queries:
    features = queries.features
    cut = None
    if features is not None:
        cut = FrameFeatures(features.frames_MTPV.detach(), features.valid_MTP, features.time_MT2, features.grid_M2)
    return Queries(
        states_NSD=queries.states_NSD.detach(),
        media_N=queries.media_N,
        words_NWD=queries.words_NWD.detach(),
        words_valid_NW=queries.words_valid_NW,
        features=cut,
        inputs=queries.inputs,
        prompts=queries.prompts,
        prompted_N=queries.prompted_N,
    )


def divisor(denominators: Denominators, key: str) -> float:
    """Return a term's denominator; 1 where nothing counts, so that an empty sum stays 0."""
    value = float(denominators[key])
    return value if value > 0 else 1.0


def total_counts(counts: Mapping[str, float], name: str) -> float:
    """Return the sum of a head's counts: 0 where no query of it is in the step on any rank."""
    return sum(value for key, value in counts.items() if key.startswith(f"{name}/"))
