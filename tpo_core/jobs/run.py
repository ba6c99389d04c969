"""A trained run, ready to answer: the object behind `load_run` and `tpo predict`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tpo_core.canvas import Canvas
from tpo_core.config.recipe import Recipe
from tpo_core.data.records import Message, Part, Record
from tpo_core.errors import TPOError
from tpo_core.media import open_media
from tpo_core.model import GenerationOptions
from tpo_core.model.build import Assembly
from tpo_core.predict import Prediction, Predictor
from tpo_core.predict.pictures import draw_clip, draw_picture
from tpo_core.prepare.question import ask
from tpo_core.types import Target

_ROOT = Path(Path.cwd().anchor)
"""Files that the caller names may lie anywhere; records on disk stay inside their folder."""


@dataclass
class Run:
    """A model with its heads, loaded from a run's folder.

    Args:
        path: the folder.
        recipe: what it was trained with.
        assembly: the built model.
        missing: heads of the run whose package is not installed: name -> how to get it.
    """

    path: Path
    recipe: Recipe
    assembly: Assembly
    missing: dict[str, str]

    def __post_init__(self) -> None:
        self.predictor = Predictor(self.assembly)

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of the heads that can answer."""
        return tuple(self.assembly.heads)

    def predict(
        self,
        *,
        prompt: str,
        image: str | Path | Sequence[str | Path] = (),
        video: str | Path | Sequence[str | Path] = (),
        box: Sequence[float] | None = None,
        box_head: str | None = None,
        history: Sequence[Message] = (),
        options: GenerationOptions | None = None,
    ) -> Prediction:
        """Answer one question.

        Args:
            prompt: the question.
            image, video: files, pictures before clips in reading order.
            box: a spatial prompt [x1, y1, x2, y2] in pixels of the last medium, encoded by `box_head`.
            history: earlier turns.
            options: of the generation.

        Raises:
            DataError: a file is missing or unreadable. TPOError: the box has no head.
        """
        record = self.question(prompt, image=image, video=video, box=box, box_head=box_head, history=history)
        return self.answer(record, options)

    def answer(self, record: Record, options: GenerationOptions | None = None) -> Prediction:
        """Answer a question made by `question`."""
        (prediction,) = self.predictor.predict([record], root=_ROOT, options=options)
        return prediction

    def question(
        self,
        prompt: str,
        *,
        image: str | Path | Sequence[str | Path] = (),
        video: str | Path | Sequence[str | Path] = (),
        box: Sequence[float] | None = None,
        box_head: str | None = None,
        history: Sequence[Message] = (),
    ) -> Record:
        """Return the record that asks a question; see `predict`."""
        media = (*_parts("image", image), *_parts("video", video))
        earlier = sum(part.is_media for message in history for part in message.content)
        prompts: tuple[Target, ...] = ()
        if box is not None:
            prompts = (self._box(box, box_head, media, earlier + len(media) - 1),)
        return ask(media, prompt, history=tuple(history), prompts=prompts)

    def draw(self, record: Record, prediction: Prediction) -> dict[int, Canvas]:
        """Return a canvas per medium with what the heads answered; ``canvas.picture(title=...)`` gives the picture."""
        loaded = self.assembly.preparer.load_media(record, _ROOT)
        return draw_picture(loaded.media, prediction, self.assembly.heads, title=record.prompt_text())

    def draw_clip(self, record: Record, prediction: Prediction, *, media: int, path: Path) -> Path:
        """Write an annotated MP4 of one medium of the question."""
        loaded = self.assembly.preparer.load_media(record, _ROOT)
        return draw_clip(loaded.media[media], prediction, self.assembly.heads, index=media, path=path)

    def _box(self, box: Sequence[float], head: str | None, parts: Sequence[Part], media: int) -> Target:
        if not parts:
            raise TPOError("a box was given but no picture or clip; give the medium it lies on")
        able = [name for name in self.heads if self.assembly.model.slot(name).head.prompt is not None]
        if head is None and len(able) != 1:
            raise TPOError(f"a box was given: say which head it is for; able: {', '.join(able) or 'none'}")
        chosen = head or able[0]
        if chosen not in able:
            raise TPOError(f"head {chosen!r} takes no box; able: {', '.join(able) or 'none'}")
        numbers = [float(value) for value in box]
        if len(numbers) != 4:
            raise TPOError(f"a box has 4 numbers x1, y1, x2, y2; got {len(numbers)}")
        last = parts[-1]
        opened = open_media(path=last.path or "", kind="image" if last.type == "image" else "video", allow_outside_root=True)
        fields = {"frame": 0, "size": list(opened.size), "boxes": [numbers]}
        return Target.model_validate({"id": "box", "role": "prompt", "kind": "box", "head": chosen, "media": media, **fields})


def _parts(kind: Literal["image", "video"], paths: str | Path | Sequence[str | Path]) -> list[Part]:
    several = [paths] if isinstance(paths, (str, Path)) else list(paths)
    return [Part(type=kind, path=str(Path(path).resolve())) for path in several]
