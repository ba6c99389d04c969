"""The loop of one stage. It knows a `Trainable`, batches, and a way to save; never a head, a plugin or the model's class."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn
from torch.optim import Optimizer

from tpo_core.config import StageConfig
from tpo_core.errors import TrainError
from tpo_core.runs.state import StageMark, TrainerState
from tpo_core.train.balance import Balance
from tpo_core.train.loader import StepBatches, StepSource
from tpo_core.train.observe import Observer, Observers, StagePlan, StepReport
from tpo_core.train.optimizer import build_optimizer, named_parameters, optimizer_state, restore_optimizer
from tpo_core.train.plan import rate_factor, resolve_muon_rates, resolve_rates
from tpo_core.train.rng import gather_rng, restore_rank_rng, seed_rng
from tpo_core.train.step import LOSS, Totals, clear_gradients, clip_gradients, count_step, not_finite, run_micro_batches, sum_metrics
from tpo_core.types import Trainable

logger = logging.getLogger(__name__)

Save = Callable[[TrainerState], Path | None]
"""Writes a checkpoint; called on every process, returns its folder on the main one."""


class Trainer:
    """Trains one stage of a model that is built, frozen and not yet wrapped.

    Args:
        model: an `nn.Module` that satisfies `Trainable`; `freeze` was called on it. One that is sharded already (FSDP2)
            is taken as it is.
        stage: the recipe's stage. steps: its optimiser steps (`stage_steps`).
        batches: this process's batches, by step.
        accelerator: from `make_accelerator`, or any with ``gradient_accumulation_steps=1``.
        seed: of the run. index: of the stage.
        global_step: optimiser steps done in earlier stages.
        start: where to go on in this stage; None: at its beginning, with fresh random state.
        save: writes a checkpoint; None: none are written.
        checkpoint_every, log_every: optimiser steps; the end of the stage is always saved.
        log: takes one row of metrics (main process only).
        observers: watch on the main process.
        balance: the loss balance; None: weights as written.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        stage: StageConfig,
        steps: int,
        batches: StepSource,
        accelerator: Any,
        seed: int = 0,
        index: int = 0,
        global_step: int = 0,
        start: TrainerState | None = None,
        save: Save | None = None,
        checkpoint_every: int = 500,
        log_every: int = 1,
        log: Callable[[Mapping[str, Any]], None] | None = None,
        observers: Sequence[Observer] = (),
        balance: Balance | None = None,
    ) -> None:
        if accelerator.gradient_accumulation_steps != 1:
            raise TrainError("the accelerator divides by gradient_accumulation_steps; make it with 1, this trainer accumulates by itself")
        self.model = cast(Trainable, model)
        self.stage = stage
        self.steps = steps
        self.batches = batches
        self.accelerator = accelerator
        self.balance = balance
        self.terms = self.model.terms()
        self.rates = resolve_rates(stage, self.model.groups())
        self._save = save
        self._checkpoint_every = checkpoint_every
        self._log_every = log_every
        self._log = log
        self._observers = Observers(observers if accelerator.is_main_process else ())
        # What is sharded already was wrapped by the caller.
        self._prepared = not any(hasattr(parameter, "full_tensor") for parameter in model.parameters())
        muon = resolve_muon_rates(stage, self.model.groups())
        self.optimizer: Optimizer = build_optimizer(self.model, self.rates, stage, muon=muon)
        self._wrapped = model
        if self._prepared:
            self._wrapped, self.optimizer = accelerator.prepare(model, self.optimizer)
        self.mark = StageMark(index=index, name=stage.name, steps=steps, global_step=global_step)
        if start is None:
            seed_rng(seed, index, accelerator.process_index)
        else:
            self._restore(start, seed)
        self._clock = time.perf_counter()

    def _restore(self, start: TrainerState, seed: int) -> None:
        mark = start.mark
        if (mark.name, mark.steps) != (self.stage.name, self.steps):
            raise TrainError(
                f"the checkpoint is at step {mark.step} of {mark.steps} of stage {mark.name!r}, this is stage {self.stage.name!r} "
                f"of {self.steps} steps; resume with the recipe of the run"
            )
        restore_optimizer(self.optimizer, start.optimizer)
        restore_rank_rng(start.rng, self.accelerator.process_index, fresh=(seed, mark.index, self.accelerator.process_index, mark.step))
        if self.balance is not None:
            self.balance.restore(start.balance)
        self.mark = mark

    def run(self) -> StageMark:
        """Train to the end of the stage and return where it ended.

        Raises:
            TrainError: the loss or the gradient is not finite, or another process cannot go on. The last checkpoint stays.
            DataError: too many bad rows.
        """
        plan = self._plan()
        self._observers.stage_begins(plan)
        self._wrapped.train()
        self._clock = time.perf_counter()
        saved = self.mark.step
        for batches in self.batches.steps(self.mark.step, self.steps):
            self._step(batches)
            if self.mark.step % self._checkpoint_every == 0 and self.mark.step < self.steps:
                self._checkpoint()
                saved = self.mark.step
        if self.mark.step < self.steps:
            raise TrainError(f"the data ended at step {self.mark.step} of {self.steps} of stage {self.stage.name!r}")
        if saved < self.steps:
            self._checkpoint()
        self._observers.stage_ends(plan)
        return self.mark

    def close(self) -> None:
        """Take the wrapping off the model, so that it may be used or rebuilt for the next stage."""
        self.optimizer.zero_grad()
        if self._prepared:
            self.accelerator.unwrap_model(self._wrapped, keep_fp32_wrapper=False)
        self.accelerator.free_memory()

    def _plan(self) -> StagePlan:
        trained: dict[str, int] = {}
        for entry in self.optimizer.param_groups:
            trained[entry["group"]] = trained.get(entry["group"], 0) + sum(p.numel() for p in entry["params"])
        return StagePlan(
            index=self.mark.index,
            name=self.stage.name,
            steps=self.steps,
            first=self.mark.step,
            global_step=self.mark.global_step,
            rates=dict(self.rates),
            trained=trained,
            batch_size=self.stage.batch_size,
        )

    def _step(self, batches: StepBatches) -> None:
        totals = count_step(batches, self.terms, self.accelerator)
        denominators, scale = totals.denominators, 1.0
        if self.balance is not None:
            if self.balance.due(self.mark.step):
                self.balance.measure(self.model, batches.micro, denominators, self.accelerator)
            denominators, scale = self.balance.apply(denominators)
        shares = run_micro_batches(self._wrapped, batches.micro, denominators, self.accelerator, scale=scale)
        metrics = self._metrics(shares, scale)
        clear_gradients(self.model.idle_parameters(totals.counts))
        norm = clip_gradients(named_parameters(self.optimizer).values(), self.stage.clip_norm)
        if not all(value - value == 0.0 for value in (*metrics.values(), norm)):
            self.optimizer.zero_grad()
            raise TrainError(not_finite(self.mark.global_step + 1, metrics, norm, shares, batches.micro))
        self._move()
        if self.balance is not None:
            self.balance.learn(metrics, totals.counts)
        self.mark = StageMark(
            index=self.mark.index,
            name=self.mark.name,
            steps=self.steps,
            step=self.mark.step + 1,
            global_step=self.mark.global_step + 1,
            position=(self.mark.step + 1) * self.stage.batch_size,
        )
        self._report(metrics, norm, totals)

    def _metrics(self, shares: Sequence[Mapping[str, Tensor]], scale: float) -> dict[str, float]:
        metrics = sum_metrics(shares, (LOSS, *self.terms), self.accelerator)
        metrics[LOSS] *= scale
        return metrics if self.balance is None else self.balance.plain_shares(metrics)

    def _move(self) -> None:
        factor = rate_factor(self.stage, self.mark.step, self.steps)
        for entry in self.optimizer.param_groups:
            entry["lr"] = entry["base_lr"] * factor
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _report(self, metrics: Mapping[str, float], norm: float, totals: Totals) -> None:
        now = time.perf_counter()
        seconds, self._clock = now - self._clock, now
        row = {
            **metrics,
            **({} if self.balance is None else self.balance.metrics()),
            "grad_norm": norm,
            **{f"{'muon' if entry.get('muon') else 'lr'}/{entry['group']}": float(entry["lr"]) for entry in self.optimizer.param_groups},
            "samples": totals.samples,
            "tokens": totals.tokens,
            "bad_rows": totals.bad,
            "seconds": seconds,
            "samples_per_s": totals.samples / max(seconds, 1e-9),
            "tokens_per_s": totals.tokens / max(seconds, 1e-9),
        }
        if not self.accelerator.is_main_process:
            return
        self._observers.step_ends(StepReport(self.mark.step, self.mark.global_step, row))
        if self.mark.step % self._log_every == 0 or self.mark.step == self.steps:
            if self._log is not None:
                self._log({"stage": self.stage.name, "step": self.mark.global_step, "stage_step": self.mark.step, **row})
            self.accelerator.log(row, step=self.mark.global_step)

    def state(self) -> TrainerState:
        """Return what is needed to go on exactly here; called on every process."""
        return TrainerState(
            mark=self.mark,
            optimizer=optimizer_state(self.optimizer),
            rng=gather_rng(self.accelerator),
            balance={} if self.balance is None else self.balance.state(),
        )

    def _checkpoint(self) -> None:
        if self._save is None:
            return
        path = self._save(self.state())
        if path is not None:
            self._observers.checkpoint_saved(path)
        # Writing is not the model's time.
        self._clock = time.perf_counter()
