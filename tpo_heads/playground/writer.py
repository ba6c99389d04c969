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
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
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

PART = 50
"""Scenes written at a time."""
MANY_PARTS = 30
"""Parts from which on starting other processes costs less than it saves."""
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
        (folder / "media" / split).mkdir(parents=True)
    parts = {split: list(_parts(plan, split)) for split in splits}
    written = _in_processes(folder, plan, [part for split in splits for part in parts[split]])
    for split in splits:
        truths: list[Row] = []
        files: dict[str, list[Record]] = {split: []}
        for _ in parts[split]:
            for row, records in next(written):
                truths.append(row)
                for name, one in records.items():
                    files.setdefault(f"{split}-{name}", []).append(one)
                    if name != "assignment":
                        files[split].append(one)
        for name, rows in files.items():
            _write_lines(folder / f"{name}.jsonl", rows)
        _write_lines(folder / f"scenes-{split}.jsonl", truths)


Part = tuple[str, Kind, range]
"""A split, a kind, and which of its scenes."""
Written = list[tuple[Row, dict[str, Record]]]
"""Truth and records of each scene of a part."""


def _parts(plan: Plan, split: str) -> Iterator[Part]:
    counts = plan.counts(split)
    for kind in KINDS:
        for first in range(0, counts[kind], PART):
            yield split, kind, range(first, min(first + PART, counts[kind]))


def _write_part(folder: Path, plan: Plan, part: Part) -> Written:
    """Write the media of some scenes; return each one's truth and records."""
    split, kind, indices = part
    done = []
    for index in indices:
        scene = make_scene(seed=plan.seed, split=split, kind=kind, level=plan.level, index=index, size=plan.size)
        picture = render(scene)
        media = f"media/{split}/{scene.key}{'.png' if kind == 'image' else '.mp4'}"
        write_media(folder / media, scene, picture)
        done.append((truth(scene, picture, media), records_of(scene, picture, media=media, heads=plan.heads)))
    return done


def _in_processes(folder: Path, plan: Plan, parts: Sequence[Part]) -> Iterator[Written]:
    """Yield what was written of each part, in order; on all cores where there is enough to do."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if cores == 1 or len(parts) < MANY_PARTS:
        yield from (_write_part(folder, plan, part) for part in parts)
        return

    # Programs of their own, not multiprocessing: the caller's main module may be a script without a guard, and it may hold threads.
    def share(place: int) -> list[Written]:
        mine = [[split, kind, [indices.start, indices.stop]] for split, kind, indices in parts[place::cores]]
        order = json.dumps({"folder": str(folder), "plan": asdict(plan), "parts": mine})
        done = subprocess.run([sys.executable, "-c", _PROGRAM], input=order, capture_output=True, text=True, check=False)
        if done.returncode:
            raise OSError(f"writing the playground under {folder} failed: {done.stderr.strip() or f'exit code {done.returncode}'}")
        written: list[Written] = json.loads(done.stdout)
        return written

    with ThreadPoolExecutor(cores) as pool:
        shares = list(pool.map(share, range(cores)))
    yield from (shares[index % cores][index // cores] for index in range(len(parts)))


_PROGRAM = "from tpo_heads.playground.writer import write_share; write_share()"


def write_share() -> None:
    """Write the parts that standard input names (JSON, see `_in_processes`), and print truth and records."""
    order = json.load(sys.stdin)
    given = order["plan"]
    plan = Plan(**{**given, "heads": tuple(given["heads"]), "size": tuple(given["size"])})
    written = [_write_part(Path(order["folder"]), plan, (split, kind, range(*span))) for split, kind, span in order["parts"]]
    json.dump(written, sys.stdout)


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
