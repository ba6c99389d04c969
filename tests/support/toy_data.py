"""A few pictures and clips on disk, and records over them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from tpo_core.data.records import Record


def write_media(folder: Path) -> Path:
    """Write red.png (80x48), blue.png (40x64), clip.mp4 (6 frames, 2 fps) and long.mp4 (9 frames) of 80x48."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 255, (48, 80, 3), dtype=np.uint8)).save(folder / "red.png")
    Image.fromarray(rng.integers(0, 255, (64, 40, 3), dtype=np.uint8)).save(folder / "blue.png")
    write_clip(folder / "clip.mp4", 6, seed=1)
    write_clip(folder / "long.mp4", 9, seed=2)
    return folder


def write_clip(path: Path, frames: int, *, seed: int) -> None:
    rng = np.random.default_rng(seed)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=2)
        stream.width, stream.height, stream.pix_fmt = 80, 48, "yuv420p"
        for _ in range(frames):
            picture = rng.integers(0, 255, (6, 10, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def record(user: list[dict[str, Any]], answer: list[dict[str, Any]] | str, targets: list[dict[str, Any]] = (), id: str = "r") -> Record:
    messages = [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
    return Record.model_validate({"id": id, "messages": messages, "targets": list(targets)})


def image(path: str = "red.png") -> dict[str, Any]:
    return {"type": "image", "path": path}


def video(path: str = "clip.mp4") -> dict[str, Any]:
    return {"type": "video", "path": path}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def target(name: str) -> dict[str, Any]:
    return {"type": "target", "id": name}


def box(id: str = "t0", boxes: list[list[float]] | None = None, media: int = 0) -> dict[str, Any]:
    return {"id": id, "head": "box", "media": media, "boxes": boxes if boxes is not None else [[8, 8, 40, 24]]}


def moment(id: str = "t0", spans: list[list[float]] | None = None, media: int = 0) -> dict[str, Any]:
    return {"id": id, "head": "moment", "media": media, "spans": spans or [[0.5, 1.5]]}


def mixed_records() -> list[Record]:
    """One of everything: a box, a moment, chat, several boxes, several media and heads in one sample, a prompt, nothing to find."""
    return [
        record([image(), text("where is it?")], [text("Here: "), target("t0"), text(".")], [box()], "one-box"),
        record([video(), text("when?")], [target("t0")], [moment()], "moment"),
        record([text("hello")], "Hello to you.", id="chat"),
        record([image("blue.png"), text("find both")], [target("t0")], [box(boxes=[[1, 2, 9, 9], [3, 4, 30, 60]])], "two-boxes"),
        record(
            [image(), video("long.mp4"), text("both")],
            [target("t0"), text(" and "), target("t1")],
            [box(), moment("t1", [[1.0, 3.0]], media=1)],
            "two-heads",
        ),
        record(
            [image(), target("p0"), text("this one")],
            [target("t0")],
            [{"id": "p0", "role": "prompt", "kind": "box", "for": "t0", "media": 0, "boxes": [[1, 1, 20, 20]]}, box()],
            "prompt",
        ),
        record([image(), text("where is the cat?")], [target("t0")], [box(boxes=[])], "absent"),
    ]
