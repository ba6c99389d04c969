"""Files: lossless clips, valid records, truth beside the media, the reader, refusals, the commands."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import av
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from pycocotools import mask as coco

from tpo_core.data.records import Record
from tpo_core.errors import ConfigError, DataError
from tpo_heads.playground import reader, tpo_readers, writer
from tpo_heads.playground.commands import data
from tpo_heads.playground.render import render
from tpo_heads.playground.scenes import make_scene
from tpo_heads.playground.writer import write_clip, write_playground


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("playground") / "world"
    write_playground(path, samples=60, seed=0, size=(96, 64))
    return path


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def decode(path: Path) -> tuple[np.ndarray, list[float]]:
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    return np.stack([frame.to_ndarray(format="rgb24") for frame in frames]), [float(frame.time) for frame in frames]


def test_every_record_is_valid_and_its_media_are_there(folder: Path) -> None:
    counts = {}
    for path in sorted(folder.glob("*.jsonl")):
        if path.stem.startswith("scenes-"):
            continue
        lines = path.read_text("utf-8").splitlines()
        records = [Record.from_json(text, where=f"{path}:{i}") for i, text in enumerate(lines, 1)]
        counts[path.stem] = len(records)
        assert len({record.id for record in records}) == len(records)
        for record in records:
            assert (folder / record.media_parts()[0].path).is_file()
            assert len(record.media_parts()) == 1
    assert counts["train"] == 60
    assert counts["train-image"] + counts["train-clip"] + counts["train-track"] == 60
    assert counts["test-region"] >= 5
    assert {name.split("-")[0] for name in counts} == {"train", "val", "test"}


def test_pictures_and_clips_are_as_rendered(folder: Path) -> None:
    for kind in ("image", "clip", "track"):
        scene = make_scene(seed=0, split="train", kind=kind, level=1, index=1, size=(96, 64))
        frames = render(scene).frames_THW3
        stem = folder / "media" / "train" / scene.key
        if kind == "image":
            np.testing.assert_array_equal(np.asarray(Image.open(stem.with_suffix(".png"))), frames[0])
            continue
        decoded, times = decode(stem.with_suffix(".mp4"))
        np.testing.assert_array_equal(decoded, frames)
        assert times == [t / 4 for t in range(scene.frames)]


def test_targets_follow_the_truth(folder: Path) -> None:
    truth = {scene["id"]: scene for _, scene in reader.scenes(folder)}
    seen = {"region": 0, "temporal": 0, "mask": 0}
    for row in rows(folder / "train.jsonl"):
        scene = truth[row["id"]]
        for target in row["targets"]:
            seen[target["head"]] += 1
            if target["head"] == "region" and target["boxes"]:
                assert target["boxes"][0] in [[float(v) for v in o["boxes"][0]] for o in scene["objects"]]
                assert target["size"] == [96, 64]
            elif target["head"] == "temporal" and target["spans"]:
                spans = [event["span"] for event in scene["events"]]
                assert target["spans"][0] in spans
                assert target["distractors"] == [span for span in spans if span != target["spans"][0]]
                assert target["duration"] == 3.0
            elif target["head"] == "mask":
                assert target["frames"] == list(range(scene["frames"]))
                full = [o["masks"] for o in scene["objects"]]
                empty = all(coco.area(code) == 0 for code in target["rle"])
                assert target["rle"] in full or empty
    assert min(seen.values()) >= 15


def test_truth_has_boxes_of_its_masks(folder: Path) -> None:
    for _, scene in reader.scenes(folder, split="test", kinds=["track"]):
        for item in scene["objects"]:
            for code, box in zip(item["masks"], item["boxes"]):
                mask = coco.decode(code)
                assert mask.shape == (64, 96)
                x, y, w, h = coco.toBbox(code)
                assert (box is None and mask.sum() == 0) or box == [x, y, x + w, y + h]


def test_no_test_picture_occurs_in_training(folder: Path) -> None:
    digests = {
        split: {hashlib.sha256(p.read_bytes()).hexdigest() for p in (folder / "media" / split).iterdir()}
        for split in ("train", "val", "test")
    }
    assert sum(map(len, digests.values())) == 60 + 10 + 12
    assert not digests["train"] & digests["test"]
    assert not digests["val"] & digests["test"]
    assert not {r["id"] for r in rows(folder / "train.jsonl")} & {r["id"] for r in rows(folder / "scenes-test.jsonl")}


def test_test_records_have_one_turn_and_training_several(folder: Path) -> None:
    assert all(len(row["messages"]) == 2 for row in rows(folder / "test.jsonl"))
    turns = [len(row["messages"]) // 2 for row in rows(folder / "train.jsonl")]
    assert min(turns) >= 3
    assert max(turns) >= 7


def test_same_arguments_are_not_written_twice_and_others_replace(tmp_path: Path) -> None:
    target = tmp_path / "world"
    write_playground(target, samples=10, seed=1, splits=("train",))
    mark = target / "train.jsonl"
    before = mark.stat().st_mtime_ns
    text = mark.read_bytes()
    write_playground(target, samples=10, seed=1, splits=("train",))
    assert mark.stat().st_mtime_ns == before
    write_playground(target, samples=10, seed=2, splits=("train",))
    assert mark.read_bytes() != text
    write_playground(target, samples=10, seed=1, splits=("train",))
    assert mark.read_bytes() == text
    assert [path.name for path in tmp_path.iterdir()] == ["world"]


def test_several_processes_write_the_same_files(folder, tmp_path, monkeypatch):
    """Cut into many parts, shared out over programs of their own; `folder` was written in one go."""
    monkeypatch.setattr(writer, "PART", 7)
    monkeypatch.setattr(writer, "MANY_PARTS", 2)
    monkeypatch.setattr(writer.os, "sched_getaffinity", lambda _: {0, 1, 2})
    write_playground(tmp_path / "world", samples=60, seed=0, size=(96, 64))
    expected = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    found = {path.relative_to(tmp_path / "world"): path.read_bytes() for path in (tmp_path / "world").rglob("*") if path.is_file()}
    assert found.keys() == expected.keys()
    assert [str(name) for name, data in expected.items() if found[name] != data] == []


def test_what_goes_wrong_in_another_process_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "MANY_PARTS", 1)
    monkeypatch.setattr(writer, "_PROGRAM", "raise SystemExit('the disk is full')")
    monkeypatch.setattr(writer.os, "sched_getaffinity", lambda _: {0, 1})
    with pytest.raises(OSError, match=r"writing the playground under .* failed: the disk is full"):
        write_playground(tmp_path / "world", samples=10)
    assert not (tmp_path / "world").exists()


def test_a_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear", "utf-8")
    with pytest.raises(ConfigError, match="is not a playground"):
        write_playground(tmp_path, samples=10)
    assert (tmp_path / "letter.txt").read_text("utf-8") == "dear"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"samples": 3}, "at least 10 samples, got 3"),
        ({"level": 7}, "levels are 1, 2, 3, got 7"),
        ({"heads": ("region", "depth")}, "got ['depth']"),
        ({"heads": ()}, "got no head"),
        ({"splits": ("dev",)}, "got ['dev']"),
    ],
)
def test_wrong_arguments_are_named(tmp_path: Path, change: dict, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        write_playground(tmp_path / "world", **{"samples": 10, **change})
    assert words in str(caught.value)
    assert not (tmp_path / "world").exists()


def test_records_for_fewer_heads(tmp_path: Path) -> None:
    write_playground(tmp_path / "world", samples=20, heads=("temporal",), splits=("train",))
    heads = {target["head"] for row in rows(tmp_path / "world" / "train.jsonl") for target in row["targets"]}
    assert heads == {"temporal"}


def test_clips_need_a_whole_rate(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"got 2\.5"):
        write_clip(tmp_path / "a.mp4", np.zeros((2, 32, 32, 3), np.uint8), 2.5)


MAPPING = {
    "playground": "world",
    "split": "train",
    "kinds": ["image"],
    "head": "depth",
    "questions": ["how far is the {name}?", "what is the distance of the {name}?"],
    "fields": {"metres": "depth", "box": "boxes.0"},
}


def test_a_stranger_s_head_reads_its_own_targets(folder: Path) -> None:
    (spec,) = tpo_readers()
    assert spec.reader == "tpo_heads.playground.reader:read"
    path = folder.parent / "depth.json"
    path.write_text(json.dumps(MAPPING), "utf-8")
    got = list(reader.read(path))
    truth = {scene["id"]: scene for _, scene in reader.scenes(folder)}
    assert len(got) == sum(len(s["objects"]) for s in truth.values() if s["split"] == "train" and s["kind"] == "image")
    for line, row in got:
        record = Record.from_json(json.dumps(row), where=f"scenes-train.jsonl:{line}")
        assert (path.parent / record.media_parts()[0].path).is_file()
        name, number = row["id"].split("-depth-")
        item = truth[name]["objects"][int(number)]
        assert record.targets[0].fields() == {"metres": item["depth"], "box": item["boxes"][0]}
        assert f"{item['colour']} {item['shape']}" in record.prompt_text()


def test_events_and_scenes_can_be_read_too(folder: Path) -> None:
    path = folder.parent / "events.json"
    change = {"kinds": ["clip"], "per": "event", "questions": ["when does the {name} {action}?"], "fields": {"when": "span"}}
    path.write_text(json.dumps({**MAPPING, **change}), "utf-8")
    assert len(list(reader.read(path))) == 2 * 15
    path.write_text(json.dumps({**MAPPING, "per": "scene", "questions": ["how long?"], "fields": {"seconds": "duration"}}), "utf-8")
    assert {row["targets"][0]["seconds"] for _, row in reader.read(path)} == {0.0}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"per": "pixel"}, "per: Input should be 'object', 'event' or 'scene'"),
        ({"fields": {"metres": "far"}}, "fields.metres: 'far' leads nowhere at 'far'"),
        ({"fields": {"box": "boxes.9"}}, "leads nowhere at '9'; there is 1 entries"),
        ({"questions": ["how {big}?"]}, "uses 'big'; known per object"),
        ({"playground": "nowhere"}, "no such file"),
        ({"fidelity": 1}, "fidelity: Extra inputs"),
    ],
)
def test_a_wrong_mapping_is_one_sentence(folder: Path, change: dict, words: str) -> None:
    path = folder.parent / "wrong.json"
    path.write_text(json.dumps({**MAPPING, **change}), "utf-8")
    with pytest.raises(DataError) as caught:
        list(reader.read(path))
    assert words in str(caught.value)


def test_the_command_writes_a_playground(tmp_path: Path) -> None:
    result = CliRunner().invoke(data, ["playground", str(tmp_path / "w"), "--samples", "10", "--size", "48x64", "--heads", "region"])
    assert result.exit_code == 0, result.output
    assert "records  train-image" in result.output
    assert Image.open(next((tmp_path / "w" / "media" / "test").glob("*.png"))).size == (48, 64)
    wrong = CliRunner().invoke(data, ["playground", str(tmp_path / "w"), "--size", "big"])
    assert wrong.exit_code == 2
    assert "'big' is not WIDTHxHEIGHT" in wrong.output
