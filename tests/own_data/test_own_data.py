"""The hand-annotated example against the pictures and clips that installed packages carry: real sizes, codecs and frame clocks."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from tpo_core.config import load_recipe
from tpo_core.data import Record, RecordFile
from tpo_core.media import Medium, frames_within, open_media
from tpo_core.media.rle import decode_mask
from tpo_core.plugins import Plugins, load_plugins
from tpo_core.types import BackboneView, ClipView, Target

FOLDER = Path(__file__).parents[2] / "examples" / "own_data"
VIEW = BackboneView(model_type="tiny", frames=8, temporal_patch=1, feature_dim=32, hidden=32)


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"own_data_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the records and the collected media beside them, as the example's own folder is after `collect.py`."""
    folder = tmp_path_factory.mktemp("own_data")
    module("collect").collect(folder / "media")
    (folder / "records.jsonl").write_bytes((FOLDER / "records.jsonl").read_bytes())
    return folder


@pytest.fixture(scope="module")
def records(root: Path) -> list[Record]:
    return list(RecordFile(root / "records.jsonl"))


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    return load_plugins()


def medium_of(record: Record, index: int, root: Path) -> Medium:
    part = record.media_parts()[index]
    assert part.path is not None
    kind = "video" if part.type == "video" else "image"
    return open_media(path=part.path, kind=kind, root=root, start=part.start, end=part.end)


def answers_of(records: list[Record], head: str) -> list[tuple[Record, Target]]:
    return [(record, target) for record in records for target in record.targets if target.head == head]


def test_the_file_is_what_the_annotations_give(records: list[Record]) -> None:
    assert [record.model_dump() for record in records] == [Record.model_validate(row).model_dump() for row in module("annotate").records()]


def test_every_row_is_valid_and_there_is_enough_of_each_task(root: Path, records: list[Record]) -> None:
    assert list(RecordFile(root / "records.jsonl").faults()) == []
    boxes = [box for record, target in answers_of(records, "region") if record.task == "region" for box in target["boxes"]]
    assert len(boxes) >= 30
    assert any(target["boxes"] == [] for _, target in answers_of(records, "region"))
    assert len(answers_of(records, "temporal")) >= 8
    assert len(answers_of(records, "mask")) >= 8
    assert sum(record.task == "chat" for record in records) >= 8
    assert sum(record.task == "choice" for record in records) >= 4


def test_sizes_and_durations_are_those_of_the_files(root: Path) -> None:
    annotate = module("annotate")
    for name, size in annotate.SIZES.items():
        medium = open_media(path=f"media/{name}", kind="video" if name.endswith(".mp4") else "image", root=root)
        assert medium.size == size, name
        assert medium.duration == pytest.approx(annotate.DURATIONS.get(name, 0.0), abs=0.001), name


@pytest.mark.parametrize("head", ["region", "temporal", "mask"])
def test_the_heads_codecs_take_every_annotation(head: str, root: Path, records: list[Record], plugins: Plugins) -> None:
    loaded = plugins.load_head(head)
    codec = loaded.codec(loaded.config(), VIEW)
    for record, target in answers_of(records, head):
        medium = medium_of(record, target.media, root)
        codec.check(target, medium)
        queries = codec.encode(target, ClipView(medium, (target,), training=True, frame_indices=tuple(range(len(medium.times)))[:8]))
        assert len(queries) == (len(target["boxes"]) if head == "region" else 1), record.id


def test_the_prompts_are_taken_by_the_heads_they_serve(root: Path, records: list[Record], plugins: Plugins) -> None:
    prompts = [(record, target) for record in records for target in record.targets if target.role == "prompt"]
    assert prompts
    for record, prompt in prompts:
        served = record.target(str(prompt.serves))
        loaded = plugins.load_head(str(served.head))
        codec = loaded.codec(loaded.config(), VIEW)
        medium = medium_of(record, prompt.media, root)
        assert codec.encode_prompt(prompt, ClipView(medium, (served,)))


