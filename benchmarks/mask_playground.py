"""What supervises the mask head, and what prompts SAM2: J&F on the playground's held-out clips.

    python benchmarks/mask_playground.py objectives runs/masks --seeds 3 [--scale 1.0] [--samples 3000] [--base shipped]
    python benchmarks/mask_playground.py paths runs/masks/mask-0

`objectives` trains the default recipe (heads region and mask) with ``objective: mask`` and with ``objective: distil``, per seed, and prints
both beside a box-only baseline (the distilling model's auxiliary box, filled, on every frame) and chance.

`paths` asks a finished run about the same clips by three paths: the language model's embedding, plain SAM2 with the annotated box of the
first frame that shows the object, and both. The box stands in the question in all three.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tpo_core import load_run
from tpo_core.data.records import Part, Record
from tpo_core.evaluate import Evaluator, TestSource
from tpo_core.jobs.quiet import quiet_libraries
from tpo_core.jobs.recipes import packaged_recipe, read_recipe
from tpo_core.jobs.sources import open_sources
from tpo_core.jobs.train import TrainJob
from tpo_core.model import GenerationOptions
from tpo_core.plugins import load_plugins
from tpo_core.predict import Predictor
from tpo_core.types import Answer, ClipView, Target, Tensors
from tpo_heads.mask.codec import MaskCodec
from tpo_heads.mask.rle import encode, fill_box
from tpo_heads.mask.target import read_truth

Change = Callable[[Record], Record | None]


class BoxOnlyCodec(MaskCodec):
    """Answers with the auxiliary box, filled, on every frame."""

    def decode(self, output: Tensors, clip: ClipView) -> Answer:
        """Return the box's answer in the place of the masks'."""
        size = clip.media.size
        box = (output["aux_box"].double().clamp(0, 1).numpy() * np.tile(size, 2)).tolist()
        frames = output["frame_index"][output["valid"]].tolist()
        rle = encode(fill_box(box, size))
        return {"frames": frames, "rle": [rle] * len(frames), "scores": [1.0] * len(frames), "boxes": [box] * len(frames)}


def evaluate(run: Any, *, change: Change | None = None, most: int = 200) -> tuple[dict[str, float], dict[str, float]]:
    """Return the mask head's figures on the run's held-out clips, and those of chance."""
    plugins = load_plugins()
    sources = [source for source in run.recipe.data.test if "mask" in source.name or "track" in source.name]
    opened = open_sources(sources, plugins, cache=run.path / "data")
    tests = []
    for source in opened:
        rows: list[tuple[str, Any]] = [(where, row) for where, row in source.rows() if isinstance(row, Record)][:most]
        kept = [(where, changed) for where, row in rows if (changed := change(row) if change else row) is not None]
        tests.append(TestSource(source.name, kept, source.root))
    metrics = {name: head.metric for name, head in run.assembly.heads.items()}
    options = GenerationOptions(max_new_tokens=16, heads=frozenset({"mask"}))
    report = Evaluator(Predictor(run.assembly), metrics=metrics, options=options).run(tests)
    return report.heads["mask"], report.chance["mask"]


def train(output: Path, *, seed: int, objective: str, options: dict[str, str]) -> None:
    """Train the default recipe with one objective, unless the folder holds the finished run."""
    if (output / "summary.json").exists():
        return
    plugins = load_plugins()
    mapping = packaged_recipe("default", ["region", "mask"], output, options | {"seed": str(seed)})
    recipe = read_recipe(mapping, plugins, heads=["region", "mask"], overrides=[f"heads.mask.objective={objective}"])
    TrainJob(recipe, plugins, resume=True).run()


def compare_objectives(folder: Path, *, seeds: int, options: dict[str, str]) -> None:
    """Train and print a table: one line per way, mean and every seed. (An absent object that is found absent has a J&F of 1.)"""
    table: dict[str, list[dict[str, float]]] = {"mask": [], "distil": [], "box-only": [], "chance": []}
    for seed in range(seeds):
        for objective in ("mask", "distil"):
            output = folder / f"{objective}-{seed}"
            train(output, seed=seed, objective=objective, options=options)
            run = load_run(output)
            figures, chance = evaluate(run)
            table[objective].append(figures)
        codec = run.assembly.codecs["mask"]
        run.assembly.codecs["mask"] = BoxOnlyCodec(codec.config, codec.view)
        figures, chance = evaluate(run)
        table["box-only"].append(figures)
        table["chance"].append(chance)
        print_table(table)


def with_box(record: Record) -> Record | None:
    """Return the record with the annotated box of the object's first frame in the question, or None where it is never there."""
    target = next((t for t in record.targets if t.role == "answer" and t.head == "mask"), None)
    if target is None:
        return None
    size = (int(target["size"][0]), int(target["size"][1]))
    shown = next(((frame, known.box(size)) for frame, known in read_truth(target).items() if known.present), None)
    if shown is None:
        return None
    frame, box = shown
    prompt = Target.model_validate(
        {
            "id": "box",
            "role": "prompt",
            "kind": "box",
            "for": target.id,
            "media": target.media,
            "size": size,
            "frame": frame,
            "boxes": [box],
        }
    )
    messages = list(record.messages)
    first = next(i for i, message in enumerate(messages) if message.role == "user")
    content = list(messages[first].content)
    place = max(i for i, part in enumerate(content) if part.type in ("image", "video")) + 1
    content.insert(place, Part(type="target", id="box"))
    messages[first] = messages[first].model_copy(update={"content": tuple(content)})
    return record.model_copy(update={"messages": tuple(messages), "targets": (prompt, *record.targets)})


def compare_paths(folder: Path) -> None:
    """Print J&F of a run by each path."""
    run = load_run(folder)
    table = {"embedding, no box": [evaluate(run)[0]]}
    head = run.assembly.model.slots["mask"].head
    config = head.config
    for path in ("embedding", "box", "both"):
        head.config = config.model_copy(update={"path": path})
        table[f"{path}, box in the question"] = [evaluate(run, change=with_box)[0]]
    print_table(table)


def print_table(table: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    """Print one line per way: mean J&F and every seed's, and which share of the absent objects was found absent."""
    for name, figures in table.items():
        if figures:
            columns = []
            for key in ("j&f", "n_acc"):
                values = [one[key] for one in figures if key in one]
                columns.append(f"{key} {statistics.mean(values):.3f} ({' '.join(f'{value:.3f}' for value in values)})" if values else "")
            print(f"{name:28s} {'   '.join(columns)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["objectives", "paths"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--scale", default="1.0")
    parser.add_argument("--samples", default="3000")
    parser.add_argument("--base", default="shipped")
    options = parser.parse_args()
    quiet_libraries()
    if options.what == "paths":
        compare_paths(options.folder)
    else:
        given = {"scale": options.scale, "samples": options.samples, "base": options.base}
        compare_objectives(options.folder, seeds=options.seeds, options=given)


if __name__ == "__main__":
    main()
