"""The recipes of `examples/`: equal to what they claim to be, and ready to run where their data are."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
from toy_data import write_media

from tpo_core.config import load_recipe
from tpo_core.jobs.dry_run import DryRun
from tpo_core.jobs.recipes import read_recipe
from tpo_core.plugins import load_plugins
from tpo_heads.playground import recipe as playground

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
PAPER = {"paper-videochat2.yaml": "qwen2_5_vl", "paper-llava-onevision.yaml": "llava_onevision"}


@pytest.fixture(scope="module")
def maker():
    spec = importlib.util.spec_from_file_location("make_recipes", EXAMPLES / "make_recipes.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read(name: str, overrides=()):
    return read_recipe(EXAMPLES / name, load_plugins(), heads=None, overrides=overrides)


@pytest.mark.parametrize("name", ["playground.yaml", "playground-long.yaml"])
def test_a_file_is_what_its_maker_writes(maker, name):
    make, header = maker.FILES[name]
    assert (EXAMPLES / name).read_text("utf-8") == maker.as_yaml(make(), header), "run `python examples/make_recipes.py`"


def test_the_playgrounds_file_is_the_built_in_recipe(tmp_path, monkeypatch):
    """Against the recipe over files that really were written, not against the maker's own idea of them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(playground, "lay_base", lambda folder, **_: folder)
    made = playground.default(playground.HEADS, "runs/first", samples=20)
    configs = {name: load_plugins().config_class(name) for name in playground.HEADS}
    expected = load_recipe(json.loads(json.dumps(made)), head_configs=configs).model_dump(mode="json")
    found = read("playground.yaml").model_dump(mode="json")
    weights = found["heads"]["mask"]["weights"]
    # No base was laid, so there is no SAM2; the shipped one lies where `prepare` looks for it.
    assert Path(weights) == Path(found["model"]["path"]) / playground.SAM_FILE
    expected["heads"]["mask"]["weights"] = weights
    assert found == expected


def test_the_long_recipe_is_the_default_ones_with_more_steps():
    short, long = read("playground.yaml"), read("playground-long.yaml")
    assert [s.name for s in long.stages] == [s.name for s in short.stages]
    assert all(b.steps > a.steps for a, b in zip(short.stages, long.stages, strict=True))
    same = {"steps": 1}
    alike = ("assign", "region", "mask", "joint")
    left, right = ([s.model_copy(update=same) for s in recipe.stages if s.name in alike] for recipe in (long, short))
    assert left == right
    # In a hurry the temporal head learns alone; with time the language model learns with it, which the table asks about.
    stage = {name: next(s for s in recipe.stages if s.name == "temporal") for name, recipe in (("short", short), ("long", long))}
    assert (set(stage["short"].rates), set(stage["long"].rates)) == ({"heads.temporal"}, {"lora", "tokens", "heads"})
    assert long.trainer.eval_after_stage


