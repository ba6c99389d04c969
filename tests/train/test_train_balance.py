"""The step's gradient taken apart, and the balances that follow from it; references by direct computation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from toys_train import TERMS, Listed, Toy, loader, make_batch, reach, stage, watch_gradients

from tpo_core.errors import TrainError
from tpo_core.runs.state import TrainerState
from tpo_core.train import Balance, Trainer, measure_pulls, shared_parameters
from tpo_core.types import StepOutput

MICRO = [make_batch(range(6)), make_batch(range(6, 12))]


def denominators() -> dict[str, float]:
    return {term: max(sum(batch.counts.get(term, 0.0) for batch in MICRO), 1.0) for term in TERMS}


def gradient(model: Toy, weights: Mapping[str, float]) -> torch.Tensor:
    """The gradient on the LoRA of the weighted sum of the step's terms."""
    total = torch.zeros(())
    for batch in MICRO:
        model(batch, denominators())
        total = total + sum((weights[term] * share for term, share in model.shares.items()), torch.zeros(()))
    return torch.cat([part.flatten() for part in torch.autograd.grad(total, shared_parameters(model))])


OWNERS: dict[str, dict[str, float]] = {
    "lm": {"lm": 1.0},
    "assign": {"assign": 0.5},
    "mask": {"mask/bce": 1.0},
    "region": {"region/l1": 2.0, "region/l2": 1.0},
}


def test_pulls_are_the_parts_of_the_gradient() -> None:
    model = reach(Toy())
    before = torch.get_rng_state()
    pulls = measure_pulls(model, MICRO, denominators(), shared_parameters(model), Accelerator(cpu=True))
    assert torch.equal(before, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in model.parameters())
    nothing = dict.fromkeys(TERMS, 0.0)
    expected = {owner: gradient(model, nothing | weights) for owner, weights in OWNERS.items()}
    assert pulls.norms == {owner: pytest.approx(float(value.norm()), rel=1e-5) for owner, value in expected.items()}
    for (left, right), cosine in pulls.cosines.items():
        assert cosine == pytest.approx(float(torch.cosine_similarity(expected[left], expected[right], dim=0)), abs=1e-5)
    assert list(pulls.cosines) == [
        ("lm", "assign"),
        ("lm", "mask"),
        ("lm", "region"),
        ("assign", "mask"),
        ("assign", "region"),
        ("mask", "region"),
    ]


def test_pulls_add_up_to_the_step_in_spite_of_dropout() -> None:
    """The parts are measured on the same dropout, so their squared sum is that of the whole gradient."""
    model = reach(Toy(dropout=0.5))
    shared = shared_parameters(model)
    torch.manual_seed(3)
    pulls = measure_pulls(model, MICRO[:1], denominators(), shared, Accelerator(cpu=True))
    torch.manual_seed(3)
    whole = torch.cat([g.flatten() for g in torch.autograd.grad(model(MICRO[0], denominators()).loss, shared)])
    total = sum(norm**2 for norm in pulls.norms.values())
    total += sum(2 * cosine * pulls.norms[left] * pulls.norms[right] for (left, right), cosine in pulls.cosines.items())
    assert math.sqrt(total) == pytest.approx(float(whole.norm()), rel=1e-4)


def test_an_owner_without_a_count_is_absent() -> None:
    model = reach(Toy())
    pulls = measure_pulls(model, [make_batch(range(6), only="region")], denominators(), shared_parameters(model), Accelerator(cpu=True))
    assert "mask" not in pulls.norms


def test_factors_scale_the_owners_losses() -> None:
    """Balanced denominators and scale give the gradient of the sum with each owner's factor; shares are reported plain."""
    model = reach(Toy())
    balance = Balance("gradient_norm", TERMS, shared=shared_parameters(model), measure_every=1)
    balance.restore({"region": math.log(3.0), "mask": math.log(0.25), "assign": math.log(0.5)})
    scaled, scale = balance.apply(denominators())
    assert all(scaled[term] >= value for term, value in denominators().items())
    loss = sum((model(batch, scaled).loss for batch in MICRO), torch.zeros(())) * scale
    found = torch.cat([g.flatten() for g in torch.autograd.grad(loss, shared_parameters(model))])
    factors = {"lm": 1.0, "assign": 0.5, "mask": 0.25, "region": 3.0}
    weights = {term: factor * weight for owner, factor in factors.items() for term, weight in OWNERS[owner].items()}
    torch.testing.assert_close(found, gradient(model, weights), rtol=1e-4, atol=1e-6)
    outputs = [model(batch, scaled).metrics for batch in MICRO]
    plain = balance.plain_shares({term: float(sum(out.get(term, torch.zeros(())) for out in outputs)) for term in TERMS})
    direct = [model(batch, denominators()).metrics for batch in MICRO]
    assert plain == {term: pytest.approx(float(sum(out.get(term, torch.zeros(())) for out in direct)), rel=1e-5) for term in TERMS}


