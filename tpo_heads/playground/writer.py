"""Write a playground: ordinary PNG and MP4 files, records in our own format, and the full truth of every scene beside them.

Layout of the folder::

    playground.json                     the arguments it was written with
    media/<split>/<scene>.png | .mp4    pictures; clips are lossless H.264 (RGB), so that 64x64 colours survive
    train.jsonl, val.jsonl, test.jsonl  all records of a split (training: several turns a record; val and test: one)
    train-image.jsonl, ...              the same records by source, for mixtures
    test-region.jsonl, ...              and by what is asked, for evaluation
    scenes-train.jsonl, ...             one line per scene of a split: `records.truth`
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import av
import numpy as np
from PIL import Image

from tpo_core.errors import ConfigError
from tpo_heads.playground.language import Speaker
from tpo_heads.playground.records import Record, Row, exam, lesson, paraphrase, record, truth
from tpo_heads.playground.render import Picture, render
from tpo_heads.playground.scenes import KINDS, LEVELS, Kind, Scene, make_scene

ALL_HEADS = ("region", "temporal", "mask")
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Plan:
    """What a playground folder holds. `samples` counts training media; validation has a tenth of them, a test scene for every fifth."""

    samples: int = 3000
    seed: int = 0
    level: int = 1
    heads: tuple[str, ...] = ALL_HEADS
    size: tuple[int, int] = (64, 64)

    def __post_init__(self) -> None:
        if self.samples < 10:
            raise ConfigError(f"a playground has at least 10 samples, got {self.samples}")
        if self.level not in LEVELS:
            raise ConfigError(f"playground levels are {', '.join(map(str, LEVELS))}, got {self.level}")
        unknown = [head for head in self.heads if head not in ALL_HEADS]
        if unknown or not self.heads:
            raise ConfigError(f"the playground has records for {', '.join(ALL_HEADS)}; got {unknown or 'no head'}")

    def counts(self, split: str) -> dict[Kind, int]:
        """Return the number of scenes of a split, by kind: of ten, six pictures, and two or more clips of each kind."""
        total = {"train": self.samples, "val": max(10, self.samples // 10), "test": max(10, self.samples // 5)}[split]
        clips = {"clip": total // 4, "track": total * 3 // 20}
        return {"image": total - sum(clips.values()), "clip": clips["clip"], "track": clips["track"]}


def write_playground(
    folder: str | Path,
    *,
    samples: int = 3000,
    seed: int = 0,
    level: int = 1,
    splits: Sequence[str] = SPLITS,
    heads: Sequence[str] = ALL_HEADS,
    size: tuple[int, int] = (64, 64),
) -> dict[str, Path]:
    """Write a playground and return its annotation files by name (``train``, ``train-image``, ``test-region``, ...).

    A folder that holds the very same playground is left as it is. The folder appears whole or not at all.

    Args:
        folder: where to write; must not exist, be empty, or hold a playground.
        samples: number of training media.
        seed: of every draw; splits are disjoint for any seed.
        level: 1, 2 or 3, see `scenes.LEVELS`.
        splits: which of train, val, test to write.
        heads: heads that get records.
        size: (width, height) of the media in pixels.

    Raises:
        ConfigError: an argument is out of range, or the folder holds something else.
    """
    plan = Plan(samples, seed, level, tuple(heads), (int(size[0]), int(size[1])))
    if bad := [split for split in splits if split not in SPLITS]:
        raise ConfigError(f"playground splits are {', '.join(SPLITS)}, got {bad}")
    target = Path(folder)
    stamp = json.dumps({"format": 2, **asdict(plan), "splits": list(splits)}, sort_keys=True)
    stamp_file = target / "playground.json"
    if stamp_file.is_file() and stamp_file.read_text("utf-8").strip() == stamp:
        return annotation_files(target)
    if target.exists() and (not target.is_dir() or (any(target.iterdir()) and not stamp_file.is_file())):
        raise ConfigError(f"{target} exists and is not a playground; name a folder that does not exist yet")
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        _write_all(draft, plan, splits)
        (draft / "playground.json").write_text(stamp + "\n", "utf-8")
        if target.exists():
            shutil.rmtree(target)
        draft.chmod(0o755)
        os.replace(draft, target)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return annotation_files(target)


def annotation_files(folder: str | Path) -> dict[str, Path]:
    """Return the annotation files of a playground folder by name, without those of the scenes' truth."""
    return {path.stem: path for path in sorted(Path(folder).glob("*.jsonl")) if not path.stem.startswith("scenes-")}


def _write_all(folder: Path, plan: Plan, splits: Sequence[str]) -> None:
    for split in splits:
        truths: list[Row] = []
        (folder / "media" / split).mkdir(parents=True)
        files: dict[str, list[Record]] = {split: []}
        for scene, picture in _scenes(plan, split):
            media = f"media/{split}/{scene.key}{'.png' if scene.kind == 'image' else '.mp4'}"
            write_media(folder / media, scene, picture)
            truths.append(truth(scene, picture, media))
            for name, row in records_of(scene, picture, media=media, heads=plan.heads).items():
                files.setdefault(f"{split}-{name}", []).append(row)
                if name != "assignment":
                    files[split].append(row)
        for name, rows in files.items():
            _write_lines(folder / f"{name}.jsonl", rows)
        _write_lines(folder / f"scenes-{split}.jsonl", truths)


def _scenes(plan: Plan, split: str) -> Iterator[tuple[Scene, Picture]]:
    counts = plan.counts(split)
    for kind in KINDS:
        for index in range(counts[kind]):
            scene = make_scene(seed=plan.seed, split=split, kind=kind, level=plan.level, index=index, size=plan.size)
            yield scene, render(scene)


def records_of(scene: Scene, picture: Picture, *, media: str, heads: Sequence[str]) -> dict[str, Record]:
    """Return a scene's records by source: one of several turns in training, else one of one turn per question."""
    if scene.split == "train":
        asks = lesson(Speaker(scene, picture, scene.rng(2)), heads)
        row = record(scene, picture, asks, media=media, name=scene.key, source=f"playground/{scene.kind}", heads=heads)
        return {scene.kind: row}
    rows = {}
    for name, ask in exam(Speaker(scene, picture, scene.rng(2)), heads).items():
        rows[name] = record(scene, picture, [ask], media=media, name=f"{scene.key}-{name}", source=f"playground/{name}", heads=heads)
    other = paraphrase(Speaker(scene, picture, scene.rng(3), held_out=True), heads)
    if other is not None:
        name = "assignment"
        rows[name] = record(scene, picture, [other], media=media, name=f"{scene.key}-{name}", source=f"playground/{name}", heads=heads)
    return rows


def write_media(path: Path, scene: Scene, picture: Picture) -> None:
    """Write a picture as PNG, a clip as lossless MP4."""
    if scene.kind == "image":
        Image.fromarray(picture.frames_THW3[0]).save(path, compress_level=1)
    else:
        write_clip(path, picture.frames_THW3, scene.fps)


def write_clip(path: Path, frames_THW3: np.ndarray, fps: float) -> None:
    """Write uint8 RGB frames (T, H, W, 3) as lossless H.264 in an MP4 container; the frame rate must be whole."""
    if fps != int(fps):
        raise ConfigError(f"clips are written at a whole number of frames per second, got {fps}")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264rgb", rate=int(fps), options={"crf": "0", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = frames_THW3.shape[2], frames_THW3.shape[1], "rgb24"
        stream.thread_count = 1
        for frame_HW3 in frames_THW3:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame_HW3, format="rgb24")))
        container.mux(stream.encode())


def _write_lines(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, separators=(",", ":")) + "\n" for row in rows)
