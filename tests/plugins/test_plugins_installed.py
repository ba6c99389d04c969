"""Packages as users have them: wheels built and installed in an environment of their own, listed, trained, uninstalled, broken.

The environment sees this one's libraries by links (nothing is downloaded) but for tpo and its plugins, which come from the wheels alone.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("tpo-head-point", "tpo-head-depth", "tpo-head-contrast", "tpo-head-frame", "tpo-jsonl-log")
OFFLINE = ("--no-index", "--no-deps", "--quiet", "--disable-pip-version-check")
SETUP = (
    "[metadata]\nname = {name}\nversion = {version}\n[options]\npy_modules = {module}\n"
    "[options.entry_points]\n{group} =\n    {entry} = {module}\n"
)
CARD = (
    "from tpo_core import HeadSpec, hookimpl\n@hookimpl\ndef {hook}():\n    return [HeadSpec(name='{head}', summary='s', config='x:C', "
    "head='x:H', codec='x:D', metric='x:M', primary='p')]\n"
)
ODD = {
    "broken": ("tpo_core.v1", "raise RuntimeError('boom')\n"),
    "outdated": ("tpo_core.v0", "raise RuntimeError('must not be imported')\n"),
    "clash": ("tpo_core.v1", CARD.format(hook="tpo_heads", head="point")),
    "misspelt": ("tpo_core.v1", CARD.format(hook="tpo_headz", head="typo")),
    "empty": ("tpo_core.v1", ""),
}
"""Package tpo-odd-<status> -> its entry-point group and module."""

STATES = """
import hashlib, json, sys, warnings
from tpo_core import load_run
run = load_run(sys.argv[1], device="cpu")
model = run.assembly.model
digest = lambda state: hashlib.sha256(b"".join(v.numpy().tobytes() for _, v in sorted(state.items()))).hexdigest()
print(json.dumps({"missing": run.missing, "heads": {n: digest(model.slot(n).head.state_dict()) for n in run.heads},
                  "tokens": {k: float(v.sum()) for k, v in model.tokens.state_by_name().items()},
                  "adapter": digest(model.backbone.adapter_state())}))
