"""Two processes over gloo: the same gradients as one, no hang without queries, nobody waits for a process that cannot go on."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor
from toys_train import DISJOINT, Listed, Toy, loader, make_batch, reach, stage, watch_gradients

from tpo_core.train import Trainer, measure_pulls, shared_parameters


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run all scenarios in two processes; return the folder with what they wrote."""
    out = tmp_path_factory.mktemp("two")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in range(2):
        env = os.environ | {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": "2",
            "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "ACCELERATE_USE_CPU": "true",
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "lo",
        }
        with (out / f"log{rank}.txt").open("w") as log:
            script = Path(__file__).with_name("toys_train.py")
            children.append(subprocess.Popen([sys.executable, str(script), str(out)], env=env, stdout=log, stderr=log))
    try:
        codes = [child.wait(timeout=240) for child in children]
    finally:
        for child in children:
            child.kill()
    logs = "\n".join((out / f"log{rank}.txt").read_text() for rank in range(2))
    assert codes == [0, 0], logs
    return out


def one_process(steps: object, count: int = 1, **options: object) -> list[dict[str, Tensor]]:
    trainer = Trainer(
        reach(Toy()), stage=stage(**({"clip_norm": None} | options)), steps=count, accelerator=Accelerator(cpu=True), batches=steps
    )
    seen = watch_gradients(trainer)
    trainer.run()
    trainer.close()
    return seen


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=1e-5, atol=1e-7, msg=lambda text, name=name: f"{name}: {text}")


def test_accelerate_really_runs_two_processes(two: Path) -> None:
    assert [(two / f"strategy{rank}.txt").read_text() for rank in range(2)] == ["DistributedType.MULTI_CPU 2"] * 2


def test_one_of_20_is_4_of_5_is_2_processes_of_2_of_5(two: Path) -> None:
    whole = one_process(loader(stage()))[0]
    quarters = one_process(loader(stage(micro_batch=5)), micro_batch=5)[0]
    assert len(whole) == 17
    assert_same(quarters, whole)
    for rank in range(2):
        assert_same(load_file(two / f"gradients{rank}.safetensors"), whole)


def test_means_per_micro_batch_would_be_far_off() -> None:
    """The data can tell: dividing each micro-batch by its own counts gives other gradients."""
    whole = one_process(loader(stage()))[0]
    model = reach(Toy())
    for start in range(0, 20, 5):
        batch = make_batch(range(start, start + 5))
        own = {term: max(batch.counts.get(term, 0.0), 1.0) for term in model.terms()}
        (model(batch, own).loss / 4).backward()
    worst = max(
        float((p.grad - whole[n]).norm() / whole[n].norm()) for n, p in model.named_parameters() if n in whole and p.grad is not None
    )
    assert worst > 0.05


def test_disjoint_heads_and_a_chat_only_process(two: Path) -> None:
    steps = [[DISJOINT[0][step][0], DISJOINT[1][step][0]] for step in range(2)]
    expected = one_process(Listed(steps), 2)
    assert "heads.mask.head.0.weight" in expected[0]
    assert "heads.mask.head.0.weight" not in expected[1]
    for step in range(2):
        for rank in range(2):
            assert_same(load_file(two / f"disjoint{step}-{rank}.safetensors"), expected[step])


def test_nobody_waits_for_a_process_that_cannot_go_on(two: Path) -> None:
    messages = [(two / f"one_fails{rank}.txt").read_text() for rank in range(2)]
    assert messages == ["TrainError: 1 other process(es) of this run cannot go on; their messages say why", "DataError: too many bad rows"]


def test_nobody_waits_for_a_main_process_that_cannot_write(two: Path) -> None:
    assert [(two / f"main_fails{rank}.txt").read_text() for rank in range(2)] == [
        "CheckpointError: disk full 7",
        "TrainError: the main process could not write the run's folder; its message says why None",
    ]


def test_texts_of_all_processes(two: Path) -> None:
    for rank in range(2):
        assert json.loads((two / f"gathered{rank}.json").read_text()) == [2, ["a", "größer\n" * 500], ["0", "1"]]


def test_pulls_are_of_the_whole_step(two: Path) -> None:
    model = reach(Toy())
    batch = make_batch(range(20))
    denominators = {term: max(batch.counts.get(term, 0.0), 1.0) for term in model.terms()}
    expected = measure_pulls(model, [batch], denominators, shared_parameters(model), Accelerator(cpu=True))
    assert (two / "pulls1.json").read_text() == "[]"
    row = json.loads((two / "pulls0.json").read_text())[0]
    assert {name: row[f"pull/{name}"] for name in expected.norms} == pytest.approx(expected.norms, rel=1e-4)
    assert {pair: row[f"cosine/{pair[0]}/{pair[1]}"] for pair in expected.cosines} == pytest.approx(expected.cosines, abs=1e-4)
    for rank in range(2):
        assert_same(load_file(two / f"pulls{rank}.safetensors"), load_file(two / f"gradients{rank}.safetensors"))


def test_each_process_has_its_own_random_state(two: Path) -> None:
    first, second = (load_file(two / f"rng{rank}.safetensors") for rank in range(2))
    assert int(first["count"]) == 2
    assert not torch.equal(first["value"], second["value"])
    assert torch.equal(first["value"], first["repeated"])
    assert torch.equal(second["value"], second["repeated"])


def test_fsdp2_with_a_process_without_queries(two: Path) -> None:
    batches = [
        [make_batch(range(5), only="region"), make_batch(range(20, 25), only="region"), *[make_batch(range(5, 10), only="chat")] * 2]
    ] * 3
    model = reach(Toy())
    trainer = Trainer(model, stage=stage(), steps=3, accelerator=Accelerator(cpu=True), batches=Listed(batches))
    seen = watch_gradients(trainer)
    trainer.run()
    for step in range(3):
        for rank in range(2):
            assert_same(load_file(two / f"sharded{step}-{rank}.safetensors"), seen[step])
    weights = load_file(two / "sharded_weights-1.safetensors")
    assert_same(weights, {name: parameter.detach() for name, parameter in model.named_parameters()})
    assert (two / "sharded0.txt").read_text() == f"{len(seen[0])} True True"
