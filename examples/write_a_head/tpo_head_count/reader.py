import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, text in enumerate(path.open(encoding="utf-8"), 1):
        scene = json.loads(text)
        if scene["kind"] != "image":
            continue
        asked = [{"type": "image", "path": scene["media"]}, {"type": "text", "text": "how many shapes are there?"}]
        answer = [{"type": "target", "id": "t0"}]
        messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        seen = sum(item["boxes"][0] is not None for item in scene["objects"])
        yield line, {"id": scene["id"], "messages": messages, "targets": [{"id": "t0", "head": "count", "media": 0, "count": seen}]}
