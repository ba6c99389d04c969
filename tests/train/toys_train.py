"""A tiny `Trainable` with two heads, data that is a function of an index, and what runs in child processes.

Legend: B samples, D width, N queries.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor, nn

from tpo_core.config import StageConfig
from tpo_core.errors import CheckpointError, DataError, TPOError
from tpo_core.train import Balance, Loader, Processes, StepBatches, Trainer, is_sharded, micro_batches, run_on_main, shared_parameters
from tpo_core.types import Batch, Denominators, HeadBatch, StepOutput

TERMS = ("lm", "assign", "mask/bce", "region/l1", "region/l2")


class ToySlot(nn.Module):
    """A head as the unit that is sharded: called on every step, with a zero that reaches all its parameters and hangs on the states."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.head = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))

    def forward(self, states_ND: Tensor, share: HeadBatch | None, denominators: Denominators) -> tuple[Tensor, dict[str, Tensor]]:
        loss = sum((p.sum() * 0.0 for p in self.head.parameters()), states_ND.sum() * 0.0)
        if share is None:
            return loss, {}
        output = self.head(states_ND)
        target, weight = share.targets["y"], share.targets["weight"].unsqueeze(-1)
        if self.name == "mask":
            shares = {"mask/bce": (weight * (output - target).square()).sum() / max(denominators["mask/bce"], 1.0)}
            return loss + shares["mask/bce"], shares
        shares = {
            "region/l1": (weight * (output - target).abs()).sum() / max(denominators["region/l1"], 1.0),
            "region/l2": (output - target).square().sum() / max(denominators["region/l2"], 1.0),
        }
        return loss + 2.0 * shares["region/l1"] + shares["region/l2"], shares


class Toy(nn.Module):
    """Trunk (frozen or not), LoRA-like layer, tokens, two heads; dropout where asked for, so that random state matters.

    `shares` holds the last forward's terms with their graph, for references.
    """

    def __init__(self, *, seed: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.trunk = nn.Linear(4, 6)
        self.lora = nn.Linear(6, 6, bias=False)
        self.norm = nn.LayerNorm(6)
        self.drop = nn.Dropout(dropout)
        self.words = nn.Linear(6, 3)
        self.unreached = nn.Linear(2, 2)
        self.shares: dict[str, Tensor] = {}
        self.tokens = nn.ParameterDict({name: nn.Parameter(torch.zeros(1, 6)) for name in ("mask", "region")})
        self.heads = nn.ModuleDict({name: ToySlot(name) for name in ("mask", "region")})
        with torch.no_grad():
            for _, parameter in sorted(self.named_parameters()):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)

    def terms(self) -> tuple[str, ...]:
        return TERMS

    def groups(self) -> dict[str, dict[str, nn.Parameter]]:
        return {
            "vision": {},
            "connector": {f"unreached.{n}": p for n, p in self.unreached.named_parameters()},
            "llm": {f"{m}.{n}": p for m, module in (("trunk", self.trunk), ("words", self.words)) for n, p in module.named_parameters()},
            "lora": {"lora.weight": self.lora.weight, "norm.weight": self.norm.weight, "norm.bias": self.norm.bias},
            "tokens": {f"tokens.{n}": p for n, p in self.tokens.items()},
            **{f"heads.{h}": {f"heads.{h}.{n}": p for n, p in module.named_parameters()} for h, module in self.heads.items()},
        }

    def idle_parameters(self, denominators: Denominators) -> list[nn.Parameter]:
        idle: list[nn.Parameter] = []
        for name, head in self.heads.items():
            if sum(value for key, value in denominators.items() if key.startswith(f"{name}/")) == 0:
                idle += [*head.parameters(), self.tokens[name]]
        return idle

    def forward(self, batch: Batch, denominators: Denominators) -> StepOutput:
        hidden_BD = torch.tanh(self.trunk(batch.extra["x"]))
        hidden_BD = self.drop(self.norm(hidden_BD + self.lora(hidden_BD)))
        logits = self.words(hidden_BD)
        rows = nn.functional.cross_entropy(logits, batch.extra["y"], reduction="none")
        shares = {"lm": rows.sum() / max(denominators["lm"], 1.0), "assign": 0.1 * logits.square().sum() / max(denominators["assign"], 1.0)}
        loss = shares["lm"] + 0.5 * shares["assign"]
        for name, head in self.heads.items():
            share = batch.heads.get(name)
            rows_N = torch.tensor(share.sample_N if share is not None else [], dtype=torch.long)
            states_ND = hidden_BD.index_select(0, rows_N) + self.tokens[name]
            head_loss, head_shares = head(states_ND, share, denominators)
            loss = loss + head_loss
            shares |= head_shares
        self.shares = dict(shares)
        return StepOutput(loss, {"loss": loss.detach(), **{key: value.detach() for key, value in shares.items()}})


