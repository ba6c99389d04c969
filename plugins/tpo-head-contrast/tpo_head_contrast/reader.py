"""A playground's scenes (scenes-train.jsonl) as records of the `contrast` head: the media alone are read, none of the truth."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ASK = ("show me what you see.", "what do you see?")


def read(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line, record) for each picture and clip."""
    for line, text in enumerate(path.open(encoding="utf-8"), 1):
        scene = json.loads(text)
        kind = "image" if scene["kind"] == "image" else "video"
        asked = [{"type": kind, "path": scene["media"]}, {"type": "text", "text": ASK[line % len(ASK)]}]
        messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": [{"type": "target", "id": "t0"}]}]
        yield line, {"id": f"{scene['id']}-contrast", "messages": messages, "targets": [{"id": "t0", "head": "contrast", "media": 0}]}
