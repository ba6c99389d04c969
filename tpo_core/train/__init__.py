"""The trainer: stages on Accelerate alone. It knows a `Trainable` and batches; never a head, a plugin or the model's class."""

from __future__ import annotations

from tpo_core.train.balance import SHARED_GROUPS, Balance, Pulls, measure_pulls, owner_gradients, owner_of, pulls_of, shared_parameters
from tpo_core.train.freeze import TrainableModule, fixed_parameters, freeze, freeze_unreached
from tpo_core.train.launch import Processes, assert_distributed, make_accelerator, run_on_main
from tpo_core.train.loader import BadRow, Draws, Loader, StepBatches, StepSource
from tpo_core.train.observe import Observer, Observers, StagePlan, StepHook, StepReport
from tpo_core.train.optimizer import is_sharded
from tpo_core.train.plan import describe_rates, micro_batches, rate_factor, resolve_muon_rates, resolve_rates, stage_steps
from tpo_core.train.step import add_over_processes
from tpo_core.train.trainer import Trainer

__all__ = [
    "SHARED_GROUPS",
    "BadRow",
    "Balance",
    "Draws",
    "Loader",
    "Observer",
    "Observers",
    "Processes",
    "Pulls",
    "StagePlan",
    "StepBatches",
    "StepHook",
    "StepReport",
    "StepSource",
    "TrainableModule",
    "Trainer",
    "add_over_processes",
    "assert_distributed",
    "describe_rates",
    "fixed_parameters",
    "freeze",
    "freeze_unreached",
    "is_sharded",
    "make_accelerator",
    "measure_pulls",
    "micro_batches",
    "owner_gradients",
    "owner_of",
    "pulls_of",
    "rate_factor",
    "resolve_muon_rates",
    "resolve_rates",
    "run_on_main",
    "shared_parameters",
    "stage_steps",
]
