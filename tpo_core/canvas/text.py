"""Text on pictures: one font, wrapping, and placing so that nothing leaves the picture."""

from __future__ import annotations

import unicodedata
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]

BLACK: Colour = (20, 20, 20)
WHITE: Colour = (255, 255, 255)
PADDING = 2


@cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """Return DejaVu Sans, which matplotlib ships, at this many pixels; letters that it lacks become boxes.

    The font inside Pillow knows ASCII only.
    """
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)


def printable(text: str) -> str:
    """Return the text on one line that any font can take: no control characters, no lone surrogates."""
    legal = text.encode("utf-8", "replace").decode("utf-8")
    return "".join(" " if unicodedata.category(letter) == "Cc" else letter for letter in legal)


def line_height(size: int) -> int:
    """Return the distance of two lines in pixels."""
    return round(size * 1.3)


def text_width(text: str, *, size: int) -> int:
    """Return the width of one line in pixels."""
    return int(font(size).getlength(text) + 0.999)


def shorten(text: str, *, width: int, size: int) -> str:
    """Return the longest beginning of the text that fits into the width, with ``..`` where something was cut; possibly empty."""
    if text_width(text, size=size) <= width:
        return text
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if text_width(text[:middle] + "..", size=size) <= width:
            low = middle
        else:
            high = middle - 1
    return text[:low] + ".." if low else ""


def wrap(text: str, *, width: int, size: int) -> list[str]:
    """Return the lines of a paragraph; words wider than the line are broken."""
    lines = [""]
    for word in printable(text).split():
        candidate = f"{lines[-1]} {word}" if lines[-1] else word
        if text_width(candidate, size=size) <= width:
            lines[-1] = candidate
            continue
        pieces = _break_word(word, width=width, size=size)
        lines = lines + pieces if lines[-1] else pieces
    return lines


def _break_word(word: str, *, width: int, size: int) -> list[str]:
    pieces = [""]
    for letter in word:
        if pieces[-1] and text_width(pieces[-1] + letter, size=size) > width:
            pieces.append("")
        pieces[-1] += letter
    return pieces


def draw_text(image: Image.Image, xy: tuple[float, float], text: str, *, size: int = 13, colour: Colour = BLACK) -> None:
    """Draw one line whose upper left corner is at xy (pixels), moved and cut so that it stays inside the image."""
    _place(image, xy, text, size=size, colour=colour, ground=None)


def draw_label(image: Image.Image, xy: tuple[float, float], text: str, *, size: int, ground: Colour) -> None:
    """Draw one line on a filled ground, black or white by the ground's brightness, moved and cut to stay inside the image."""
    red, green, blue = ground
    bright = 0.299 * red + 0.587 * green + 0.114 * blue > 140
    _place(image, xy, text, size=size, colour=BLACK if bright else WHITE, ground=ground)


def _place(image: Image.Image, xy: tuple[float, float], text: str, *, size: int, colour: Colour, ground: Colour | None) -> None:
    line = shorten(printable(text), width=image.width - 2 * PADDING, size=size)
    if not line:
        return
    width, height = text_width(line, size=size) + 2 * PADDING, line_height(size)
    left = max(0, min(round(xy[0]), image.width - width))
    top = max(0, min(round(xy[1]), image.height - height))
    pen = ImageDraw.Draw(image)
    if ground is not None:
        pen.rectangle((left, top, left + width - 1, top + height - 1), fill=ground)
    pen.text((left + PADDING, top + height / 2), line, fill=colour, font=font(size), anchor="lm")
