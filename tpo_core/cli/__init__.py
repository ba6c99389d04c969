"""The command line. Nothing heavy is imported here: `tpo --help` answers from this table and from installed metadata."""

from __future__ import annotations

import click

from tpo_core._version import __version__
from tpo_core.cli.frame import Lazy, LazyGroup

COMMANDS = {
    "train": Lazy("tpo_core.cli.train", "Train task heads on a multimodal LLM."),
    "predict": Lazy("tpo_core.cli.predict", "Ask a trained model about a picture or a clip."),
    "eval": Lazy("tpo_core.cli.evaluate", "Score a trained model on annotated records."),
    "ablate": Lazy("tpo_core.cli.ablate", "Compare variants of a recipe over several seeds."),
    "affinity": Lazy("tpo_core.cli.affinity", "Measure which tasks of a trained run help which."),
    "heads": Lazy("tpo_core.cli.heads", "List the installed heads, show one, or check one."),
    "new-head": Lazy("tpo_core.cli.new_head", "Write a package for a new head, ready to install and train."),
}


@click.group(
    cls=LazyGroup,
    table=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Every command takes --help and --debug.",
)
@click.version_option(__version__, prog_name="tpo")
@click.option("--debug", is_flag=True, expose_value=False, help="Show the whole traceback of an error.")
def main() -> None:
    """Task Preference Optimization: train task heads on a multimodal LLM, and ask it for boxes, moments and masks."""
