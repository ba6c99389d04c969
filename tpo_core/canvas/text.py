"""Text on pictures: one font, wrapping, and placing so that nothing leaves the picture."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
Rectangle = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels; right and bottom are exclusive."""

BLACK: Colour = (20, 20, 20)
WHITE: Colour = (255, 255, 255)
PADDING = 2


@cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """Return DejaVu Sans, which matplotlib ships, at this many pixels; letters that it lacks become boxes.

    The font inside Pillow knows ASCII only. Basic layout takes any text, raqm fails on paragraph separators.
    """
    import matplotlib

    path = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


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
    line = _fit(image, text, size)
    if line:
        _write(image, _place(image, xy, line, size), line, size, colour)


def draw_label(
    image: Image.Image, xy: tuple[float, float], text: str, *, size: int, ground: Colour, taken: Sequence[Rectangle] = ()
) -> Rectangle:
    """Draw one line on a filled ground, black or white by the ground's brightness, moved and cut to stay inside the image.

    Args:
        taken: places of other labels; where there is room above or below them, they are not covered.

    Returns:
        The place that the label takes, in pixels; empty where not even one letter fits.
    """
    line = _fit(image, text, size)
    if not line:
        return (0, 0, 0, 0)
    height = line_height(size)
    places = [_place(image, (xy[0], xy[1] + step * height), line, size) for step in (0, 1, -1, 2, -2, 3, -3)]
    place = next((place for place in places if not any(_overlap(place, other) for other in taken)), places[0])
    left, top, right, bottom = place
    ImageDraw.Draw(image).rectangle((left, top, right - 1, bottom - 1), fill=ground)
    red, green, blue = ground
    bright = 0.299 * red + 0.587 * green + 0.114 * blue > 140
    _write(image, place, line, size, BLACK if bright else WHITE)
    return place


def _fit(image: Image.Image, text: str, size: int) -> str:
    return shorten(printable(text), width=image.width - 2 * PADDING, size=size)


def _place(image: Image.Image, xy: tuple[float, float], line: str, size: int) -> Rectangle:
    width, height = text_width(line, size=size) + 2 * PADDING, line_height(size)
    left = max(0, min(round(xy[0]), image.width - width))
    top = max(0, min(round(xy[1]), image.height - height))
    return left, top, left + width, top + height


def _write(image: Image.Image, place: Rectangle, line: str, size: int, colour: Colour) -> None:
    left, top, _, bottom = place
    ImageDraw.Draw(image).text((left + PADDING, (top + bottom) / 2), line, fill=colour, font=font(size), anchor="lm")


def _overlap(a: Rectangle, b: Rectangle) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
