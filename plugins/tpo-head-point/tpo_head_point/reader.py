"""A playground's scenes (scenes-train.jsonl) as records of the `point` head."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

WORDS = {"colour": ("red", "green", "blue", "yellow"), "shape": ("ring", "square", "cross"), "all": ()}
ASK = {"colour": "point to everything {}.", "shape": "point to every {}.", "all": "point to everything."}


def read(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line, record) for each picture: everything of a colour, of a shape (in every fourth one that is not there), and everything."""
    for line, text in enumerate(path.open(encoding="utf-8"), 1):
        scene = json.loads(text)
        seen = [item for item in scene["objects"] if scene["kind"] == "image" and item["boxes"][0] is not None]
        for kind, words in WORDS.items() if seen else ():
            missing = [word for word in words if all(item[kind] != word for item in seen)]
            word = missing[0] if line % 4 == 0 and missing else seen[line % len(seen)].get(kind)
            points = [item["centres"][0] for item in seen if item.get(kind) == word]
            target = {"size": scene["size"], "points": points}
            yield line, record(f"{scene['id']}-{kind}", scene["media"], ASK[kind].format(word), target)


def record(name: str, media: str, question: str, target: dict[str, Any]) -> dict[str, Any]:
    asked = [{"type": "image", "path": media}, {"type": "text", "text": question}]
    answer = [{"type": "target", "id": "t0"}]
    messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    return {"id": name, "messages": messages, "targets": [{"id": "t0", "head": "point", "media": 0, **target}]}
