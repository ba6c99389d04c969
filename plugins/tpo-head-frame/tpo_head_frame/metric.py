"""Scores and drawing of small pictures."""

import base64
from collections.abc import Sequence

import numpy as np
from PIL import Image

from tpo_core import Metric
from tpo_core.canvas import Canvas
from tpo_core.types import Answer, Target

LEAST = 1 / 12 / 255**2
"""Mean squared error of rounding to bytes: nothing is told apart below it."""


class FrameMetric(Metric):
    """``nearest``: share of answers that are nearer to their own frame than to any other; ``psnr`` in dB, 0 without an answer.

    Both take the mean of an answer's draws: one draw is punished for every detail that cannot be known, and the chance row is a mean, too.
    """

    def __init__(self) -> None:
        self.truth: list[np.ndarray] = []
        self.found: list[np.ndarray | None] = []

    def update(self, answers: Sequence[Answer], target: Target) -> None:
        self.truth.append(pixels(target["rgb"]))
        self.found.append(pixels(answers[0]["mean"]) if answers else None)

    def compute(self) -> dict[str, float]:
        return _score(self.found, self.truth)

    def chance(self) -> dict[str, float]:
        """Score the mean of all annotated frames."""
        return _score([np.mean(self.truth, 0)] * len(self.truth), self.truth)


def pixels(rgb: str) -> np.ndarray:
    """Return RGB bytes in base64 as shares of white, (C,)."""
    return np.frombuffer(base64.b64decode(rgb), np.uint8) / 255


def draw(canvas: Canvas, answers: Sequence[Answer], target: Target | None) -> None:
    """Show the answer and the annotated frame side by side below the clip."""
    shown = [answer["rgb"] for answer in answers] + ([target["rgb"]] if target is not None else [])
    if not shown:
        canvas.note("frame: nothing was answered")
        return
    strip = canvas.panel(160, title="what comes next: answer" + (", what came" if target is not None else ""))
    for place, rgb in enumerate(shown):
        side = round((len(base64.b64decode(rgb)) / 3) ** 0.5)
        picture = Image.frombytes("RGB", (side, side), base64.b64decode(rgb))
        strip.paste(picture.resize((160, 160), Image.Resampling.NEAREST), (168 * place, 0))


def _score(found: Sequence[np.ndarray | None], truth: Sequence[np.ndarray]) -> dict[str, float]:
    if not truth:
        return {}
    nearest, psnr = 0, 0.0
    for own, answer in enumerate(found):
        if answer is not None:
            error_M = np.square(np.stack(truth) - answer).mean(1)
            nearest += int(error_M.argmin()) == own
            psnr -= 10 * float(np.log10(max(error_M[own], LEAST)))
    return {"nearest": nearest / len(truth), "psnr": psnr / len(truth)}