def kind(index: int) -> str:
    return ("region", "mask", "chat")[index % 3]


def make_batch(indices: Sequence[int], *, only: str | None = None) -> Batch:
    """The batch of these samples: sample i has i % 4 + 1 boxes or frames, and i % 5 + 1 words."""
    x, y, words = [], [], []
    targets: dict[str, list[tuple[int, Tensor, float]]] = {}
    for row, index in enumerate(indices):
        generator = torch.Generator().manual_seed(1000 + index)
        x.append(torch.randn(4, generator=generator))
        y.append(index % 3)
        words.append(index % 5 + 1)
        what = kind(index) if only is None else only
        if what != "chat":
            targets.setdefault(what, []).append((row, torch.randn(2, generator=generator), float(index % 4 + 1)))
    heads = {
        name: HeadBatch(
            position_NS=torch.zeros(len(found), 1, dtype=torch.long),
            media_N=torch.zeros(len(found), dtype=torch.long),
            media_K=torch.zeros(1, dtype=torch.long),
            words_NW=torch.zeros(len(found), 1, dtype=torch.long),
            words_valid_NW=torch.zeros(len(found), 1, dtype=torch.bool),
            sample_N=[row for row, _, _ in found],
            targets={"y": torch.stack([t for _, t, _ in found]), "weight": torch.tensor([w for _, _, w in found])},
        )
        for name, found in targets.items()
    }
    counts = {"lm": float(len(indices)), "assign": float(len(indices) - sum(1 for i in indices if kind(i) == "chat"))}
    for name, found in targets.items():
        summed = sum(weight for _, _, weight in found)
        counts |= {"mask/bce": summed} if name == "mask" else {"region/l1": summed, "region/l2": float(len(found))}
    mask = torch.zeros(len(indices), 5, dtype=torch.long)
    for row, count in enumerate(words):
        mask[row, :count] = 1
    empty = torch.zeros(0, dtype=torch.long)
    return Batch(
        ids_BL=torch.zeros(len(indices), 5, dtype=torch.long),
        mask_BL=mask,
        learn_K=empty,
        label_K=empty,
        start_K=empty.bool(),
        extra={"x": torch.stack(x), "y": torch.tensor(y)},
        visual=None,
        heads=heads,
        prompts={},
        counts=counts,
        sample_ids=[f"s{index}" for index in indices],
    )


class Endless:
    """Position -> index; rows in `bad` are broken, and the next attempt is 1,000 further on."""

    def __init__(self, *, bad: Sequence[int] = ()) -> None:
        self.bad = frozenset(bad)

    def draw(self, position: int, attempt: int = 0) -> int:
        return position + 1000 * attempt

    def prepare(self, row: int) -> int:
        if row in self.bad:
            raise DataError(f"rows.jsonl:{row + 1}: broken")
        return row


class Listed:
    """Steps that are written out."""

    def __init__(self, steps: Sequence[Sequence[Batch]]) -> None:
        self.listed = steps

    def steps(self, first: int, last: int) -> object:
        return (StepBatches(list(micro)) for micro in self.listed[first:last])


def stage(**options: object) -> StageConfig:
    base: dict[str, object] = {
        "name": "joint",
        "steps": 1,
        "train": {"llm": 0.01, "lora": 0.02, "tokens": 0.03, "heads": 0.04},
        "batch_size": 20,
    }
    return StageConfig.model_validate(base | options)


