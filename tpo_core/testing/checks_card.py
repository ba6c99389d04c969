"""Checks of the card, the config, the metric and the drawing: what needs no batch."""

from __future__ import annotations

import inspect
import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence

from pydantic import ValidationError

from tpo_core.contract import API_GROUP, HeadSpec
from tpo_core.errors import PluginBroken
from tpo_core.plugins import find_plugins, load_plugins
from tpo_core.testing.case import Case
from tpo_core.testing.report import CheckFailed, DoesNotApply, doing
from tpo_core.types import Answer, Target

NOT_A_FIELD = "no_such_option"

_IMPORT_CARD = """
import json, sys
from tpo_core.plugins.discover import Found
from tpo_core.plugins.load import load_plugin
entry = load_plugin(Found("card", sys.argv[1], sys.argv[2], "card", "0"), wanted=True).entry
print(json.dumps([entry.cause if entry.status in ("broken", "misspelt") else None, list(entry.heavy), entry.seconds]))
"""


def check_names(case: Case) -> None:
    """Every name on the card resolves to what it must be, and the examples are valid targets."""
    try:
        _ = case.loaded
    except PluginBroken as error:
        raise CheckFailed(str(error)) from error
    spec = case.spec
    if not spec.summary.strip() or "\n" in spec.summary:
        raise CheckFailed(f"summary is {spec.summary!r}; write one line that says what the head answers")
    if not 0 < spec.fidelity <= 1:
        raise CheckFailed(f"fidelity is {spec.fidelity}, expected a score above 0 and at most 1")
    if not spec.examples:
        raise CheckFailed("the card has no examples; give valid targets, as they stand in a record's `targets`")
    with doing("reading the card's examples as targets"):
        targets = case.examples
    for index, target in enumerate(targets):
        schema = case.loaded.codec.schema
        with doing(f"validating example {index} with Codec.schema"):
            if schema is not None:
                schema.model_validate(target.fields())


def check_light_card(case: Case) -> None:
    """Importing the card, in a fresh interpreter, brings in nothing heavy."""
    module = case.module or _announcing_module(case.spec)
    if module is None:
        raise DoesNotApply(f"no installed package announces {case.spec.name!r}; install yours (pip install -e .) or pass module=")
    done = subprocess.run(
        [sys.executable, "-c", _IMPORT_CARD, module, API_GROUP],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)},
    )
    if done.returncode:
        raise CheckFailed(f"importing {module} in a fresh interpreter failed: {(done.stderr.strip().splitlines() or ['no output'])[-1]}")
    cause, heavy, seconds = json.loads(done.stdout.splitlines()[-1])
    if cause:
        raise CheckFailed(f"{module}, in a fresh interpreter: {cause}")
    if heavy:
        raise CheckFailed(
            f"importing {module} imports {', '.join(heavy)} ({seconds:.1f} s); every `tpo` command would pay for it: "
            f"keep the card in a module of its own and name the classes as strings"
        )


def check_config(case: Case) -> None:
    """The config can be made without arguments and refuses unknown options."""
    with doing(f"{case.loaded.config.__name__}()"):
        _ = case.config
    try:
        case.loaded.config.model_validate({NOT_A_FIELD: 1})
    except ValidationError:
        return
    raise CheckFailed(
        f"{case.loaded.config.__name__} accepts the unknown option {NOT_A_FIELD!r}, so a typing mistake would pass unseen; "
        f'keep `extra="forbid"` of HeadConfig'
    )


def check_metric(case: Case) -> None:
    """The metric is empty at first, counts unanswered targets, holds `primary`, and chance has the same names."""
    with doing("Metric() and Metric.compute() before any target"):
        metric = case.loaded.metric()
        empty = metric.compute()
    if empty != {}:
        raise CheckFailed(f"Metric.compute() before any target gave {empty}, expected {{}}")
    for index, target in enumerate(case.examples):
        with doing(f"Metric.update with no answer for example {index} (a miss)"):
            metric.update([], target)
    with doing("Metric.compute() and Metric.chance()"):
        scores, chance = metric.compute(), metric.chance()
    if case.spec.primary not in scores:
        raise CheckFailed(f"the card's primary value is {case.spec.primary!r}, but Metric.compute() gives {sorted(scores)}")
    if scores.keys() != chance.keys():
        raise CheckFailed(f"Metric.chance() gives {sorted(chance)}, expected the names of compute(): {sorted(scores)}")
    for source, values in (("compute", scores), ("chance", chance)):
        odd = {name: value for name, value in values.items() if not isinstance(value, float | int) or not math.isfinite(value)}
        if odd:
            raise CheckFailed(f"Metric.{source}() gives {odd}, expected finite numbers")


def check_draw(case: Case) -> None:
    """The drawing takes answers, no answer, and a question without annotation."""
    from tpo_core.canvas import Canvas
    from tpo_core.testing.checks_model import predict_example

    draw = case.loaded.draw
    if draw is None:
        raise DoesNotApply("the card names no draw function")
    if len(inspect.signature(draw).parameters) != 3:
        raise CheckFailed(f"draw must take (canvas, answers, target), it takes {inspect.signature(draw)}")
    head = case.head().eval()
    for example, target in enumerate(case.examples):
        clip = case.clip(example, training=False)
        frames = dict(zip(clip.frame_indices, clip.media.frames(clip.frame_indices), strict=True))
        answers = predict_example(case, head, example)
        given: Sequence[Answer]
        shown: Target | None
        for given, shown, what in ((answers, target, "answers and a target"), ((), target, "no answer"), (answers, None, "no target")):
            with doing(f"draw with {what}, example {example}"):
                canvas = Canvas(clip.media, frames)
                draw(canvas, given, shown)
                canvas.picture()


def _announcing_module(spec: HeadSpec) -> str | None:
    entries = [entry for entry in load_plugins(env={}).entries if spec.name in entry.heads]
    targets = {(found.package, found.name): found.target for found in find_plugins()}
    return next((targets[entry.package, entry.name] for entry in entries), None)
