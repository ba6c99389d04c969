"""SAM2 by name from a closed table, and weights that run no code."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

from tpo_core.errors import CheckpointError, ConfigError
from tpo_heads.mask.sam import SAM_CARDS, build_sam, fetch_weights, load_weights, save_weights
from tpo_heads.mask.track import unused_parameters


class Evil:
    def __reduce__(self) -> Any:
        return (os.system, ("touch " + os.environ["MASK_MARK"],))


@pytest.mark.parametrize("name", ["nothing", "../sam2.1_hiera_t", "configs/sam2.1/sam2.1_hiera_t.yaml", "sam2_hiera_t"])
def test_the_table_is_closed(name: str) -> None:
    with pytest.raises(ConfigError, match=r"choose one of tiny, sam2\.1_hiera_t"):
        build_sam(name)


def test_sizes_that_do_not_divide() -> None:
    with pytest.raises(ConfigError, match="image_size 100 was given for tiny, expected a positive multiple of 64; choose 64"):
        build_sam("tiny", image_size=100)


def test_cards_tell_the_truth() -> None:
    for name in ("tiny", "sam2.1_hiera_t"):
        sam = build_sam(name, image_size=None if name == "tiny" else 64)
        assert sam.hidden_dim == SAM_CARDS[name].prompt_dim
    assert build_sam("tiny").image_size == SAM_CARDS["tiny"].image_size


def test_building_leaves_hydra_as_it_was() -> None:
    GlobalHydra.instance().clear()
    build_sam("sam2.1_hiera_t", image_size=64)
    assert not GlobalHydra.instance().is_initialized()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_weights_round_trip(tmp_path: Path, suffix: str) -> None:
    source, goal = build_sam("tiny"), build_sam("tiny")
    path = tmp_path / f"sam{suffix}"
    if suffix == ".pt":
        torch.save({"model": source.state_dict()}, path)
    else:
        save_weights(source, path)
    load_weights(goal, path)
    assert all(torch.equal(value, goal.state_dict()[name]) for name, value in source.state_dict().items())
    assert not list(tmp_path.glob(".*"))


def test_weights_that_hold_code_are_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = tmp_path / "ran"
    monkeypatch.setenv("MASK_MARK", str(mark))
    sam = build_sam("tiny")
    path = tmp_path / "evil.pt"
    torch.save({"model": Evil()}, path)
    with pytest.raises(CheckpointError, match="without running code"):
        load_weights(sam, path)
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(CheckpointError, match="without running code"):
        load_weights(sam, path)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.bin", b"", "come as .safetensors or .pt, got '.bin'"),
        ("x.safetensors", b"nonsense", "no readable safetensors file"),
        ("x.pt", b"nonsense", "without running code"),
        ("x.pt", None, "expected SAM2's tensors by name"),
    ],
)
def test_files_that_are_no_weights(tmp_path: Path, name: str, content: bytes | None, words: str) -> None:
    path = tmp_path / name
    if content is None:
        torch.save({"model": [1, 2]}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=words) as raised:
        load_weights(build_sam("tiny"), path)
    assert "\n" not in str(raised.value)


def test_other_weights_are_listed(tmp_path: Path) -> None:
    sam = build_sam("tiny")
    state = sam.state_dict()
    state.pop("no_mem_embed")
    state["extra"] = torch.zeros(1)
    state["no_obj_ptr"] = torch.zeros(1, 3)
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"missing 1 \(no_mem_embed\), unexpected 1 \(extra\), of another shape 1 \(no_obj_ptr\)"):
        load_weights(sam, tmp_path / "x.pt")


def test_hub_weights_are_named_by_the_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []

    def download(*, repo_id: str, filename: str) -> str:
        asked.append((repo_id, filename))
        return str(tmp_path / filename)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert fetch_weights("sam2.1_hiera_l") == tmp_path / "sam2.1_hiera_large.pt"
    assert asked == [("facebook/sam2.1-hiera-large", "sam2.1_hiera_large.pt")]

    def refuse(*, repo_id: str, filename: str) -> str:
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    with pytest.raises(ConfigError, match=r"could not be fetched .* \(no network\)"):
        fetch_weights("sam2.1_hiera_l")


@pytest.mark.parametrize("name", ["tiny", "sam2.1_hiera_t"])
def test_unused_parameters_exist(name: str) -> None:
    names = [parameter for parameter, _ in build_sam(name, image_size=64).named_parameters()]
    for prefix in unused_parameters(boxes=False, memory=False):
        assert any(parameter.startswith(prefix) for parameter in names), prefix
