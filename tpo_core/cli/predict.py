"""``tpo predict``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from tpo_core.data.records import Record
    from tpo_core.jobs.run import Run
    from tpo_core.predict import Prediction


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("prompt")
@click.option("--image", multiple=True, type=click.Path(), help="A picture; may be repeated.")
@click.option("--video", multiple=True, type=click.Path(), help="A clip; may be repeated.")
@click.option("--box", help="A spatial prompt X1,Y1,X2,Y2 in pixels of the medium.")
@click.option("--box-head", help="Head that the box is for, where several take one.")
@click.option("--model", help="The backbone, where it is not where the run remembers it.")
@click.option(
    "--output", type=click.Path(path_type=Path), help="Where the annotated picture goes (.png). Default: beside the medium's name."
)
@click.option("--clip", type=click.Path(path_type=Path), help="Write an annotated MP4 of the clip as well.")
@click.option("--no-picture", is_flag=True, help="Draw nothing.")
@click.option("--max-new-tokens", default=128, show_default=True, help="Budget of new tokens.")
@click.option("--beams", default=1, show_default=True, help="Beam search.")
@click.option("--temperature", default=0.0, show_default=True, help="0 is greedy.")
@click.option("--start-bias", type=float, help="Added to the logits of start tokens: below 0, fewer calls of heads. Default: the recipe's.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    run: Path,
    prompt: str,
    image: Sequence[str],
    video: Sequence[str],
    box: str | None,
    box_head: str | None,
    model: str | None,
    output: Path | None,
    clip: Path | None,
    no_picture: bool,
    max_new_tokens: int,
    beams: int,
    temperature: float,
    start_bias: float | None,
    as_json: bool,
) -> None:
    """Ask the model of RUN about pictures and clips: words, the heads' answers, and an annotated picture."""
    from tpo_core.cli.opened import open_run
    from tpo_core.cli.output import echo
    from tpo_core.model import GenerationOptions

    loaded, _ = open_run(run, model)
    options = GenerationOptions(max_new_tokens=max_new_tokens, num_beams=beams, temperature=temperature, start_bias=start_bias)
    record = loaded.question(prompt, image=image, video=video, box=_box(box), box_head=box_head)
    prediction = loaded.answer(record, options)
    files = [] if no_picture or not (image or video) else _draw(loaded, record, prediction, output, clip)
    if as_json:
        echo(json.dumps({**prediction.to_json(), "files": [str(path) for path in files]}, ensure_ascii=True))
        return
    _show(prediction, files)


def _box(text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != 4:
        raise click.BadParameter(f"found {text!r}, expected four numbers X1,Y1,X2,Y2", param_hint="--box")
    return numbers


def _draw(run: Run, record: Record, prediction: Prediction, output: Path | None, clip: Path | None) -> list[Path]:
    files = []
    media = [part.path or "" for part in record.media_parts()]
    for index, canvas in run.draw(record, prediction).items():
        path = output or Path(f"{Path(media[index]).stem}-answer.png")
        if index and output is not None:
            path = output.with_name(f"{output.stem}-{index}{output.suffix}")
        path.parent.mkdir(parents=True, exist_ok=True)
        canvas.picture(title=record.prompt_text()).save(path)
        files.append(path)
        if clip is not None:
            clip.parent.mkdir(parents=True, exist_ok=True)
            files.append(run.draw_clip(record, prediction, media=index, path=clip))
    return files


def _show(prediction: Prediction, files: Sequence[Path]) -> None:
    from tpo_core.cli.output import echo, print_table

    echo(prediction.text or "(no words)")
    if prediction.heads:
        rows = [[answer.head, str(answer.media), answer.text] for answer in prediction.heads]
        print_table(["head", "medium", "answer"], rows)
    for path in files:
        echo(f"wrote {path}")
