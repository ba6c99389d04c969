"""Features of a frozen SAM2: identical with and without cache, computed once, bounded, and never those of other weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tpo_core.errors import CheckpointError, ConfigError
from tpo_heads.mask.cache import MIB, FeatureFolder, FeatureMemory, file_of, frame_name
from tpo_heads.mask.config import MaskConfig
from tpo_heads.mask.track import SamFeatures

FRAME_BYTES = 4 * (8 * 16 * 16 + 16 * 8 * 8 + 64 * 4 * 4)
"""Features of one frame of the small SAM2 in float32."""


def step(bench: Any, head: Any, config: MaskConfig, media: Any) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return losses and gradients of one training step on a clip of three frames with two objects."""
    targets_of = [bench.target({frame: bench.block(4 * frame) for frame in range(3)}, name) for name in ("a", "b")]
    queries, targets = bench.batch(config, [bench.clip(media, *targets_of)])
    head.train().zero_grad()
    losses = head.loss(head(queries, targets), targets)
    sum(rows.sum() for rows in losses.values()).backward()
    gradients = {name: parameter.grad for name, parameter in head.named_parameters() if parameter.grad is not None}
    return losses, gradients


@pytest.mark.parametrize("trains", ["adapter", "decoder"])
def test_identical_with_and_without(bench: Any, tmp_path: Path, trains: Any) -> None:
    media = bench.media(3)
    plain = MaskConfig(trains=trains, cache_mib=0)
    expected = step(bench, bench.head(plain), plain, media)
    for name, options in {"memory": {}, "disk": {"cache_mib": 0, "cache_dir": str(tmp_path)}}.items():
        config = MaskConfig(trains=trains, **options)
        head = bench.head(config)
        for turn in range(2):
            media.read.clear()
            losses, gradients = step(bench, head, config, media)
            assert head.source.encoded == 3, (name, turn)
            assert bool(media.read) == (name == "memory" or turn == 0)
            for key, value in expected[0].items():
                torch.testing.assert_close(losses[key], value, rtol=0, atol=0)
            assert gradients.keys() == expected[1].keys()
            for key, value in expected[1].items():
                torch.testing.assert_close(gradients[key], value, rtol=0, atol=0)


def test_a_later_run_reads_what_an_earlier_one_wrote(bench: Any, tmp_path: Path) -> None:
    config = MaskConfig(cache_dir=str(tmp_path))
    media = bench.media(3)
    step(bench, bench.head(config), config, media)
    media.read.clear()
    head = bench.head(config)
    step(bench, head, config, media)
    assert head.source.encoded == 0
    assert media.read == []


def test_a_folder_belongs_to_one_encoder(bench: Any, tmp_path: Path) -> None:
    config = MaskConfig(cache_dir=str(tmp_path))
    step(bench, bench.head(config, seed=0), config, bench.media(3))
    with pytest.raises(ConfigError, match="holds features of other SAM2 weights"):
        step(bench, bench.head(config, seed=1), config, bench.media(3))


def test_loaded_weights_empty_the_memory(bench: Any) -> None:
    config = MaskConfig()
    head = bench.head(config)
    step(bench, head, config, bench.media(3))
    assert len(head.source.memory) == 3
    other = bench.head(config, seed=1)
    head.load_state_dict(other.state_dict())
    assert len(head.source.memory) == 0
    losses, _ = step(bench, head, config, bench.media(3))
    expected, _ = step(bench, other, config, bench.media(3))
    torch.testing.assert_close(losses["focal"], expected["focal"], rtol=0, atol=0)


def test_a_training_encoder_is_not_cached(bench: Any) -> None:
    config = MaskConfig(trains="all")
    head = bench.head(config)
    for expected in (3, 6):
        step(bench, head, config, bench.media(3))
        assert head.source.encoded == expected
    assert len(head.source.memory) == 0


def test_features_that_vanish_are_an_error(bench: Any, tmp_path: Path) -> None:
    config = MaskConfig(cache_dir=str(tmp_path), cache_mib=0)
    media = bench.media(3)
    head = bench.head(config)
    step(bench, head, config, media)
    target = bench.target({frame: bench.block(4 * frame) for frame in range(3)})
    queries, targets = bench.batch(config, [bench.clip(media, target)])
    file = file_of(tmp_path, frame_name(media.key, 1, "tiny", 64))
    file.unlink()
    with pytest.raises(CheckpointError, match="1 frames came without pixels"):
        head(queries, targets)
    file.write_bytes(b"broken")
    with pytest.raises(CheckpointError, match="broken features"):
        head(queries, targets)


def features(value: float) -> SamFeatures:
    return SamFeatures(*(torch.full((1, *shape), float(value)) for shape in ((8, 16, 16), (16, 8, 8), (64, 4, 4))))


def test_memory_is_bounded_and_keeps_what_it_has() -> None:
    memory = FeatureMemory(2.5 * FRAME_BYTES / MIB)
    for index in range(4):
        memory.put((index, 0), torch.float32, features(index))
    assert memory.bytes == 2 * FRAME_BYTES
    assert memory.get((0, 0), torch.bfloat16) is None
    assert memory.get((2, 0), torch.float32) is None
    held = memory.get((1, 0), torch.float32)
    assert held is not None
    torch.testing.assert_close(held.top_FCHW, features(1).top_FCHW)


def test_folder_is_bounded_and_counts_what_it_finds(tmp_path: Path) -> None:
    folder = FeatureFolder(tmp_path, 2.5 * FRAME_BYTES / MIB, "a")
    for index in range(4):
        folder.put((index, -index), features(index))
    again = FeatureFolder(tmp_path, 2.5 * FRAME_BYTES / MIB, "a")
    assert again.bytes == folder.bytes == sum(file.stat().st_size for file in tmp_path.glob("*/*.safetensors"))
    assert again.get((3, -3)) is None
    held = again.get((1, -1))
    assert held is not None
    torch.testing.assert_close(held.fine_FCHW, features(1).fine_FCHW)
    again.put((9, 9), features(9))
    assert again.get((9, 9)) is None


def test_names_tell_media_frames_models_and_sizes_apart() -> None:
    names = {frame_name(key, frame, sam, side) for key in ("a", "b") for frame in (0, 1) for sam in ("tiny", "x") for side in (64, 128)}
    assert len(names) == 16
    assert frame_name("a", 0, "tiny", 64) in names
