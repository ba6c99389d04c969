"""Between annotated masks (original pixels, frames of the medium) and the tensors of the mask head.

Legend: T frames of one medium, U of them sent as pixels, H W SAM2's side, h w its mask logits, P sampled points.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from tpo_core.head import Codec
from tpo_core.types import Answer, BackboneView, Chunk, ClipView, Media, MediaInfo, Target, Tensors
from tpo_heads.boxes import clip as clip_boxes
from tpo_heads.boxes import normalise
from tpo_heads.mask.cache import file_of, frame_name
from tpo_heads.mask.config import MaskConfig
from tpo_heads.mask.plan import Plan, Truth, candidate_frames, plan_frames, prompt_position
from tpo_heads.mask.rle import encode, tight_box
from tpo_heads.mask.sam import SAM_CARDS
from tpo_heads.mask.target import FrameTruth, MaskPrompt, MaskTarget, check_prompt, check_target, read_truth

WHOLE, LOOK, FORTH, BACK = 0, 1, 2, 3
"""What a piece of a clip is for (``stage``): all of it; to look for the prompt frames; the way forward; the way back to the beginning."""


class MaskCodec(Codec[MaskConfig]):
    """One query per target (with ``parts: each`` one per object), over frames that `inputs` and `encode` choose alike."""

    schema = MaskTarget
    ragged = frozenset(
        {"frames", "frame_index", "frame_name", "pixel_of", "masks", "mask_known", "boxes", "present", "annotated"}
        | {"points", "point_labels"}
    )
    needs_features = False

    def __init__(self, config: MaskConfig, view: BackboneView) -> None:
        super().__init__(config, view)
        self.side = config.image_size or SAM_CARDS[config.sam].image_size

    @property
    def terms(self) -> tuple[str, ...]:
        return tuple(self.config.factors)

    def check(self, target: Target, media: MediaInfo) -> None:
        """Raise `ValueError` (one sentence) where masks, boxes or frames do not fit the medium, or nothing is annotated."""
        check_target(target, media)

    def inputs(self, clip: ClipView) -> Tensors:
        """Return the frames of the sample: in training those drawn, else all of a short clip, those that the model sees of a long one."""
        frames = plan_frames(clip, self.config).frames
        return self._frames(clip.media, frames, total=len(frames), stage=WHOLE)

    def encode(self, target: Target, clip: ClipView) -> list[Tensors]:
        """Return, per object: masks (T, H, W), boxes (T, 4; xyxy in 0-1), what is annotated and present (T,), and the prompt's position."""
        plan = plan_frames(clip, self.config)
        fields = MaskTarget.model_validate(target.fields())
        each = self.config.parts == "each" and fields.parts
        parts: Sequence[int | None] = list(range(len(fields.parts or []))) if each else [None]
        return [self._encode_object(target.id, read_truth(target, part), plan, clip) for part in parts]

    def counts(self, encoded: Tensors) -> dict[str, float]:
        """Return the frames that each term sums over: those with a known mask, with a box alone, annotated; one prompt to imitate."""
        present, known = encoded["present"] & encoded["annotated"], encoded["mask_known"]
        seen = float((present & known).sum())
        position = int(encoded["prompt_position"])
        boxed = float(present[position])
        every = {
            "focal": seen,
            "dice": seen,
            "iou": seen,
            "object": float(encoded["annotated"].sum()),
            "projection": float((present & ~known).sum()),
            "distil": boxed,
            "aux_box": boxed,
        }
        return {term: every[term] for term in self.terms}

    def encode_prompt(self, prompt: Target, clip: ClipView) -> Tensors:
        """Return a box or a point of the question: ``box`` (4,) xyxy or ``point`` (2,), shares of the medium, and its frame.

        Raises:
            ValueError: another kind, or it does not fit the medium.
        """
        fields = MaskPrompt.model_validate(prompt.fields())
        check_prompt(fields, clip.media)
        count = {"box": len(fields.boxes), "point": len(fields.points)}.get(prompt.kind or "", 0)
        if count != 1 or len(fields.boxes) + len(fields.points) != 1:
            raise ValueError(
                f"a prompt of the mask head is one box (`boxes`) or one point (`points`) named by its kind, got kind {prompt.kind!r}"
            )
        is_box = prompt.kind == "box"
        box = _share(fields.boxes[0], clip.media.size) if is_box else torch.zeros(4)
        size = torch.tensor(clip.media.size, dtype=torch.float32)
        point = torch.zeros(2) if is_box else torch.tensor(fields.points[0]) / size
        return {"box": box, "point": point, "is_box": torch.tensor(is_box), "frame": torch.tensor(fields.frame)}

    def decode(self, output: Tensors, clip: ClipView) -> Answer:
        """Return, for the frames that the output holds: their indices, RLE, scores (0-1) and tight boxes, in pixels of the medium.

        A frame whose object score is negative has an empty mask, and a box of null.
        """
        width, height = clip.media.size
        answer: Answer = {"frames": [], "rle": [], "scores": [], "boxes": []}
        score_T = output["object"].float().sigmoid() * output["iou"].float().clamp(0, 1)
        for position in torch.nonzero(output["valid"]).flatten().tolist():
            mask = np.zeros((height, width), dtype=bool)
            if float(output["object"][position]) > 0:
                logits = output["masks"][position].float()[None, None]
                mask = (functional.interpolate(logits, size=(height, width), mode="bilinear", align_corners=False)[0, 0] > 0).numpy()
            answer["frames"].append(int(output["frame_index"][position]))
            answer["rle"].append(encode(mask))
            answer["scores"].append(round(float(score_T[position]), 4))
            answer["boxes"].append(tight_box(mask))
        return answer

    def chunks(self, clip: ClipView) -> Iterator[Chunk]:
        """Yield a short clip whole; of a long one the frames to look at first, all frames forward, then all frames backward.

        The head reads no further than it needs: with the prompt on frame 0 the way back is never decoded.
        """
        count, step = len(clip.media.times), self.config.chunk_frames
        if count <= step:
            yield Chunk(self._frames(clip.media, range(count), total=count, stage=WHOLE))
            return
        look = candidate_frames(clip, step) if self.config.prompt_frame != "first" else (0,)
        yield Chunk(self._frames(clip.media, look, total=count, stage=LOOK))
        for start in range(0, count, step):
            yield Chunk(self._frames(clip.media, range(start, min(start + step, count)), total=count, stage=FORTH))
        for end in range(count, 0, -step):
            yield Chunk(self._frames(clip.media, range(max(end - step, 0), end), total=count, stage=BACK))

    def merge(self, answers: Sequence[Answer], clip: ClipView) -> Answer:
        """Return one answer of the chunks' answers, frames ascending."""
        rows = {
            frame: (rle, score, box)
            for answer in answers
            for frame, rle, score, box in zip(answer["frames"], answer["rle"], answer["scores"], answer["boxes"], strict=True)
        }
        frames = sorted(rows)
        columns = [[rows[frame][column] for frame in frames] for column in range(3)]
        return {"frames": frames, "rle": columns[0], "scores": columns[1], "boxes": columns[2]}

    def describe(self, answers: Sequence[Answer]) -> str:
        """Return the answers in words."""
        return "; ".join(_describe(answer) for answer in answers) or "no mask"

    def _frames(self, media: Media, frames: Sequence[int], *, total: int, stage: int) -> Tensors:
        """Return the frames' names, and the pixels of those whose features no folder holds yet."""
        names = [frame_name(media.key, frame, self.config.sam, self.side) for frame in frames]
        folder = Path(self.config.cache_dir) if self.config.cache_dir is not None else None
        wanted = [i for i, name in enumerate(names) if folder is None or not file_of(folder, name).exists()]
        pixels_UCHW = torch.zeros(0, 3, self.side, self.side, dtype=torch.uint8)
        if wanted:
            pixels_UCHW = _resize(media.frames([frames[i] for i in wanted]), self.side)
        pixel_of = torch.full((len(names),), -1)
        pixel_of[wanted] = torch.arange(len(wanted))
        return {
            "frames": pixels_UCHW,
            "frame_index": torch.tensor(list(frames), dtype=torch.long),
            "frame_name": torch.tensor(names, dtype=torch.long).reshape(-1, 2),
            "pixel_of": pixel_of,
            "total": torch.tensor(total),
            "stage": torch.tensor(stage),
        }

    def _encode_object(self, target: str, truth: Truth, plan: Plan, clip: ClipView) -> Tensors:
        size, side = clip.media.size, self.side
        position = prompt_position(plan, target, truth, clip, self.config) if clip.training else 0
        rows = [truth.get(frame) for frame in plan.frames]
        prompted = rows[position]
        if clip.training and prompted is not None and not prompted.present and any(row is not None and row.present for row in rows):
            # A prompt where the object is not: there its absence is learnt, and nothing can be learnt of the frames that follow.
            rows = [row if i == position else None for i, row in enumerate(rows)]
        masks = [_shrink(row.mask(size) if row is not None else None, side) for row in rows]
        boxes = [row.box(size) if row is not None else None for row in rows]
        encoded = {
            "masks": torch.from_numpy(np.stack([mask if mask is not None else np.zeros((side, side), dtype=np.uint8) for mask in masks])),
            "mask_known": torch.tensor([mask is not None for mask in masks]),
            "boxes": torch.stack([_share(box, size) if box is not None else torch.zeros(4) for box in boxes]),
            "present": torch.tensor([row is not None and row.present for row in rows]),
            "annotated": torch.tensor([row is not None for row in rows]),
            "frame_index": torch.tensor(plan.frames, dtype=torch.long),
            "prompt_position": torch.tensor(position),
        }
        if self.config.points is not None:
            encoded |= _sample(encoded["masks"], encoded["boxes"], self.config.points, clip.rng())
        return encoded