"""


class Place:
    """An environment and a folder to work in."""

    def __init__(self, folder: Path, wheels: Path) -> None:
        self.folder, self.wheels = folder, wheels
        self.python = folder / "venv" / "bin" / "python"

    def run(self, *command: str, code: int = 0, **variables: str) -> subprocess.CompletedProcess[str]:
        hidden = ("TPO_", "PYTHONPATH", "PIP_")
        environment = {key: value for key, value in os.environ.items() if not key.startswith(hidden)}
        environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **variables}
        done = subprocess.run(
            [str(self.python.parent / command[0]), *command[1:]], cwd=self.folder, capture_output=True, text=True, env=environment
        )
        assert done.returncode == code, (command, done.stdout[-3000:], done.stderr[-3000:])
        return done

    def pip(self, *arguments: str) -> None:
        self.run("python", "-m", "pip", *arguments)

    def install(self, *names: str) -> None:
        self.pip("install", *OFFLINE, *(str(next(self.wheels.glob(f"{name.replace('-', '_')}-*.whl"))) for name in names))

    def uninstall(self, *names: str) -> None:
        self.pip("uninstall", "--yes", "--quiet", *names)

    def statuses(self, **variables: str) -> dict[str, tuple[str, str | None]]:
        listed = json.loads(self.run("tpo", "heads", "--json", **variables).stdout)
        return {entry["package"]: (entry["status"], entry["cause"]) for entry in listed if entry["package"] != "tpo"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("installed")
    wheels = folder / "wheels"
    sources = [_copy_own(folder / "src" / "tpo"), *(_copy_plugin(name, folder / "src" / name) for name in PACKAGES)]
    sources += [_write_odd(status, folder / "src" / status) for status in ODD]
    build = ["-m", "pip", "wheel", *OFFLINE, "--no-build-isolation", "--wheel-dir", str(wheels)]
    subprocess.run([sys.executable, *build, *map(str, sources)], check=True, capture_output=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
    _link_libraries(folder / "libraries")
    (site,) = (folder / "venv").glob("lib/python*/site-packages")
    (site / "libraries.pth").write_text(f"{folder / 'libraries'}\n")
    made = Place(folder, wheels)
    made.install("tpo", *PACKAGES)
    yield made
    shutil.rmtree(folder, ignore_errors=True)


def _copy_own(target: Path) -> Path:
    skipped = shutil.ignore_patterns("__pycache__")
    for name in ("tpo_core", "tpo_heads"):
        shutil.copytree(ROOT / name, target / name, ignore=skipped)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, target / name)
    return target


def _copy_plugin(name: str, target: Path) -> Path:
    shutil.copytree(ROOT / "plugins" / name, target, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "build", "runs"))
    return target


def _write_odd(status: str, target: Path) -> Path:
    group, source = ODD[status]
    target.mkdir(parents=True)
    shutil.copy(ROOT / "plugins" / "tpo-head-point" / "pyproject.toml", target)
    values = {"name": f"tpo-odd-{status}", "version": "0.3", "module": f"tpo_odd_{status}", "group": group, "entry": f"odd_{status}"}
    (target / "setup.cfg").write_text(SETUP.format(**values))
    (target / f"tpo_odd_{status}.py").write_text(source)
    return target


def _link_libraries(folder: Path) -> None:
    """Link what is installed here, but for this project, its plugins and what makes them editable."""
    folder.mkdir()
    for site in dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))):
        for path in Path(site).iterdir():
            if path.suffix != ".pth" and not path.name.startswith(("tpo", "__editable__", "__pycache__")):
                (folder / path.name).symlink_to(path)


@pytest.fixture(scope="module")
def trained(place: Place) -> dict[str, Any]:
    options = ("recipe.samples=40", "recipe.base=scratch", "recipe.scale=0.02", "trainer.eval_samples=6")
    out = place.run("tpo", "train", "--heads", "region,point,depth", "--output", "run", *options, "--json", TPO_JSONL_LOG="steps.jsonl")
    summary: dict[str, Any] = json.loads(out.stdout.splitlines()[-1])
    return summary


@pytest.mark.long
def test_wheels_are_listed_and_bring_their_commands(place: Place) -> None:
    assert place.statuses(TPO_STRICT_PLUGINS="1") == dict.fromkeys(PACKAGES, ("ok", None))
    module = place.run("python", "-c", "import tpo_core, tpo_head_point; print(tpo_core.__file__, tpo_head_point.__file__)").stdout
    assert all(path.startswith(str(place.folder / "venv")) for path in module.split())
    assert "from tpo-jsonl-log 0.1.0" in place.run("tpo", "--help").stdout
    assert "20 of 21 checks passed, 0 failed" in place.run("tpo", "heads", "check", "point").stdout


@pytest.mark.long
def test_heads_of_several_packages_train_together(place: Place, trained: dict[str, Any]) -> None:
    assert set(trained["heads"]) == {"region", "point", "depth"}
    for name in ("region", "point", "depth"):
        assert set(trained["heads"][name]) == set(trained["chance"][name])
        assert trained["heads"][name]
    origin = json.loads((place.folder / "run" / "run.json").read_text())["heads"]
    assert {name: value["package"] for name, value in origin.items()} == {
        "region": "tpo",
        "point": "tpo-head-point",
        "depth": "tpo-head-depth",
    }
    assert len((place.folder / "steps.jsonl").read_text().splitlines()) == trained["steps"]
    assert "over" in place.run("tpo", "log", "steps.jsonl").stdout


@pytest.mark.long
def test_a_run_outlives_a_package_that_is_uninstalled(place: Place, trained: dict[str, Any]) -> None:
    before = json.loads(place.run("python", "-c", STATES, "run").stdout)
    assert (set(before["heads"]), before["missing"]) == ({"region", "point", "depth"}, {})
    place.uninstall("tpo-head-depth")
    try:
        done = place.run("python", "-c", STATES, "run")
        after = json.loads(done.stdout)
        assert "pip install tpo-head-depth==0.1.0" in after["missing"]["depth"]
        assert "pip install tpo-head-depth==0.1.0" in done.stderr
        assert after["heads"] == {name: before["heads"][name] for name in ("region", "point")}
        assert after["tokens"] == {key: value for key, value in before["tokens"].items() if not key.startswith("depth/")}
        assert after["adapter"] == before["adapter"]
        picture = next((place.folder / "run" / "playground" / "data" / "media" / "test").glob("*.png"))
        answer = place.run("tpo", "predict", "run", "--image", str(picture), "find the red ring.", "--json")
        assert "text" in json.loads(answer.stdout[answer.stdout.index("{") :])
        refused = place.run("tpo", "train", "--heads", "region,depth", "--output", "other", code=1)
        assert "no installed package announces a head 'depth'" in " ".join((refused.stdout + refused.stderr).split())
        assert not (place.folder / "other").exists()
    finally:
        place.install("tpo-head-depth")
    assert json.loads(place.run("python", "-c", STATES, "run").stdout) == before


@pytest.mark.long
def test_odd_packages_are_told_and_stop_nobody(place: Place) -> None:
    place.install(*(f"tpo-odd-{status}" for status in ODD))
    try:
        found = place.statuses()
        assert {name: found[f"tpo-odd-{name}"][0] for name in ODD} == {name: name for name in ODD}
        assert found["tpo-odd-broken"][1] == "importing tpo_odd_broken raised RuntimeError: boom"
        assert found["tpo-odd-misspelt"][1] == "there is no hook 'tpo_headz'. Did you mean 'tpo_heads'?"
        assert "upgrade tpo-odd-outdated" in str(found["tpo-odd-outdated"][1])
        assert found["tpo-head-point"][0] == "clash"
        assert all(label in str(found["tpo-head-point"][1]) for label in ("tpo-head-point 0.1.0", "tpo-odd-clash 0.3"))
        assert {found[name][0] for name in PACKAGES if name != "tpo-head-point"} == {"ok"}
        assert "Usage" in place.run("tpo", "--help").stdout
        assert "boxes" in place.run("tpo", "heads", "region").stdout
        refused = place.run("tpo", "train", "--heads", "region,point", "--output", "other", code=1)
        assert "announced by tpo-head-point 0.1.0 and tpo-odd-clash 0.3" in " ".join((refused.stdout + refused.stderr).split())
        strict = place.run("tpo", "heads", code=1, TPO_STRICT_PLUGINS="1")
        assert "TPO_STRICT_PLUGINS" in strict.stderr
        named = place.statuses(TPO_PLUGINS="point,depth", TPO_STRICT_PLUGINS="0")
        assert {name for name, (status, _) in named.items() if status == "ok"} == {"tpo-head-point", "tpo-head-depth"}
        assert named["tpo-odd-broken"][0] == "off"
    finally:
        place.uninstall(*(f"tpo-odd-{status}" for status in ODD))