def test_gradient_norms_are_evened_out() -> None:
    model = reach(Toy())
    shared = shared_parameters(model)
    balance = Balance("gradient_norm", TERMS, shared=shared, measure_every=1, rate=1.0)
    accelerator = Accelerator(cpu=True)
    balance.measure(model, MICRO, denominators(), accelerator)
    scaled, scale = balance.apply(denominators())
    pulls = measure_pulls(model, MICRO, scaled, shared, accelerator)
    norms = {owner: norm * scale for owner, norm in pulls.norms.items()}
    assert balance.factor("lm") == 1.0
    assert norms == {owner: pytest.approx(norms["lm"], rel=1e-4) for owner in norms}


def test_factors_stay_in_bounds() -> None:
    balance = Balance("uncertainty", ["lm", "region/l1"], rate=100.0)
    balance.learn({"lm": 1000.0, "region/l1": 0.0}, {"lm": 5.0, "region/l1": 5.0})
    assert balance.factor("lm") == pytest.approx(1 / 20)
    assert balance.factor("region") == pytest.approx(20)


def test_uncertainty_settles_at_one_over_the_loss() -> None:
    balance = Balance("uncertainty", ["lm", "region/l1", "region/l2", "mask/bce"])
    counts = {"lm": 4.0, "region/l1": 2.0, "region/l2": 2.0, "mask/bce": 0.0}
    first = dict(balance.state())
    balance.learn({"lm": 2.0, "region/l1": 0.1, "region/l2": 0.1, "mask/bce": 0.0}, counts)
    assert balance.state()["lm"] == pytest.approx(first["lm"] + 0.02 * (1 - 2.0))
    for _ in range(2000):
        balance.learn({"lm": 2.0, "region/l1": 0.1, "region/l2": 0.1, "mask/bce": 0.0}, counts)
    assert balance.factor("lm") == pytest.approx(0.5, rel=1e-3)
    assert balance.factor("region") == pytest.approx(5.0, rel=1e-3)
    assert balance.factor("mask") == 1.0


def train(balance: Balance | None, model: Toy, *, steps: int = 4, **options: Any) -> list[Mapping[str, Any]]:
    rows: list[Mapping[str, Any]] = []
    trainer = Trainer(
        reach(model),
        stage=stage(micro_batch=10),
        steps=steps,
        accelerator=Accelerator(cpu=True),
        batches=loader(stage(micro_batch=10)),
        log=rows.append,
        balance=balance,
        **options,
    )
    trainer.run()
    return rows


def test_measuring_does_not_change_what_is_learnt() -> None:
    plain, watched = Toy(dropout=0.4), Toy(dropout=0.4)
    train(None, plain)
    rows = train(Balance("fixed", TERMS, shared=shared_parameters(reach(watched)), measure_every=2), watched)
    assert all(torch.equal(left, right) for left, right in zip(plain.state_dict().values(), watched.state_dict().values(), strict=True))
    assert [("pull/region" in row, "cosine/lm/region" in row) for row in rows] == [(True, True), (False, False)] * 2
    assert not any(name.startswith("factor/") for row in rows for name in row)


@pytest.mark.parametrize("mode", ["uncertainty", "gradient_norm"])
def test_a_balance_goes_on_from_a_checkpoint(mode: Any) -> None:
    def balance(model: Toy) -> Balance:
        return Balance(mode, TERMS, shared=shared_parameters(reach(model)), measure_every=2)

    straight = Toy()
    saved: list[tuple[TrainerState, dict[str, torch.Tensor]]] = []

    def save(state: TrainerState) -> Path | None:
        saved.append((state, {name: value.clone() for name, value in straight.state_dict().items()}))
        return None

    rows = train(balance(straight), straight, save=save, checkpoint_every=2)
    assert rows[-1]["factor/region"] != 1.0
    state, weights = saved[0]
    resumed = Toy(seed=5)
    resumed.load_state_dict(weights)
    train(balance(resumed), resumed, start=state)
    assert all(torch.equal(left, right) for left, right in zip(straight.state_dict().values(), resumed.state_dict().values(), strict=True))


def test_without_shared_weights_nothing_can_be_measured() -> None:
    with pytest.raises(TrainError, match="measure_every needs shared weights that train: one of the groups lora, llm, connector"):
        Balance("fixed", TERMS, measure_every=2)
    model = Toy()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    assert shared_parameters(model) == []
    model.words.weight.requires_grad_(True)
    assert shared_parameters(model) == [model.words.weight]
    model.lora.weight.requires_grad_(True)
    assert shared_parameters(model) == [model.lora.weight]


def test_an_idle_head_stays_idle_under_a_balance() -> None:
    model = reach(Toy())
    config = stage(weight_decay=0.5)
    balance = Balance("uncertainty", TERMS)
    batches = Listed([[make_batch(range(6), only="region")]] * 2)
    before = model.heads["mask"].head[0].weight.clone()
    trainer = Trainer(model, stage=config, steps=2, accelerator=Accelerator(cpu=True), batches=batches, balance=balance)
    seen = watch_gradients(trainer)
    trainer.run()
    assert torch.equal(before, model.heads["mask"].head[0].weight)
    assert "heads.mask.head.0.weight" not in seen[0]
    assert isinstance(model(MICRO[0], denominators()), StepOutput)