def test_moments_that_begin_or_end_with_a_shot_meet_the_cut_exactly(root: Path) -> None:
    """A cut is a jump in the pixels between two neighbouring frames; a clock that is off by one frame would miss it."""
    bikes = open_media(path="media/bikes.mp4", kind="video", root=root)
    for seconds in (1.2, 3.04, 5.48, 7.48):
        first = frames_within(bikes, seconds, seconds + 0.04)[0]
        jumps = np.abs(np.diff(bikes.frames([first - 2, first - 1, first, first + 1]).astype(float), axis=0)).mean(axis=(1, 2, 3))
        assert jumps[1] > 2 * max(jumps[0], jumps[2]), seconds


def test_masks_lie_on_their_things_in_every_frame(root: Path, records: list[Record]) -> None:
    """By colour: the bow tie is red, the taxi's plate is a grey between dark parts, the flower is orange before dark green."""
    seen = 0
    for record, target in answers_of(records, "mask"):
        medium = medium_of(record, target.media, root)
        for frame, rle in zip(target["frames"], target["rle"]):
            mask, pixels = decode_mask(rle), medium.frames([frame])[0].astype(float)
            assert mask.shape == pixels.shape[:2]
            inside = pixels[mask]
            if "bow-tie" in record.id or "tracked" in record.id:
                red, green, blue = inside.mean(0)
                assert red > 2 * max(green, blue)
            if "taxi" in record.id:
                assert bool(mask.any()) == (2.24 <= medium.times[frame] < 3.04)
            if "whole-flower" in record.id:
                assert inside[:, 0].mean() > 200 > 60 > pixels[~mask][:, 0].mean()
            seen += 1
    assert seen >= 20


def test_boxes_and_masks_of_one_thing_agree(records: list[Record]) -> None:
    """Both were drawn by hand, at different times."""
    by_id = {record.id: record for record in records}
    pairs = [("coins-mask-coin", "coins-box-1"), ("flower-mask-whole-flower", "flower-box-0"), ("coffee-mask-cup", "coffee-box-0")]
    pairs += [("astronaut-mask-helmet", "astronaut-box-3"), ("rocket-mask-rocket", "rocket-box-0")]
    for masked, boxed in pairs:
        rows, columns = np.nonzero(decode_mask(by_id[masked].targets[0]["rle"][0]))
        around = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_allclose(around, by_id[boxed].targets[0]["boxes"][0], atol=3, err_msg=masked)


def test_collecting_twice_changes_nothing_and_a_broken_copy_is_replaced(root: Path, tmp_path: Path) -> None:
    collect = module("collect")
    copies = collect.collect(tmp_path)
    stamps = [copy.stat().st_mtime_ns for copy in copies]
    copies[3].write_bytes(b"half")
    again = collect.collect(tmp_path)
    assert [copy.stat().st_mtime_ns == stamp for copy, stamp in zip(again, stamps)] == [index != 3 for index in range(len(copies))]
    assert again[3].read_bytes() == (root / "media" / again[3].name).read_bytes()


def test_a_missing_package_is_one_sentence() -> None:
    collect = module("collect")
    collect.PROJECTS["no_such_package"] = "no-such-project"
    with pytest.raises(FileNotFoundError, match=r'no-such-project is not installed; run: pip install "tpo\[examples\]"'):
        collect.locate("no_such_package", "a.png")
    with pytest.raises(FileNotFoundError, match=r"scikit-image carries no data/nothing.png"):
        collect.locate("skimage", "data/nothing.png")


def test_the_recipe_is_valid(plugins: Plugins) -> None:
    configs = {name: plugins.load_head(name).config for name in ("region", "temporal", "mask")}
    recipe = load_recipe(FOLDER / "recipe.yaml", head_configs=configs)
    assert list(recipe.heads) == ["region", "temporal", "mask"]
    assert [source.path for source in recipe.data.train] == ["examples/own_data/records.jsonl"]
