"""One run of an ablation, in a process of its own: ``python -m tpo_core.jobs.ablate_worker SPEC.json``.

The file holds ``recipe`` (a mapping) and ``textual`` (heads whose answers are read out of the words). A run that was cut off goes on.
"""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path

import torch

from tpo_core.errors import TPOError
from tpo_core.jobs.ablate_records import TextualPredictor
from tpo_core.jobs.quiet import quiet_libraries
from tpo_core.jobs.recipes import read_recipe
from tpo_core.jobs.train import TrainJob
from tpo_core.plugins import load_plugins
from tpo_core.predict import Predictor


def main(path: Path) -> int:
    """Train and test one run; return the exit code."""
    quiet_libraries()
    if not torch.cuda.is_available():
        # Rows run side by side: one thread each is quicker than many that wait for one another.
        torch.set_num_threads(1)
    spec = json.loads(path.read_text("utf-8"))
    plugins = load_plugins()
    try:
        recipe = read_recipe(spec["recipe"], plugins, heads=None, overrides=())
        answerer = functools.partial(TextualPredictor, textual=spec["textual"]) if spec["textual"] else Predictor
        TrainJob(recipe, plugins, resume=True, answerer=answerer, command=spec["command"]).run()
    except TPOError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
