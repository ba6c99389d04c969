"""``tpo data``: write the playground's data and its base model. Light at import; each command imports what it needs when it runs."""

from __future__ import annotations

from pathlib import Path

import click


@click.group()
def data() -> None:
    """Write the playground's data or its base model."""


def _size(context: click.Context, parameter: click.Parameter, value: str) -> tuple[int, int]:
    try:
        width, height = (int(side) for side in value.lower().split("x"))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not WIDTHxHEIGHT, such as 96x64") from None
    return width, height


@data.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--samples", default=3000, show_default=True, help="Training pictures and clips; a fifth as many more for testing.")
@click.option("--seed", default=0, show_default=True, help="Seed of every draw.")
@click.option("--level", default=1, show_default=True, help="How hard the world is, 1 to 3.")
@click.option("--heads", default="region,temporal,mask", show_default=True, help="Heads that get records.")
@click.option("--size", default="64x64", show_default=True, callback=_size, help="Width and height of the media in pixels.")
def playground(folder: Path, samples: int, seed: int, level: int, heads: str, size: tuple[int, int]) -> None:
    """Write pictures, clips, records and the scenes' full truth to FOLDER."""
    from tpo_heads.playground.writer import write_playground

    names = tuple(name.strip() for name in heads.split(",") if name.strip())
    files = write_playground(folder, samples=samples, seed=seed, level=level, heads=names, size=size)
    for name, path in files.items():
        click.echo(f"{sum(1 for _ in path.open(encoding='utf-8')):>6} records  {name:<18} {path}")


@data.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--seed", default=0, show_default=True, help="Seed of the weights and of every draw.")
@click.option("--scratch", is_flag=True, help="Random weights only: nothing is taught.")
@click.option("--scale", default=1.0, show_default=True, help="Length of the course; 0.01 is a quick look.")
def base(folder: Path, seed: int, scratch: bool, scale: float) -> None:
    """Teach the playground's base model and write it to FOLDER (an hour on one core; resumes where it was interrupted)."""
    from tpo_heads.playground.base import build_base

    if scratch:
        click.echo(f"random weights in {build_base(folder, seed=seed)}")
        return
    from tpo_heads.playground.school import teach_base

    reached = teach_base(folder, seed=seed, scale=scale, say=click.echo)
    for name, value in reached.items():
        click.echo(f"{value:6.3f}  {name}")