def _resize(frames_THWC: np.ndarray, side: int) -> Tensor:
    """Return frames as uint8 (T, 3, side, side), antialiased; the aspect ratio is not kept, as in SAM2."""
    way = Image.Resampling.BILINEAR
    small = [np.asarray(Image.fromarray(frame).resize((side, side), way)) for frame in np.ascontiguousarray(frames_THWC)]
    return torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2).contiguous()


def _shrink(mask_HW: np.ndarray | None, side: int) -> np.ndarray | None:
    """Return a mask at SAM2's size (true where half a pixel or more is covered); one that would vanish keeps its most covered pixel."""
    if mask_HW is None:
        return None
    cover = np.asarray(Image.fromarray(mask_HW.astype(np.uint8) * 255).resize((side, side), Image.Resampling.BOX))
    small: np.ndarray = (cover >= 128).astype(np.uint8)
    if mask_HW.any() and not small.any():
        small.flat[int(cover.argmax())] = 1
    return small


def _share(box_xyxy: Sequence[float], size: tuple[int, int]) -> Tensor:
    box = torch.tensor(box_xyxy, dtype=torch.float64)
    return normalise(clip_boxes(box, size), size).float()


def _sample(masks_THW: Tensor, boxes_T4: Tensor, count: int, rng: np.random.Generator) -> Tensors:
    """Return points (T, P, 2) in 0-1 and their labels: half over the picture, half in the object's box enlarged by a half."""
    side = masks_THW.shape[-1]
    points_TP2 = torch.from_numpy(rng.random((len(masks_THW), count, 2), dtype=np.float32))
    low, high = boxes_T4[:, None, :2], boxes_T4[:, None, 2:]
    margin = (high - low) / 4
    near = (low - margin) + points_TP2[:, : count // 2] * (high - low + 2 * margin)
    empty = (high <= low).any(dim=2, keepdim=True)
    points_TP2[:, : count // 2] = torch.where(empty, points_TP2[:, : count // 2], near.clamp(0, 1 - 1e-6))
    cell = (points_TP2 * side).long().clamp(0, side - 1)
    frame = torch.arange(len(masks_THW))[:, None]
    return {"points": points_TP2, "point_labels": masks_THW[frame, cell[..., 1], cell[..., 0]]}


def _describe(answer: Answer) -> str:
    shown = [(frame, box) for frame, box in zip(answer["frames"], answer["boxes"], strict=True) if box is not None]
    if not shown:
        return "no mask (not there)"
    frame, box = shown[0]
    place = "x {0:.0f}-{2:.0f}, y {1:.0f}-{3:.0f}".format(*box)
    if len(answer["frames"]) == 1:
        return f"mask at {place}"
    return f"masks on {len(shown)} of {len(answer['frames'])} frames, from frame {frame} at {place}"


__all__ = ["BACK", "FORTH", "LOOK", "WHOLE", "FrameTruth", "MaskCodec"]