def loader(config: StageConfig, *, rank: int = 0, world: int = 1, source: Endless | None = None, **options: object) -> Loader[int, int]:
    source = source or Endless()
    _, size = micro_batches(config, world)
    return Loader(source, source.prepare, make_batch, batch_size=config.batch_size, size=size, rank=rank, world=world, **options)  # type: ignore[arg-type]


def watch_gradients(trainer: Trainer) -> list[dict[str, Tensor]]:
    """Return a list that fills with the gradients of each step, as the optimizer sees them."""
    seen: list[dict[str, Tensor]] = []
    names = {id(p): n for n, p in trainer.model.named_parameters()}  # type: ignore[attr-defined]

    def look(optimizer: torch.optim.Optimizer, *_: object) -> None:
        found = {}
        for entry in optimizer.param_groups:
            for parameter in entry["params"]:
                if parameter.grad is not None:
                    gradient = parameter.grad
                    found[names[id(parameter)]] = (gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient).clone()
        seen.append(found)

    inner = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    inner.register_step_pre_hook(look)
    return seen


def reach(model: Toy) -> Toy:
    """Freeze what the loss does not reach."""
    for parameter in model.unreached.parameters():
        parameter.requires_grad_(False)
    return model


# What follows runs in child processes, one per rank.


def two_by_two_by_five(accelerator: Accelerator, out: Path) -> None:
    config = stage(micro_batch=5, clip_norm=None)
    trainer = Trainer(reach(Toy()), stage=config, steps=1, accelerator=accelerator, batches=_mine(config, accelerator))
    seen = watch_gradients(trainer)
    trainer.run()
    save_file(seen[0], out / f"gradients{accelerator.process_index}.safetensors")
    trainer.close()


def disjoint(accelerator: Accelerator, out: Path) -> None:
    """Rank 0 has region only; rank 1 has mask in step 1 and chat only in step 2."""
    steps = DISJOINT[accelerator.process_index]
    trainer = Trainer(reach(Toy()), stage=stage(clip_norm=None), steps=2, accelerator=accelerator, batches=Listed(steps))
    seen = watch_gradients(trainer)
    trainer.run()
    for index, gradients in enumerate(seen):
        save_file(gradients, out / f"disjoint{index}-{accelerator.process_index}.safetensors")
    trainer.close()


DISJOINT = (
    [[make_batch(range(5), only="region")], [make_batch(range(10, 15), only="region")]],
    [[make_batch(range(5, 10), only="mask")], [make_batch(range(15, 20), only="chat")]],
)


def one_fails(accelerator: Accelerator, out: Path) -> None:
    """Too many bad rows on rank 1: both ranks stop, each with its own message."""

    def report(row: object) -> None:
        raise DataError("too many bad rows")

    config = stage(micro_batch=5)
    bad = Endless(bad=[5]) if accelerator.process_index == 1 else Endless()
    batches = loader(config, rank=accelerator.process_index, world=2, source=bad, report=report)
    trainer = Trainer(reach(Toy()), stage=config, steps=1, accelerator=accelerator, batches=batches)
    try:
        trainer.run()
        message = "no error"
    except TPOError as error:
        message = f"{type(error).__name__}: {error}"
    (out / f"one_fails{accelerator.process_index}.txt").write_text(message)
    trainer.close()


