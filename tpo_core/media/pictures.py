"""Pictures by Pillow: single ones, and folders of numbered frames."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from tpo_core.errors import MediaError
from tpo_core.media.paths import shown

PICTURE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif"})
MAX_PIXELS = 80_000_000
"""More pixels than this are refused before they are decoded (Pillow itself only warns up to twice 89 million)."""

_ORIENTATION = 0x0112


def picture_size(path: Path) -> tuple[int, int]:
    """Return (width, height) after EXIF rotation, from the header alone.

    Raises:
        MediaError: not a picture of a known format, or too large.
    """
    with _opened(path) as image:
        return _turned_size(image)


def read_picture(path: Path) -> np.ndarray:
    """Return the picture, EXIF rotation applied, uint8 RGB, shape (H, W, 3). Transparency is dropped, 16-bit grey is scaled.

    Raises:
        MediaError: not a picture of a known format, too large, or broken off.
    """
    with _opened(path) as image:
        try:
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I;16"):
                grey = (np.asarray(upright) >> 8).astype(np.uint8)
                return np.repeat(grey[:, :, None], 3, axis=2)
            return np.array(upright.convert("RGB"))
        except Exception as error:  # Pillow's decoders raise a dozen classes on broken files
            raise MediaError(f"{shown(path)}: the picture breaks off or is damaged ({error}); copy it again") from error


class PictureSource:
    """One picture as a source of frames."""

    def __init__(self, path: Path) -> None:
        self.size = picture_size(path)
        self.starts = np.zeros(1)
        self.end = 0.0
        self._path = path

    def read(self, positions: Sequence[int]) -> Iterator[np.ndarray]:
        """Yield the picture for each position (all of them are 0)."""
        for _ in positions:
            yield read_picture(self._path)

    def close(self) -> None:
        """Nothing is held open."""


class FolderSource:
    """Numbered pictures as the frames of a clip, at a fixed rate.

    Args:
        files: the pictures in order.
        fps: frame i starts at i / fps seconds.
    """

    def __init__(self, files: Sequence[Path], fps: float) -> None:
        self.size = picture_size(files[0])
        self.starts = np.arange(len(files)) / fps
        self.end = len(files) / fps
        self._files = tuple(files)

    def read(self, positions: Sequence[int]) -> Iterator[np.ndarray]:
        """Yield the frames at these positions, shape (H, W, 3).

        Raises:
            MediaError: a picture is broken, or of another size than the first.
        """
        for position in positions:
            frame_HW3 = read_picture(self._files[position])
            size = (frame_HW3.shape[1], frame_HW3.shape[0])
            if size != self.size:
                raise MediaError(
                    f"{shown(self._files[position])}: is {size[0]}x{size[1]} pixels, but the clip's first frame is "
                    f"{self.size[0]}x{self.size[1]}; make all frames of a folder the same size"
                )
            yield frame_HW3

    def close(self) -> None:
        """Nothing is held open."""


def list_frames(folder: Path) -> list[str]:
    """Return the names of a folder's pictures in the order of the numbers in them (``2.jpg`` before ``10.jpg``)."""
    names = [entry.name for entry in folder.iterdir() if entry.suffix.lower() in PICTURE_SUFFIXES]
    return sorted(names, key=_by_number)


def _by_number(name: str) -> tuple[tuple[int, str], ...]:
    # Digits become (number, ""), text becomes (-1, text): comparable at every place, whatever the names are.
    return tuple((int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]+)", name))


def _opened(path: Path) -> Image.Image:
    try:
        image = Image.open(path, formats=PICTURE_FORMATS)
    except Exception as error:  # Pillow's parsers raise a dozen classes on broken files
        known = ", ".join(PICTURE_FORMATS)
        reason = "" if isinstance(error, UnidentifiedImageError) else f" ({error})"
        raise MediaError(f"{shown(path)}: cannot be read as a picture{reason}; expected one of {known}") from error
    width, height = image.size
    if width * height > MAX_PIXELS:
        image.close()
        raise MediaError(f"{shown(path)}: {width}x{height} pixels are more than the limit of {MAX_PIXELS:,}; make the picture smaller")
    return image


def _turned_size(image: Image.Image) -> tuple[int, int]:
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF blocks raise many classes; `exif_transpose` turns nothing then either
        orientation = 1
    width, height = image.size
    return (height, width) if orientation in (5, 6, 7, 8) else (width, height)
