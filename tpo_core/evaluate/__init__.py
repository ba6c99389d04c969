"""The evaluation room: test records -> metrics beside a chance row, conversation beside a blind row."""

from tpo_core.evaluate.conversation import BlindBaseline, is_right, normalised
from tpo_core.evaluate.evaluator import Evaluator, Report, TestSource, training_pairs

__all__ = ["BlindBaseline", "Evaluator", "Report", "TestSource", "is_right", "normalised", "training_pairs"]
