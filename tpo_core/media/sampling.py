"""Which frames of a clip a reader of few frames sees."""

from __future__ import annotations

from typing import Literal

import numpy as np

from tpo_core.media.clock import frame_at
from tpo_core.types import MediaInfo


def sample_frames(media: MediaInfo, count: int, *, mode: Literal["middle", "ends"] = "middle") -> tuple[int, ...]:
    """Return indices of `media.times`, ascending, all different: ``min(count, frames)`` of them.

    With at most `count` frames in the clip, all of them. Else the frames on screen at `count` moments: the middles of equal parts of the
    duration (``middle``), or moments from the first frame to the last (``ends``). Where one long frame is on screen at two moments, its
    free neighbours stand in, so that the number is kept.

    Raises:
        ValueError: count is below 1.
    """
    if count < 1:
        raise ValueError(f"count is {count}; ask for at least one frame")
    total = len(media.times)
    if total <= count:
        return tuple(range(total))
    if mode == "middle":
        moments = (np.arange(count) + 0.5) * media.duration / count
    else:
        moments = np.linspace(media.times[0], media.times[-1], count)
    picks = np.array([frame_at(media, moment) for moment in moments])
    # Distinct and ascending: push doubles up, then back from the end where they ran over.
    steps = np.arange(count)
    picks = np.maximum.accumulate(picks - steps) + steps
    picks = np.minimum(picks, total - count + steps)
    return tuple(picks.tolist())
