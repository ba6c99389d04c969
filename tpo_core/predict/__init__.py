"""The prediction room: questions -> words and the heads' answers in original pixels and seconds."""

from tpo_core.predict.answers import HeadAnswer, Prediction
from tpo_core.predict.predictor import Predictor

__all__ = ["HeadAnswer", "Prediction", "Predictor"]
