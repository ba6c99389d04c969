"""Affinity: against first-order calculus, on a tiny run; and the weights are as they were."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from tiny_run import recipe

from tpo_core import load_run
from tpo_core.cli import main
from tpo_core.errors import TrainError
from tpo_core.jobs.affinity import as_markdown, compare, measure_affinity, moved, owner_losses
from tpo_core.jobs.recipes import read_recipe
from tpo_core.jobs.sources import ReadAndPrepare, dry_rows, open_sources
from tpo_core.jobs.train import TrainJob
from tpo_core.plugins import load_plugins
from tpo_core.train import freeze, shared_parameters


@pytest.fixture(scope="module")
def trained(tmp_path_factory, backbones):
    folder = tmp_path_factory.mktemp("affine")
    mapping = recipe(folder, backbones["qwen3_vl"])
    mapping["lora"]["dropout"] = 0.0
    mapping["heads"]["region"] = {"weight": 0.5}
    mapping["loss"] = {"assign": 2.0}
    plugins = load_plugins()
    TrainJob(read_recipe(mapping, plugins, heads=None, overrides=()), plugins, cpu=True, test=False).run()
    return Path(mapping["output"])


def batch_of(run, folder):
    sources = open_sources(run.recipe.data.train, load_plugins(), cache=folder)
    return run.assembly.collator()(dry_rows(sources, ReadAndPrepare(sources, run.assembly.preparer), per_source=6))


def test_a_small_step_follows_the_gradients(trained, tmp_path):
    """With the held-out batch the training batch: 1 - L_j(after) / L_j = step |w| cos(i, j) |g_j| / L_j, to first order."""
    run = load_run(trained, device="cpu")
    batch = batch_of(run, tmp_path)
    freeze(run.assembly.model, ["lora"])
    losses = owner_losses(run.assembly, batch)
    assert set(losses) == {"lm", "assign", "region"}
    whole = run.assembly.model(batch, {t: max(batch.counts.get(t, 0.0), 1.0) for t in run.assembly.model.terms()}).loss.detach()
    assert sum(losses.values()) == pytest.approx(float(whole), rel=1e-5)
    step = 1e-4
    norms, cosines, transfer = compare(run.assembly, [(batch, batch)], step)
    length = step * float(torch.cat([p.detach().flatten() for p in shared_parameters(run.assembly.model)]).norm())
    for i in losses:
        for j in losses:
            expected = length * cosines[i, j][0] * norms[j][0] / losses[j]
            assert transfer[i, j][0] == pytest.approx(expected, rel=0.1, abs=2e-6), (i, j)
        assert transfer[i, i][0] > 0
        assert cosines[i, i] == [1.0]
    assert cosines["lm", "region"] == cosines["region", "lm"]


def test_nothing_of_the_model_is_left_changed(trained, tmp_path):
    run = load_run(trained, device="cpu")
    before = {name: value.clone() for name, value in run.assembly.model.state_dict().items()}
    rng = torch.get_rng_state()
    measure_affinity(run, load_plugins(), output=tmp_path, batches=2, batch_size=4, step=0.1)
    assert torch.equal(rng, torch.get_rng_state())
    after = run.assembly.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_weights_are_put_back_whatever_happens():
    weights = [torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.zeros(3))]
    seen = []

    def look():
        with moved(weights, torch.arange(7.0)):
            seen.extend(weight.tolist() for weight in weights)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        look()
    assert seen == [[[1, 2], [3, 4]], [4, 5, 6]]
    assert weights[0].tolist() == [[1, 1], [1, 1]]
    assert weights[1].tolist() == [0, 0, 0]


def test_a_detached_head_pulls_on_nothing(trained, tmp_path):
    run = load_run(trained, device="cpu")
    run.assembly.model.slot("region").detach = True
    freeze(run.assembly.model, ["lora"])
    batch = batch_of(run, tmp_path)
    norms, cosines, transfer = compare(run.assembly, [(batch, batch)], 1e-4)
    assert set(norms) == {"lm", "assign"}
    assert ("lm", "region") in transfer
    assert ("region", "lm") not in transfer
    assert not [pair for pair in cosines if "region" in pair]


def test_the_command_writes_tables_and_heat_maps(trained, tmp_path):
    arguments = ["affinity", str(trained), "--batches", "2", "--batch-size", "4", "--output", str(tmp_path / "out")]
    found = CliRunner().invoke(main, [*arguments, "--json"])
    assert found.exit_code == 0, found.output
    measured = json.loads(found.stdout)
    assert json.loads((tmp_path / "out" / "affinity.json").read_text()) == measured
    assert measured["owners"] == ["lm", "assign", "region"]
    assert measured["shared"]["group"] == "lora"
    assert measured["transfer"]["lm"]["region"]["batches"] >= 1
    for name in ("cosines", "transfer"):
        assert min(Image.open(measured["files"][name]).size) > 200
    assert (tmp_path / "out" / "affinity.md").read_text() == as_markdown(measured)
    shown = CliRunner().invoke(main, arguments)
    assert "share by which a held-out loss falls" in shown.output


def test_the_same_seed_measures_the_same(trained, tmp_path):
    options = {"batches": 1, "batch_size": 3}
    first = measure_affinity(load_run(trained, device="cpu"), load_plugins(), output=tmp_path / "a", **options)
    second = measure_affinity(load_run(trained, device="cpu"), load_plugins(), output=tmp_path / "b", **options)
    assert first["transfer"] == second["transfer"]
    other = measure_affinity(load_run(trained, device="cpu"), load_plugins(), output=tmp_path / "c", seed=9, **options)
    assert other["transfer"] != first["transfer"]


def test_a_run_without_shared_weights_or_tests_is_told(tmp_path, backbones):
    plugins = load_plugins()
    mapping = recipe(tmp_path, backbones["qwen3_vl"])
    mapping["stages"] = [{**mapping["stages"][0], "steps": 1, "train": {"heads": 1e-3}}]
    TrainJob(read_recipe(mapping, plugins, heads=None, overrides=()), plugins, cpu=True, test=False).run()
    run = load_run(mapping["output"], device="cpu")
    with pytest.raises(TrainError, match="share no weights"):
        measure_affinity(run, plugins, output=tmp_path / "a")
    run.recipe = run.recipe.model_copy(update={"data": run.recipe.data.model_copy(update={"test": ()})})
    with pytest.raises(TrainError, match="no test sources"):
        measure_affinity(run, plugins, output=tmp_path / "a")
