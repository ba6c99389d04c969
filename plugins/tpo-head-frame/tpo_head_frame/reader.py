"""A playground's scenes (scenes-train.jsonl) as records of the `frame` head: the clip is cut, its last frame is the target."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
from PIL import Image

ASK = ("what do you see at the end?", "show me the end.")
SIDE = 8


def read(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line, record) for each clip without its last quarter."""
    for line, text in enumerate(path.open(encoding="utf-8"), 1):
        scene = json.loads(text)
        if scene["kind"] != "image":
            shown = scene["frames"] - max(1, scene["frames"] // 4)
            clip = {"type": "video", "path": scene["media"], "end": (shown - 0.5) / scene["fps"]}
            asked = [clip, {"type": "text", "text": ASK[line % len(ASK)]}]
            messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": [{"type": "target", "id": "t0"}]}]
            target = {"id": "t0", "head": "frame", "media": 0, "rgb": last_frame(path.parent / scene["media"])}
            yield line, {"id": f"{scene['id']}-frame", "messages": messages, "targets": [target]}


def last_frame(path: Path) -> str:
    """Return the last frame, SIDE x SIDE pixels, as base64 of its RGB bytes."""
    with av.open(str(path)) as container:
        *_, last = container.decode(video=0)
    return base64.b64encode(last.to_image().resize((SIDE, SIDE), Image.Resampling.BOX).tobytes()).decode()
