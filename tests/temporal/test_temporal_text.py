"""Windows as text: values by hand, and a round trip within half a tenth of a second."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpo_core.testing.media import ArrayMedia
from tpo_core.types import BackboneView, ClipView, Target
from tpo_heads.temporal.codec import TemporalCodec
from tpo_heads.temporal.config import TemporalConfig
from tpo_heads.temporal.metric import TemporalMetric

CODEC = TemporalCodec(TemporalConfig(), BackboneView("toy", 4, 1, 8, 8))


def target(*spans) -> Target:
    return Target.model_validate({"id": "t", "head": "temporal", "duration": 10.0, "spans": [list(span) for span in spans]})


def clip() -> ClipView:
    return ClipView(ArrayMedia(np.zeros((20, 8, 8, 3), np.uint8), duration=10.0))


def test_windows_are_written_in_seconds():
    assert CODEC.to_text(target((1.23, 3.5))) == "from 1.2 to 3.5 seconds"
    assert CODEC.to_text(target((0, 2), (4.96, 10))) == "from 0.0 to 2.0 seconds, from 5.0 to 10.0 seconds"
    assert CODEC.to_text(target()) == TemporalCodec.absent


def test_text_is_read_as_one_answer_and_cut_to_the_clip():
    (answer,) = CODEC.from_text("It jumps from 1.2 to 3.5 seconds, from 8 to 12 seconds.", clip())
    assert answer == {"windows": [[1.2, 3.5, 1.0], [8.0, 10.0, 1.0]], "highlights": []}
    metric = TemporalMetric()
    metric.update([answer], target((1.2, 3.5)))
    assert metric.compute()["r1@0.7"] == 1.0


@pytest.mark.parametrize(
    "text", ["", "It is not there.", "from 3.5 to 1.2 seconds", "from here to there", "from 1 to 2 metres", "11 to 12 seconds"]
)
def test_what_is_no_window_is_no_answer(text):
    assert CODEC.from_text(text, clip()) == []


@given(st.lists(st.tuples(st.floats(0, 8), st.floats(0.2, 2)), min_size=1, max_size=3))
def test_windows_survive_being_written(drawn):
    spans = [(start, start + length) for start, length in drawn]
    (answer,) = CODEC.from_text(CODEC.to_text(target(*spans)), clip())
    for (start, end), (read_start, read_end, _) in zip(spans, answer["windows"], strict=True):
        assert read_start == pytest.approx(start, abs=0.0501)
        assert read_end == pytest.approx(end, abs=0.0501)
