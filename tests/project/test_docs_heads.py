"""The pages for authors of heads are held to code: their blocks are the checked-in examples, which keep the contract and learn."""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tpo_core.testing import check_head, picture_for
from tpo_core.types import BackboneView, ClipView, FrameFeatures, Queries, Target, Widths

ROOT = Path(__file__).resolve().parents[2]
TUTORIAL = (ROOT / "docs" / "write-a-head.md").read_text("utf-8")
PAPER = (ROOT / "docs" / "from-a-paper-to-a-head.md").read_text("utf-8")
COUNT, CENTRE = ROOT / "examples" / "write_a_head", ROOT / "examples" / "from_a_paper"


@pytest.fixture(scope="module")
def examples() -> Iterator[None]:
    paths = [str(COUNT), str(CENTRE)]
    sys.path[:0] = paths
    yield
    for path in paths:
        sys.path.remove(path)


def test_the_tutorials_blocks_are_the_example_and_all_of_it() -> None:
    blocks = dict(re.findall(r"^`([\w./]+)`:\n\n```\w+\n(.*?)^```$", TUTORIAL, re.DOTALL | re.MULTILINE))
    skipped = ("__pycache__", "runs", "build", "egg-info")
    files = [p for p in COUNT.rglob("*") if p.is_file() and not any(word in str(p) for word in skipped)]
    assert blocks == {str(p.relative_to(COUNT)): p.read_text("utf-8") for p in files}


def test_the_ports_pieces_stand_in_its_example() -> None:
    source = (CENTRE / "tpo_head_centre" / "head.py").read_text("utf-8")
    pieces = re.findall(r"```python\n(.*?)\n```", PAPER, re.DOTALL)
    assert len(pieces) == 3
    for piece in pieces:
        assert piece in source


@pytest.mark.parametrize("module", ["tpo_head_count", "tpo_head_centre"])
@pytest.mark.usefixtures("examples")
def test_the_examples_keep_the_contract(module: str) -> None:
    check_head(importlib.import_module(module).SPEC, module=module).verify()


def features(frames_MTPV: torch.Tensor, grid: tuple[int, int]) -> FrameFeatures:
    count = len(frames_MTPV)
    valid = torch.ones(frames_MTPV.shape[:3], dtype=torch.bool)
    return FrameFeatures(frames_MTPV, valid, torch.zeros(count, 1, 2), torch.tensor([grid] * count))


def centre(boxes: list[list[float]], side: int = 6) -> tuple[Any, Any, dict[str, torch.Tensor], Target, ClipView]:
    """Return head, codec, stacked targets, target and clip of one query."""
    from tpo_core.stack import stack_rows

    module = importlib.import_module("tpo_head_centre.head")
    config = module.CentreConfig(side=side)
    torch.manual_seed(0)
    codec = module.CentreCodec(config, BackboneView("toy", 1, 1, 8, 8))
    target = Target.model_validate({"id": "t", "size": [90, 60], "boxes": boxes})
    clip = ClipView(picture_for(target))
    stacked = stack_rows(codec.encode(target, clip), codec.ragged)
    return module.CentreHead(config, Widths(8, 8, 8)), codec, stacked, target, clip


