"""Media: decode, clock, transform record, masks as run lengths."""

from __future__ import annotations

from tpo_core.media.clock import frame_at, frame_ends, frame_interval, frames_within, nearest_frame
from tpo_core.media.medium import DEFAULT_FOLDER_FPS, Medium, open_media
from tpo_core.media.sampling import sample_frames
from tpo_core.media.transform import Transform

__all__ = [
    "DEFAULT_FOLDER_FPS",
    "Medium",
    "Transform",
    "frame_at",
    "frame_ends",
    "frame_interval",
    "frames_within",
    "nearest_frame",
    "open_media",
    "sample_frames",
]
