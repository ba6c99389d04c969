"""Draw answers on pictures and on the frames of clips: `Canvas`. Imports no torch until something is drawn."""

from tpo_core.canvas.board import Canvas
from tpo_core.canvas.text import Colour, draw_text

__all__ = ["Canvas", "Colour", "draw_text"]
