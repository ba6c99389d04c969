"""`tpo new-head`: the package that it writes installs, passes its own tests and reads its own examples, untouched."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tpo_core.cli import main
from tpo_core.cli.new_head import FILES, write_package
from tpo_core.data.index import RecordFile


def run(folder: Path, *args: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, *args], cwd=folder, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("new") / "tpo-head-where-at"
    write_package("where_at", folder)
    return folder


@pytest.fixture(scope="module")
def site(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the built and installed package, and nothing else."""
    folder = tmp_path_factory.mktemp("site")
    build = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--disable-pip-version-check"]
    run(package, "-m", "pip", "install", *build, "--target", str(folder), str(package))
    return folder


def test_it_installs_and_passes_its_own_tests(package: Path, site: Path) -> None:
    done = run(package, "-m", "pytest", "-q", "-p", "no:cacheprovider", env={"PYTHONPATH": str(site)})
    assert "21 passed" in done.stdout


@pytest.mark.long
def test_it_trains_on_its_own_examples(package: Path, site: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(package, folder)
    tpo = ("-c", "from tpo_core.cli import main; main()")
    env = {"PYTHONPATH": str(site), "TPO_PLUGINS": "where_at", "TPO_STRICT_PLUGINS": "1", "HF_HUB_OFFLINE": "1"}
    run(folder, *tpo, "data", "base", "runs/base", "--scratch", env=env)
    run(folder, *tpo, "train", "--config", "recipe.yaml", env=env)
    summary = json.loads((folder / "runs/where_at/summary.json").read_text())
    assert summary["heads"]["where_at"]["hit"] > summary["chance"]["where_at"]["hit"]


def test_it_is_listed_and_has_nothing_against_it(package: Path, site: Path) -> None:
    program = (
        "from tpo_core.plugins import load_plugins\nentry = load_plugins().owner('where_at')\nprint(entry.label, entry.status, entry.note)"
    )
    done = run(package, "-c", program, env={"PYTHONPATH": str(site), "TPO_PLUGINS": "where_at"})
    assert done.stdout.split() == ["tpo-head-where-at", "0.1.0", "ok", "None"]


def test_it_is_small(package: Path) -> None:
    lines = sum(len(path.read_text().splitlines()) for path in package.rglob("*.py") if "build" not in path.parts)
    assert lines <= 120


def test_every_template_is_written(package: Path) -> None:
    templates = Path(main.callback.__code__.co_filename).parent / "template" if main.callback else Path()
    assert {path.name.removesuffix(".tmpl") for path in templates.iterdir()} == set(FILES)
    assert (package / ".github/workflows/ci.yml").read_text().count("${{ matrix.python }}") == 1


def test_its_code_is_clean(package: Path) -> None:
    run(package, "-m", "ruff", "check", "--isolated", "--line-length", "140", "--select", "E,F,W,I,B,UP,N", "tpo_head_where_at", "tests")
    run(package, "-m", "ruff", "format", "--isolated", "--line-length", "140", "--check", "tpo_head_where_at", "tests")


def test_its_records_are_valid_and_some_ask_for_what_is_not_there(package: Path) -> None:
    for split, count in (("train", 32), ("test", 8)):
        records = RecordFile(package / "data" / f"{split}.jsonl")
        rows = [records[i] for i in range(len(records))]
        assert len(rows) == count
        points = [row.targets[0].get("point") for row in rows]
        assert sum(point is None for point in points) == count // 8
        assert {row.targets[0].head for row in rows} == {"where_at"}
        assert all((package / "data" / row.media_parts()[0].path).is_file() for row in rows)


def test_the_same_name_gives_the_same_package(package: Path, tmp_path: Path) -> None:
    write_package("where_at", tmp_path / "again")
    for path in (tmp_path / "again").rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (package / path.relative_to(tmp_path / "again")).read_bytes()


def invoke(*args: str) -> Result:
    return CliRunner().invoke(main, ["new-head", *args])


def test_the_command_says_what_to_do_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = invoke("far-off")
    assert result.exit_code == 0
    assert "cd tpo-head-far-off" in result.output
    assert (tmp_path / "tpo-head-far-off" / "tpo_head_far_off" / "head.py").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["tpo-head-far-off"]


def test_bad_names_and_full_folders_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "'Point!' is no head name" in " ".join(invoke("Point!").output.split())
    taken = " ".join(invoke("region").output.split())
    assert "already announces a head 'region'" in taken
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    assert "is there already and not empty" in " ".join(invoke("far-off", "--output", "full").output.split())
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.tex"]


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(head: str, folder: Path) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("tpo_core.cli.new_head._write_data", fail)
    with pytest.raises(OSError, match="disk full"):
        write_package("far_off", tmp_path / "new")
    assert list(tmp_path.iterdir()) == []