@pytest.mark.parametrize(("name", "level"), [("playground.yaml", 1), ("playground-long.yaml", 2)])
def test_the_playgrounds_recipes_hold_every_check_that_a_run_begins_with(name, level, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = read(name)
    playground.prepare(Path(recipe.output) / "playground", samples=20, level=level)
    found = DryRun(recipe, load_plugins()).run()
    assert (found["problems"], found["ok"]) == ([], True)
    assert all(source["usable"] for source in found["sources"])


# PAPER: table 17 (learning rates, batch, warm-up, decay) and table 18 (samples), typed in once more.
RATES = {
    "assign": {"lora": 2e-5, "tokens": 2e-5},
    "temporal": {"heads.temporal": 1e-4, "tokens.temporal": 2e-4, "lora": 2e-5},
    "mask": {"heads.mask": 1e-4, "tokens.mask": 1e-4, "lora": 2e-5},
    "region": {"heads.region": 1e-4, "tokens.region": 1e-4, "lora": 2e-5},
    "joint": dict.fromkeys(("vision", "connector", "lora", "tokens", "heads"), 2e-5),
    "conversation": dict.fromkeys(("vision", "connector", "lora", "tokens", "heads"), 2e-5),
}
SAMPLES = {
    "assign": (150_000, 1, 128),
    "temporal": (116_500, 25, 64),
    "mask": (114_600, 3, 128),
    "region": (540_000, 1, 128),
    "joint": (564_000, 1, 256),
    "conversation": (3_564_000, 3, 256),
}


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_recipes_hold_its_table(name):
    recipe = read(name)
    assert {stage.name: stage.rates for stage in recipe.stages} == RATES
    for stage in recipe.stages:
        samples, epochs, batch = SAMPLES[stage.name]
        assert stage.batch_size == batch
        assert stage.steps == pytest.approx(samples * epochs / batch, abs=1)
        assert sum(stage.sources.values()) == pytest.approx(samples / 1000, rel=1e-3)
        assert (stage.warmup, stage.weight_decay, stage.schedule) == (0.2, 0.02, "cosine")
    assert (recipe.lora.r, recipe.lora.alpha, recipe.model.frames) == (16, 32.0, 16)
    assert recipe.heads["mask"].trains == "adapter"
    assert recipe.heads["region"].loss == "mse"


def rows_of(group: str) -> list[dict]:
    clip = {"type": "video", "path": "clip.mp4"}
    picture = {"type": "image", "path": "red.png"}
    targets = {
        "temporal": (clip, {"head": "temporal", "spans": [[0.5, 1.5]], "duration": 3.0}),
        "region": (picture, {"head": "region", "size": [80, 48], "boxes": [[8, 8, 40, 24]]}),
        "mask": (clip, {"head": "mask", "size": [80, 48], "frames": [0, 1], "boxes": [[8, 8, 40, 24], [8, 8, 40, 24]], "visible": [1, 1]}),
    }
    medium, target = targets.get(group, (clip, None))
    asked = {"role": "user", "content": [medium, {"type": "text", "text": "find it"}]}
    answer = [{"type": "target", "id": "t0"}] if target else "It is there."
    row = {"id": "r", "messages": [asked, {"role": "assistant", "content": answer}]}
    return [{**row, "targets": [{"id": "t0", "media": 0, **target}] if target else []}]


def write_source(path: Path, reader: str, group: str) -> None:
    write_media(path.parent)
    if reader == "videochat2_it":
        path.write_text(json.dumps([{"video": "clip.mp4", "QA": [{"i": "", "q": "what is it?", "a": "a toy"}]}]))
    elif reader == "llava":
        talk = [{"from": "human", "value": "<image>\nwhat is it?"}, {"from": "gpt", "value": "a toy"}]
        path.write_text(json.dumps([{"id": "r", "image": "red.png", "conversations": talk}]))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows_of(group)))


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_recipes_are_ready_where_their_data_are(name, tmp_path, monkeypatch, backbones):
    """Without weights of anything: not of the model, not of SAM2."""
    monkeypatch.chdir(tmp_path)
    model = tmp_path / "model"
    shutil.copytree(backbones[PAPER[name]], model, ignore=shutil.ignore_patterns("*.safetensors"))
    recipe = read(name, [f"model.path={json.dumps(str(model))}"])
    for source in (*recipe.data.train, *recipe.data.test):
        write_source(Path(source.path), source.reader, Path(source.path).parent.name)
    found = DryRun(recipe, load_plugins()).run()
    assert found["problems"] == []
    assert all(source["usable"] == source["checked"] == 1 for source in found["sources"])
    stages = {stage["name"]: stage for stage in found["stages"]}
    masks = stages["mask"]["parameters"]["heads.mask"]
    assert masks["frozen"] > 224_000_000  # SAM2 Hiera-L
    assert 0 < masks["trained"] < 1_000_000
    for stage in found["stages"]:
        late = stage["name"] in ("joint", "conversation")
        assert (stage["parameters"]["vision"]["trained"] > 0) is late
        assert (stage["parameters"]["connector"]["trained"] > 0) is late
        assert stage["parameters"]["llm"]["trained"] == 0
        assert stage["parameters"]["lora"]["frozen"] == 0
        assert stage["operations"]["step"] > 0
    assert stages["temporal"]["parameters"]["heads.region"]["trained"] == 0
    shares = {row["source"]: row["share"] for row in stages["conversation"]["mixture"]}
    assert shares["videochat2_it"] == pytest.approx(750 / 3564, rel=1e-3)


@pytest.mark.parametrize("name", [*PAPER, "playground.yaml"])
def test_where_nothing_is_there_everything_missing_is_told(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = read(name, [f"model.path={json.dumps(str(tmp_path / 'nowhere'))}"])
    found = DryRun(recipe, load_plugins()).run()
    told = " ".join(found["problems"])
    assert all(source.path in told for source in (*recipe.data.train, *recipe.data.test))
    assert "model.path" in told
    assert sum(row["share"] for row in found["stages"][0]["mixture"]) == pytest.approx(1.0)
