"""Libraries that write to the terminal on their own are told to leave it to us."""

from __future__ import annotations

import logging
import warnings


def quiet_libraries() -> None:
    """Turn off transformers' bars and advice, and warnings of libraries that a user can do nothing about; errors stay."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(transformers|peft|accelerate|torch|sam2)\..*")
