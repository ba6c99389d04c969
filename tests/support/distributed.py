"""Two gloo processes around the real model; functions live here so that spawned processes can import them."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def spawn(
    work: Callable[..., dict[str, torch.Tensor]], folder: Path, *args: Any, world: int = 2, seconds: int = 300
) -> list[dict[str, torch.Tensor]]:
    """Run `work(rank, world, *args)` in processes joined by gloo and return what each gave. A hang is killed and fails."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = mp.spawn(_enter, args=(world, port, work, folder, args), nprocs=world, join=False)
    deadline = seconds
    while not context.join(timeout=1):
        deadline -= 1
        if deadline <= 0:
            for process in context.processes:
                process.kill()
            raise TimeoutError(f"{work.__name__} hung for {seconds} s")
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(world)]


def _enter(rank: int, world: int, port: int, work: Callable[..., Any], folder: Path, args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_RANK": str(rank),
    }
    dist.init_process_group("gloo", rank=rank, world_size=world)
    try:
        torch.save(work(rank, world, *args), folder / f"rank{rank}.pt")
    finally:
        dist.destroy_process_group()


def _batches(assembly: Any, root: Path, groups: list[list[int]]) -> list[Any]:
    from toy_data import mixed_records

    records = mixed_records()
    out = []
    for group in groups:
        prepared = [assembly.preparer.training(records[i], root=root, seed=(i,)) for i in group]
        out.append(assembly.collator()(prepared))
    return out


def _summed(counts: list[dict[str, float]]) -> dict[str, float]:
    keys = sorted({key for c in counts for key in c})
    values = torch.tensor([sum(c[key] for c in counts) for key in keys], dtype=torch.float64)
    if dist.is_initialized():
        dist.all_reduce(values)
    return dict(zip(keys, values.tolist(), strict=True))


def ddp_scenarios(rank: int, world: int, scenarios: dict[str, tuple[Path, Path, list[list[list[int]]]]]) -> dict[str, torch.Tensor]:
    """Gradients of one optimiser step under DDP for each scenario, named ``<scenario>|<parameter>``.

    A scenario is (backbone folder, media folder, plan); `plan[rank]` lists this rank's micro-batches by record index.
    """
    found = {}
    for name, (backbone, root, plan) in scenarios.items():
        found |= {f"{name}|{key}": value for key, value in _ddp_gradients(backbone, root, plan[rank], world).items()}
    return found


def _ddp_gradients(backbone: Path, root: Path, groups: list[list[int]], world: int) -> dict[str, torch.Tensor]:
    from tiny import assemble, gradients
    from torch.nn.parallel import DistributedDataParallel

    assembly = assemble(backbone)
    assembly.model.train()
    wrapped = DistributedDataParallel(assembly.model)
    batches = _batches(assembly, root, groups)
    counts = _summed([b.counts for b in batches])
    for i, batch in enumerate(batches):
        with wrapped.no_sync() if i < len(batches) - 1 else torch.enable_grad():
            (wrapped(batch, counts).loss * world).backward()
    return gradients(assembly.model)


def single_gradients(backbone: Path, root: Path, groups: list[list[int]]) -> dict[str, torch.Tensor]:
    """The same step in one process."""
    from tiny import assemble, gradients

    assembly = assemble(backbone)
    assembly.model.train()
    batches = _batches(assembly, root, groups)
    counts = _summed([b.counts for b in batches])
    for batch in batches:
        assembly.model(batch, counts).loss.backward()
    return gradients(assembly.model)


def fsdp_step(rank: int, world: int, backbone: Path, root: Path, plan: list[list[list[int]]]) -> dict[str, torch.Tensor]:
    """Gradients of one step under FSDP2: every head slot, every decoder layer and the root are units."""
    from tiny import assemble
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    assembly = assemble(backbone)
    model = assembly.model.train()
    mesh = init_device_mesh("cpu", (world,))
    for slot in model.slots.values():
        fully_shard(slot, mesh=mesh)
        register_fsdp_forward_method(slot, "embed_prompts")
    for layer in model.backbone.decoder.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    batches = _batches(assembly, root, plan[rank])
    counts = _summed([b.counts for b in batches])
    for batch in batches:
        (model(batch, counts).loss * world).backward()
    gradients = {n: p.grad.full_tensor() for n, p in model.named_parameters() if p.grad is not None}
    assert gradients
    return gradients