@pytest.mark.usefixtures("examples")
def test_the_ports_loss_is_the_papers() -> None:
    """Equation 1 with alpha 2 and beta 4, as it stands in the paper, cell by cell; L1 of offset and size at the centres."""
    head, _, targets, _, _ = centre([[9.0, 8.0, 33.0, 44.0], [60.0, 5.0, 80.0, 25.0]])
    output = {"heat": torch.randn(1, 6, 6), "offset": torch.rand(1, 2, 6, 6), "extent": torch.rand(1, 2, 6, 6)}
    truth, losses = head.ideal(targets), head.loss(output, targets)
    guess, wanted, expected = output["heat"].sigmoid(), truth["gauss"], 0.0
    for row in range(6):
        for column in range(6):
            y, z = float(guess[0, row, column]), float(wanted[0, row, column])
            term = (1 - y) ** 2 * torch.tensor(y).log() if z == 1 else (1 - z) ** 4 * y**2 * torch.tensor(1 - y).log()
            expected -= float(term)
    assert losses["heat"].item() == pytest.approx(expected, rel=1e-5)
    # Centres at (21, 26) and (70, 15) pixels: cells (1.4, 2.6) and (4.667, 1.5) of 15 x 10 pixels.
    cells, parts, sizes = [(2, 1), (1, 4)], [(0.4, 0.6), (2 / 3, 0.5)], [(1.6, 3.6), (4 / 3, 2.0)]
    assert truth["at"][0].nonzero().tolist() == sorted(map(list, cells))
    for name, key, values in (("offset", "offset", parts), ("size", "extent", sizes)):
        gap = sum(abs(float(output[key][0, i, r, c]) - v[i]) for (r, c), v in zip(cells, values) for i in (0, 1))
        assert losses[name].item() == pytest.approx(gap, rel=1e-4)


@pytest.mark.usefixtures("examples")
def test_the_port_learns_a_few_boxes_by_heart() -> None:
    head, codec, targets, target, clip = centre([[9.0, 8.0, 33.0, 44.0], [60.0, 5.0, 80.0, 25.0]])
    states = torch.ones(1, 1, 8)
    queries = Queries(states, torch.tensor([0]), states, torch.ones(1, 1, dtype=torch.bool), features(torch.randn(1, 1, 36, 8), (6, 6)))
    optimizer = torch.optim.Adam(head.parameters(), 1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        losses = head.loss(head(queries, targets), targets)
        (losses["heat"] + losses["offset"] + 0.1 * losses["size"]).sum().backward()
        optimizer.step()
    metric = importlib.import_module("tpo_head_centre.head").CentreMetric()
    with torch.no_grad():
        output = head.eval()(queries)
    metric.update([codec.decode({name: tensor[0] for name, tensor in output.items()}, clip)], target)
    assert metric.compute() == {"recall": 1.0}


def test_the_tutorials_commands_parse() -> None:
    from tpo_core.cli import main

    lines = commands()
    assert len(lines) == 7
    for words in (shlex.split(line) for line in lines if line.startswith("tpo ")):
        assert main.get_command(None, words[1]) is not None, words


@pytest.mark.long
def test_the_tutorials_commands_run(tmp_path: Path) -> None:
    """As they stand, but that the package is installed into a folder of the test's own."""
    folder, site = tmp_path / "tpo-head-count", tmp_path / "site"
    shutil.copytree(COUNT, folder, ignore=shutil.ignore_patterns("__pycache__", "runs", "*.egg-info"))
    path = os.pathsep.join((str(site), str(Path(sys.executable).parent), os.environ["PATH"]))
    environment = {
        **os.environ,
        "PYTHONPATH": str(site),
        "PATH": path,
        "TPO_PLUGINS": "count",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    offline = f"--no-index --no-deps --no-build-isolation --quiet --disable-pip-version-check --target {shlex.quote(str(site))} ."
    for line in commands():
        command = line.replace("install -e .", f"install {offline}").replace("pip ", f"{sys.executable} -m pip ", 1)
        command = (
            command.replace("tpo ", f"{sys.executable} -c 'from tpo_core.cli import main; main()' ", 1)
            if line.startswith("tpo ")
            else command
        )
        command = command.replace("python ", f"{sys.executable} ", 1) if line.startswith("python ") else command
        done = subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, (line, done.stdout[-2000:], done.stderr[-2000:])
    summary = json.loads((folder / "runs" / "count" / "summary.json").read_text())
    assert summary["heads"]["count"]["exact"] > summary["chance"]["count"]["exact"], summary


def commands() -> list[str]:
    (block,) = re.findall(r"```bash\n(.*?)```", TUTORIAL, re.DOTALL)
    return [line for line in block.splitlines() if line.strip()]
