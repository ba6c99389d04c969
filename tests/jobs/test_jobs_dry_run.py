"""The dry run: formulas against counters of torch's own, faults told side by side, nothing written, no weights needed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from tiny_run import recipe, region_rows
from torch.utils.flop_counter import FlopCounterMode

from tpo_core.cli import main
from tpo_core.jobs.assembly import assemble, load_heads
from tpo_core.jobs.dry_cost import SampleSize, count_patches, estimate_memory, estimate_operations, shape_of
from tpo_core.jobs.dry_run import DryRun
from tpo_core.jobs.recipes import read_recipe
from tpo_core.jobs.sources import ReadAndPrepare, dry_rows, open_sources
from tpo_core.plugins import load_plugins
from tpo_core.train import fixed_parameters, freeze, resolve_rates

FAMILIES = ("qwen3_vl", "llava_onevision")
TRAINED = {
    "adapter": {"lora": 1e-3, "tokens": 1e-3, "heads": 1e-3},
    "whole": {"vision": 1e-3, "connector": 1e-3, "llm": 1e-3, "tokens": 1e-3, "heads": 1e-3},
    "heads alone": {"heads": 1e-3},
}


@pytest.fixture(scope="module")
def weightless(backbones, tmp_path_factory):
    folder = tmp_path_factory.mktemp("weightless")
    for family in FAMILIES:
        shutil.copytree(backbones[family], folder / family, ignore=shutil.ignore_patterns("*.safetensors"))
    return folder


def look(mapping, plugins=None):
    plugins = plugins or load_plugins()
    return DryRun(read_recipe(mapping, plugins, heads=None, overrides=()), plugins).run()


def step(folder: Path, backbone: Path, train: dict[str, float], *, attention: str | None = None):
    """The model, frozen as the stage says, with four samples of one batch and their mean size."""
    plugins = load_plugins()
    mapping = recipe(folder, backbone)
    mapping["stages"] = [{**mapping["stages"][0], "train": train}]
    mapping["model"]["attention"] = attention
    made = read_recipe(mapping, plugins, heads=None, overrides=())
    assembly = assemble(made, load_heads(plugins, made.heads))
    sources = open_sources(made.data.train, plugins, cache=folder / "cache")
    samples = dry_rows(sources, ReadAndPrepare(sources, assembly.preparer))
    batch = assembly.collator()(samples)
    rates = resolve_rates(made.stages[0], assembly.model.groups())
    freeze(assembly.model, rates, fixed=fixed_parameters(assembly.model))
    count = len(samples)
    longest = float(max(len(s.ids) for s in samples))
    # A batch is padded to its longest sample; the counters see the padding too.
    size = SampleSize(
        tokens=longest,
        learnt=sum(len(s.learn) for s in samples) / count,
        patches=sum(count_patches(assembly.model.backbone, s.visual) for s in samples) / count,
        longest=longest,
    )
    return assembly.model.train(), batch, size, set(rates)


@pytest.mark.parametrize("trained", TRAINED)
@pytest.mark.parametrize("family", FAMILIES)
def test_operations_are_near_what_torch_counts(family, trained, tmp_path, backbones):
    # Written out, for the counter does not know the fused attention of CPUs.
    model, batch, size, groups = step(tmp_path, backbones[family], TRAINED[trained], attention="eager")
    denominators = {term: max(batch.counts.get(term, 0.0), 1.0) for term in model.terms()}
    with FlopCounterMode(display=False) as counter:
        model(batch, denominators).loss.backward()
    counted = counter.get_total_flops()
    adapter = bool(model.backbone.groups()["lora"])
    estimated = sum(estimate_operations(model, shape_of(model.backbone), size, len(batch), groups, adapter=adapter).values())
    assert estimated == pytest.approx(counted, rel=0.25)


@pytest.mark.parametrize("trained", ["adapter", "whole"])
def test_activations_are_near_what_autograd_keeps(trained, tmp_path, backbones):
    model, batch, size, _ = step(tmp_path, backbones["llava_onevision"], TRAINED[trained])
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}
    held = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        held.append(tensor)
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    denominators = {term: max(batch.counts.get(term, 0.0), 1.0) for term in model.terms()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(batch, denominators)
    memory = estimate_memory(model, shape_of(model.backbone), size, len(batch), dropout=trained == "adapter")
    assert memory["activations"] == pytest.approx(sum(kept.values()), rel=0.35)


def test_weights_gradients_and_moments_are_counted_to_the_byte(tmp_path, backbones):
    model, batch, size, groups = step(tmp_path, backbones["qwen3_vl"], TRAINED["adapter"])
    memory = estimate_memory(model, shape_of(model.backbone), size, 1, dropout=False)
    assert memory["weights"] == sum(p.numel() * 4 for p in model.parameters())
    trained = [p for p in model.parameters() if p.requires_grad]
    assert memory["gradients"] == sum(p.numel() * 4 for p in trained)
    optimizer = torch.optim.AdamW(trained)
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    moments = [s[key] for s in optimizer.state.values() for key in ("exp_avg", "exp_avg_sq")]
    assert memory["optimizer"] == sum(m.numel() * m.element_size() for m in moments)


def test_without_weights_everything_is_counted(tmp_path, backbones, weightless):
    real = look(recipe(tmp_path / "real", backbones["qwen3_vl"]))
    mapping = recipe(tmp_path / "empty", weightless / "qwen3_vl")
    before = sorted(tmp_path.rglob("*"))
    found = look(mapping)
    assert sorted(tmp_path.rglob("*")) == before
    assert found["ok"]
    assert found["model"]["parameters"] == real["model"]["parameters"]
    assert [s["operations"] for s in found["stages"]] == [s["operations"] for s in real["stages"]]
    first = found["stages"][0]
    assert first["steps"] == 3
    assert first["parameters"]["llm"]["trained"] == 0
    assert first["parameters"]["lora"]["frozen"] == 0
    assert first["parameters"]["heads.region"]["trained"] == found["model"]["parameters"]["heads.region"]
    assert first["mixture"] == [{"source": "toy", "size": 12, "samples": 12, "share": 1.0, "epochs": 1.0}]
    assert first["operations"]["stage"] == 3 * first["operations"]["step"]


def test_all_faults_are_told_at_once(tmp_path, backbones):
    rows = region_rows()
    rows[1]["messages"][0]["content"][0]["path"] = "missing.png"
    mapping = recipe(tmp_path, backbones["qwen3_vl"], rows=rows)
    mapping["data"]["train"].append({"name": "gone", "path": str(tmp_path / "gone.jsonl")})
    mapping["data"]["test"].append({"name": "lost", "path": str(tmp_path / "lost.jsonl")})
    mapping["stages"][1] |= {"from": str(tmp_path / "nowhere"), "sources": {"toy": 1.0, "gone": 3.0}}
    found = look(mapping)
    assert not found["ok"]
    assert [text for text in found["problems"] if "gone.jsonl" in text]
    assert [text for text in found["problems"] if "lost.jsonl" in text]
    assert [text for text in found["problems"] if "nowhere" in text]
    toy = found["sources"][0]
    assert (toy["checked"], toy["usable"]) == (8, 7)
    assert "train.jsonl:2" in toy["faults"][0]
    assert "missing.png" in toy["faults"][0]
    assert [(row["source"], row["share"]) for row in found["stages"][1]["mixture"]] == [("toy", 0.25), ("gone", 0.75)]


def test_a_model_that_is_not_there_leaves_the_rest_checked(tmp_path, backbones):
    rows = region_rows()
    rows[0]["targets"][0]["boxes"] = "here"
    rows[1]["messages"][0]["content"][0]["path"] = "missing.png"
    found = look(recipe(tmp_path, tmp_path / "no-model", rows=rows))
    assert not found["ok"]
    assert not found["model"]["built"]
    assert "no-model" in found["problems"][0]
    train = found["sources"][0]
    assert train["usable"] == 6
    assert len(train["faults"]) == 2
    assert found["stages"][0]["mixture"][0]["samples"] == 12
    assert "parameters" not in found["stages"][0]


def test_a_stage_that_names_what_the_model_has_not_is_a_problem(tmp_path, backbones):
    mapping = recipe(tmp_path, backbones["qwen3_vl"])
    mapping["stages"][0]["sources"] = {"toy": 0.0}
    found = look(mapping)
    assert any("stage 'first'" in text and "above 0" in text for text in found["problems"])
    assert found["stages"][0]["mixture"] == []
    assert found["stages"][1]["operations"]["step"] > 0


def test_the_command_prints_tables_or_json_and_says_by_its_exit_code(tmp_path, weightless):
    mapping = recipe(tmp_path, weightless / "qwen3_vl")
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(mapping))
    shown = CliRunner().invoke(main, ["train", "--config", str(path), "--dry-run"])
    assert shown.exit_code == 0, shown.output
    for words in ("stage first", "heads.region", "FLOPs", "optimizer", "ready to train", "100.0%"):
        assert words in shown.output
    found = CliRunner().invoke(main, ["train", "--config", str(path), "--dry-run", "--json"])
    assert json.loads(found.output)["ok"]
    broken = CliRunner().invoke(main, ["train", "--config", str(path), "--dry-run", "--model", str(tmp_path / "none")])
    assert broken.exit_code == 1
    assert "problem: model.path" in broken.output
    assert not (tmp_path / "run").exists()


def test_seven_billion_parameters_take_no_memory(tmp_path, weightless):
    """The decoder of LLaVA-OneVision-7B (Qwen2-7B) on the meta device: 28 layers of width 3584, counted by hand."""
    folder = tmp_path / "large"
    shutil.copytree(weightless / "llava_onevision", folder)
    config = json.loads((folder / "config.json").read_text())
    sizes = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4}
    config["text_config"] |= {**sizes, "head_dim": 128, "layer_types": ["full_attention"] * 28}
    (folder / "config.json").write_text(json.dumps(config))
    mapping = recipe(tmp_path, folder)
    mapping["model"]["dtype"] = "bfloat16"
    found = look(mapping)
    attention = 3584 * (3584 + 2 * 512) + (3584 + 2 * 512) + 3584 * 3584
    layer = attention + 3 * 3584 * 18944 + 2 * 3584
    rows = config["text_config"]["vocab_size"]
    assert found["model"]["parameters"]["llm"] == 28 * layer + 3584 + 2 * rows * 3584
    memory = found["stages"][0]["memory"]
    assert memory["weights"] == pytest.approx(2 * sum(found["model"]["parameters"].values()), rel=0.02)
    assert memory["optimizer"] == 2 * memory["gradients"]


def test_a_group_under_muon_that_does_not_train_is_a_problem(tmp_path, backbones):
    mapping = recipe(tmp_path, backbones["qwen3_vl"])
    mapping["stages"][0]["muon"] = {"vision": 0.1}
    found = look(mapping)
    assert any("muon names the group 'vision', which does not train" in text for text in found["problems"])