def sharded(accelerator: Accelerator, out: Path) -> None:
    """FSDP2 by torch's own `fully_shard`, heads as units of their own, rank 1 without any query."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = reach(Toy())
    mesh = init_device_mesh("cpu", (accelerator.num_processes,))
    for head in model.heads.values():
        fully_shard(head, mesh=mesh)
    fully_shard(model, mesh=mesh)
    steps = [
        [[make_batch(range(5), only="region"), make_batch(range(20, 25), only="region")]] * 3,
        [[make_batch(range(5, 10), only="chat")] * 2] * 3,
    ]
    trainer = Trainer(model, stage=stage(), steps=3, accelerator=accelerator, batches=Listed(steps[accelerator.process_index]))
    seen = watch_gradients(trainer)
    trainer.run()
    state = trainer.state()
    for index, gradients in enumerate(seen):
        save_file(gradients, out / f"sharded{index}-{accelerator.process_index}.safetensors")
    again = Trainer(model, stage=stage(), steps=3, accelerator=accelerator, batches=Listed([]), start=state)
    restored = again.state()
    same = all(torch.equal(state.optimizer[n][k], restored.optimizer[n][k]) for n in state.optimizer for k in state.optimizer[n])
    weights = {n: p.full_tensor().detach().contiguous() for n, p in model.named_parameters()}
    save_file(weights, out / f"sharded_weights-{accelerator.process_index}.safetensors")
    shards = any(map(is_sharded, model.parameters()))
    (out / f"sharded{accelerator.process_index}.txt").write_text(f"{len(state.optimizer)} {same} {shards}")


def random_states(accelerator: Accelerator, out: Path) -> None:
    """Each rank has its own random state, and a checkpoint holds both."""
    trainer = Trainer(reach(Toy()), stage=stage(), steps=1, accelerator=accelerator, batches=Listed([]), seed=4)
    state = trainer.state()
    value = torch.rand(3)
    again = Trainer(reach(Toy()), stage=stage(), steps=1, accelerator=accelerator, batches=Listed([]), start=state)
    repeated = torch.rand(3)
    save_file(
        {"value": value, "repeated": repeated, "count": torch.tensor(len(state.rng))}, out / f"rng{accelerator.process_index}.safetensors"
    )
    trainer.close()
    again.close()


def pulls(accelerator: Accelerator, out: Path) -> None:
    """The parts of the gradient are of the whole step, and measuring leaves the gradients alone."""
    model = reach(Toy())
    rows: list[dict[str, float]] = []
    config = stage(micro_batch=5, clip_norm=None)
    balance = Balance("fixed", TERMS, shared=shared_parameters(model), measure_every=1)
    batches = _mine(config, accelerator)
    trainer = Trainer(model, stage=config, steps=1, accelerator=accelerator, batches=batches, balance=balance, log=rows.append)  # type: ignore[arg-type]
    seen = watch_gradients(trainer)
    trainer.run()
    save_file(seen[0], out / f"pulls{accelerator.process_index}.safetensors")
    (out / f"pulls{accelerator.process_index}.json").write_text(json.dumps(rows))
    trainer.close()


def main_fails(accelerator: Accelerator, out: Path) -> None:
    """The main process cannot write: nobody is left waiting."""

    def write() -> None:
        raise CheckpointError("disk full")

    try:
        run_on_main(accelerator, write)
        message = "no error"
    except TPOError as error:
        message = f"{type(error).__name__}: {error}"
    (out / f"main_fails{accelerator.process_index}.txt").write_text(f"{message} {run_on_main(accelerator, lambda: 7)}")


def gathered(accelerator: Accelerator, out: Path) -> None:
    """Texts of all processes, of any length."""
    processes = Processes(accelerator)
    found = [processes.gather(text) for text in (("a", "größer\n" * 500)[processes.rank], ("0", "1")[processes.rank])]
    (out / f"gathered{processes.rank}.json").write_text(json.dumps([processes.world, *found]))


SCENARIOS: tuple[Callable[[Accelerator, Path], None], ...] = (
    two_by_two_by_five,
    disjoint,
    one_fails,
    pulls,
    main_fails,
    gathered,
    random_states,
    sharded,
)


def _mine(config: StageConfig, accelerator: Accelerator) -> Loader[int, int]:
    return loader(config, rank=accelerator.process_index, world=accelerator.num_processes)


def main(out: Path) -> None:
    """Run every scenario as one rank of a gloo group."""
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    (out / f"strategy{os.environ['RANK']}.txt").write_text(f"{accelerator.distributed_type} {accelerator.num_processes}")
    for scenario in SCENARIOS:
        scenario(accelerator, out)
        accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
