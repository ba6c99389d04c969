"""A playground's scenes (scenes-train.jsonl) as records of the `depth` head."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco

ASK = ("how far is everything?", "what is the depth of the picture?")
SIDE = 16


def read(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line, record) for each picture: the slanted wall with the things before it, sampled on a grid."""
    for line, text in enumerate(path.open(encoding="utf-8"), 1):
        scene = json.loads(text)
        if scene["kind"] == "image":
            target = {"id": "t0", "head": "depth", "media": 0, "size": scene["size"], "grid": sample(scene)}
            asked = [{"type": "image", "path": scene["media"]}, {"type": "text", "text": ASK[line % len(ASK)]}]
            answer = [{"type": "target", "id": "t0"}]
            messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
            yield line, {"id": f"{scene['id']}-depth", "messages": messages, "targets": [target]}


def sample(scene: dict[str, Any]) -> list[list[float]]:
    """Return the depth at the middle of SIDE x SIDE cells; the wall's depth runs linearly from the upper to the lower edge."""
    (width, height), (far, near) = scene["size"], scene["background_depth"]
    depth_HW = np.repeat(np.linspace(far, near, height)[:, None], width, 1)
    for item in scene["objects"]:
        depth_HW[coco.decode(item["masks"][0]) > 0] = item["depth"]
    rows, columns = (((np.arange(SIDE) + 0.5) * side / SIDE).astype(int) for side in (height, width))
    return [[round(float(value), 3) for value in row] for row in depth_HW[rows][:, columns]]
