"""The accelerator of a run, and the check that the launcher set up what the recipe asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedType, LoggerType

from tpo_core.errors import ConfigError, TrainError, did_you_mean

if TYPE_CHECKING:
    from tpo_core.config import TrainerConfig

T = TypeVar("T")


def make_accelerator(
    config: TrainerConfig, *, logging_dir: str, cpu: bool = False, run_config: Mapping[str, Any] | None = None
) -> Accelerator:
    """Return the accelerator: bfloat16 where the recipe wants it, trackers, and no division by accumulation steps.

    Args:
        config: the recipe's ``trainer``.
        logging_dir: where trackers that write files put them.
        cpu: stay on the CPU even where there is a device.
        run_config: the recipe as plain values, for the trackers. They are closed by ``accelerator.end_training()``.

    Raises:
        ConfigError: an unknown tracker, or one whose package is not installed.
        TrainError: the launcher did not set up ``trainer.distributed``.
    """
    installed = [str(getattr(tracker, "value", tracker)) for tracker in get_available_trackers()]
    known = [member.value for member in LoggerType if member.value != "all"]
    for name in config.trackers:
        if name not in known:
            raise ConfigError(f"trainer.trackers: no tracker {name!r}.{did_you_mean(name, known) or ' Known: ' + ', '.join(known)}")
        if name not in installed:
            raise ConfigError(f"trainer.trackers: the package of {name!r} is not installed; install it or take the tracker out")
    try:
        accelerator = Accelerator(
            cpu=cpu,
            mixed_precision="bf16" if _wants_bf16(config, cpu=cpu) else "no",
            log_with=list(config.trackers) or None,
            project_dir=logging_dir,
            gradient_accumulation_steps=1,
        )
    except ValueError as error:
        raise ConfigError(f"trainer: {error}") from error
    assert_distributed(accelerator, config.distributed)
    if config.trackers:
        accelerator.init_trackers("tpo", config=flat_options(run_config or {}))
    return accelerator


def flat_options(config: Mapping[str, Any], at: str = "") -> dict[str, int | float | str | bool]:
    """Return ``stages.0.steps`` -> value, as trackers want hyper-parameters; null becomes the text ``null``."""
    flat: dict[str, int | float | str | bool] = {}
    for key, value in config.items():
        name = f"{at}.{key}" if at else str(key)
        if isinstance(value, Mapping):
            flat |= flat_options(value, name)
        elif isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
            flat |= flat_options({str(index): item for index, item in enumerate(value)}, name)
        elif isinstance(value, int | float | str):
            flat[name] = value
        else:
            flat[name] = "null" if value is None else ", ".join(map(str, value))
    return flat


def _wants_bf16(config: TrainerConfig, *, cpu: bool) -> bool:
    if isinstance(config.bf16, bool):
        return config.bf16
    return not cpu and torch.cuda.is_available() and torch.cuda.is_bf16_supported()


def assert_distributed(accelerator: Accelerator, expected: str) -> None:
    """Check what Accelerate really set up: on some machines it falls back to another strategy without a word.

    Args:
        expected: ``none``, ``ddp``, ``fsdp2``, or ``auto`` (any of these three).

    Raises:
        TrainError: it is another one, or one that this trainer cannot use.
    """
    found = str(accelerator.distributed_type).rsplit(".", 1)[-1]
    names = {DistributedType.NO: "none", DistributedType.FSDP: "fsdp2" if accelerator.is_fsdp2 else "fsdp1"}
    ddp = ("MULTI_CPU", "MULTI_GPU", "MULTI_NPU", "MULTI_XPU")
    strategy = names.get(accelerator.distributed_type, "ddp" if found in ddp else found.lower())
    if strategy not in ("none", "ddp", "fsdp2"):
        advice = "set fsdp_version to 2" if strategy == "fsdp1" else "it divides and steps by itself; use FSDP2 or DDP"
        raise TrainError(f"the launcher set up {strategy}, which this trainer cannot use: {advice}")
    if expected not in ("auto", strategy):
        raise TrainError(
            f"trainer.distributed asks for {expected}, but Accelerate set up {strategy} ({found}, {accelerator.num_processes} processes); "
            f"start it with `accelerate launch` and a matching config"
        )


def run_on_main(accelerator: Accelerator, action: Callable[[], T]) -> T | None:
    """Run something on the main process while the others wait, and return its result there (None elsewhere).

    Raises:
        Exception: what it raised, on the main process.
        TrainError: on the others, if it raised there: nobody is left waiting.
    """
    result: T | None = None
    failure: Exception | None = None
    if accelerator.is_main_process:
        try:
            result = action()
        except Exception as error:
            failure = error
    failed = torch.tensor([1.0 if failure is not None else 0.0], device=accelerator.device)
    if accelerator.num_processes > 1:
        failed = accelerator.reduce(failed, "sum")
    if failure is not None:
        raise failure
    if float(failed) > 0:
        raise TrainError("the main process could not write the run's folder; its message says why")
    return result


@dataclass(frozen=True)
class Processes:
    """The processes of a run, for work that they share."""

    accelerator: Accelerator

    @property
    def rank(self) -> int:
        """Return the number of this process; 0 is the main one."""
        return int(self.accelerator.process_index)

    @property
    def world(self) -> int:
        """Return how many there are."""
        return int(self.accelerator.num_processes)

    def gather(self, text: str) -> list[str]:
        """Return every process's text, by rank; each process must call this."""
        if self.world == 1:
            return [text]
        content = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8).to(self.accelerator.device)
        lengths = self.accelerator.gather(torch.tensor([len(content)], device=content.device)).tolist()
        padded = content.new_zeros(max(lengths))
        padded[: len(content)] = content
        rows = self.accelerator.gather(padded).cpu().view(self.world, -1)
        return [row[:length].numpy().tobytes().decode() for row, length in zip(rows, lengths, strict=True)]
