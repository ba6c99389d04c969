"""SAM2 as one differentiable function: image features, masks from sparse prompt tokens, memory over frames, objects on the batch axis.

Legend: F frames (flat, of any media), B objects (rows) that share a prompt frame, P prompt tokens, C channels, T frames in order,
M candidate masks (1 or 3), h w a quarter of the picture's side, H W the picture's side.

sam2's predictors cannot train (inference mode, one object after the other); its modules can. The parts here follow `SAM2Base.track_step`
on rows that differ in media; `tests/mask` holds them equal to both predictors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
ABSENT = -1024.0
"""The logit that sam2 writes where it sees no object."""


class SamFeatures(NamedTuple):
    """Image features of F frames at strides 4, 8 and 16, the finer two already projected for the mask decoder."""

    fine_FCHW: Tensor
    middle_FCHW: Tensor
    top_FCHW: Tensor

    def take(self, index: Tensor) -> SamFeatures:
        """Return the features of these frames; a frame may be taken several times."""
        return SamFeatures(*(level.index_select(0, index) for level in self))

    def __len__(self) -> int:
        return int(self.top_FCHW.shape[0])


class Step(NamedTuple):
    """What SAM2 says of one frame: candidate masks (logits, not gated by the object's score), their IoUs, the object's score (logit)."""

    masks_BMhw: Tensor
    iou_BM: Tensor
    object_B: Tensor

    @property
    def best(self) -> Tensor:
        """Return the candidate of highest predicted IoU."""
        return self.iou_BM.argmax(dim=1)


def normalise_frames(frames_FCHW: Tensor) -> Tensor:
    """Return uint8 frames as float32 with ImageNet's mean and deviation."""
    mean = torch.tensor(MEAN, device=frames_FCHW.device).view(3, 1, 1)
    std = torch.tensor(STD, device=frames_FCHW.device).view(3, 1, 1)
    return (frames_FCHW.float() / 255 - mean) / std


def encode_frames(sam: SAM2Base, frames_FCHW: Tensor, *, at_once: int = 8) -> SamFeatures:
    """Return the image features of uint8 frames, `at_once` of them in one call of the encoder."""
    parts = [sam.forward_image(normalise_frames(part))["backbone_fpn"][-3:] for part in torch.split(frames_FCHW, at_once)]
    return SamFeatures(*(torch.cat(levels) for levels in zip(*parts)))


def corner_tokens(sam: SAM2Base, boxes_B4: Tensor) -> Tensor:
    """Return sam2's own prompt tokens (B, 3, C) for boxes (xyxy, 0-1): two corners and a pad."""
    coords_B22 = boxes_B4.float().reshape(-1, 2, 2) * sam.image_size
    labels_B2 = torch.tensor([[2, 3]], dtype=torch.int32, device=boxes_B4.device).expand(len(coords_B22), 2)
    return _embed(sam, coords_B22, labels_B2)


def point_tokens(sam: SAM2Base, points_B2: Tensor) -> Tensor:
    """Return sam2's own prompt tokens (B, 2, C) for a positive point (x, y in 0-1): the point and a pad."""
    coords_B12 = points_B2.float().reshape(-1, 1, 2) * sam.image_size
    return _embed(sam, coords_B12, torch.ones(len(coords_B12), 1, dtype=torch.int32, device=points_B2.device))


def empty_tokens(sam: SAM2Base, rows: int) -> Tensor:
    """Return what sam2 feeds on frames without a prompt (B, 2, C)."""
    pad_11C: Tensor = sam.sam_prompt_encoder.not_a_point_embed.weight[None]
    return pad_11C.expand(rows, 2, -1)


def _embed(sam: SAM2Base, coords_BP2: Tensor, labels_BP: Tensor) -> Tensor:
    sparse_BPC: Tensor = sam.sam_prompt_encoder(points=(coords_BP2, labels_BP), boxes=None, masks=None)[0]
    return sparse_BPC


def decode_masks(sam: SAM2Base, pixels_BCHW: Tensor, features: SamFeatures, sparse_BPC: Tensor, *, multimask: bool) -> tuple[Step, Tensor]:
    """Run the mask decoder on rows of features (memory already mixed into `pixels_BCHW`).

    Returns:
        the step, and the decoder's output token of the best candidate (B, C), from which the object pointer is made.
    """
    rows, _, height, width = pixels_BCHW.shape
    dense_1CHW = sam.sam_prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1).expand(1, -1, height, width)
    masks_BMhw, iou_BM, tokens_BKC, object_B1 = sam.sam_mask_decoder(
        image_embeddings=pixels_BCHW,
        image_pe=sam.sam_prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse_BPC.to(pixels_BCHW.dtype),
        dense_prompt_embeddings=dense_1CHW,
        multimask_output=multimask,
        repeat_image=False,
        high_res_features=[features.fine_FCHW, features.middle_FCHW],
    )
    step = Step(masks_BMhw.float(), iou_BM.float(), object_B1.float().squeeze(1))
    best_B = step.best if tokens_BKC.shape[1] > 1 else torch.zeros(rows, dtype=torch.long, device=pixels_BCHW.device)
    return step, tokens_BKC[torch.arange(rows, device=best_B.device), best_B]


def decode_first(sam: SAM2Base, features: SamFeatures, sparse_BPC: Tensor, *, multimask: bool = False) -> Step:
    """Return the masks of prompts on their own frame, without memory: what sam2's image predictor gives."""
    return decode_masks(sam, features.top_FCHW + sam.no_mem_embed.reshape(1, -1, 1, 1), features, sparse_BPC, multimask=multimask)[0]


@dataclass
class _Memory:
    mask_BCHW: Tensor | None
    pos_B: list[Tensor] | None
    pointer_BC: Tensor

    def as_sam2(self) -> dict[str, Any]:
        return {"maskmem_features": self.mask_BCHW, "maskmem_pos_enc": self.pos_B, "obj_ptr": self.pointer_BC}


class Tracker:
    """B objects that are prompted on the same frame of their clips, followed forward, then backward.

    Frames are numbered within the clip. Memory is bounded: spatial memory of `num_maskmem` frames and object pointers of
    `max_obj_ptrs_in_encoder` frames, around the prompt and behind the frontier.

    Args:
        num_frames: frames of the clip; sam2 scales the distance of object pointers by it.
        prompt_frame: where `prompt` is called.
        learning: True in training: masks reach the memory soft and are not gated by the object's score (both would cut the
            gradient); False: as sam2's video predictor, memory stored in bfloat16.
    """

    def __init__(self, sam: SAM2Base, *, num_frames: int, prompt_frame: int, learning: bool) -> None:
        self.sam = sam
        self.num_frames = num_frames
        self.prompt_frame = prompt_frame
        self.learning = learning
        self._prompted: dict[int, _Memory] = {}
        self._tracked: dict[int, _Memory] = {}

    @property
    def held(self) -> int:
        """Return how many frames are remembered; bounded, whatever the length of the clip."""
        return len(self._prompted) + len(self._tracked)

    def prompt(self, features: SamFeatures, sparse_BPC: Tensor, *, multimask: bool = False, remember: bool = True) -> Step:
        """Segment the prompt frame (one row of features per object)."""
        pixels_BCHW = features.top_FCHW + self.sam.no_mem_embed.reshape(1, -1, 1, 1)
        step, token_BC = decode_masks(self.sam, pixels_BCHW, features, sparse_BPC, multimask=multimask)
        if remember:
            self._prompted[self.prompt_frame] = self._remember(features, step, token_BC, prompted=True)
        return step

    def follow(self, frame: int, features: SamFeatures, *, remember: bool = True) -> Step:
        """Segment the next frame after those seen (or, before the prompt frame, the next one towards the beginning)."""
        reverse = frame < self.prompt_frame
        pixels_BCHW = self._recall(frame, features, reverse=reverse)
        many = bool(self.sam.multimask_output_in_sam and self.sam.multimask_output_for_tracking and self.sam.multimask_min_pt_num == 0)
        step, token_BC = decode_masks(self.sam, pixels_BCHW, features, empty_tokens(self.sam, len(features)), multimask=many)
        if remember:
            self._tracked[frame] = self._remember(features, step, token_BC, prompted=False)
            self._forget(frame)
        return step

    def _recall(self, frame: int, features: SamFeatures, *, reverse: bool) -> Tensor:
        top_BCHW = features.top_FCHW
        place_BCHW = self.sam.image_encoder.neck.position_encoding(top_BCHW).to(top_BCHW.dtype)
        pixels_BCHW: Tensor = self.sam._prepare_memory_conditioned_features(
            frame_idx=frame,
            is_init_cond_frame=False,
            current_vision_feats=[top_BCHW.flatten(2).permute(2, 0, 1)],
            current_vision_pos_embeds=[place_BCHW.flatten(2).permute(2, 0, 1)],
            feat_sizes=[(top_BCHW.shape[-2], top_BCHW.shape[-1])],
            output_dict={
                "cond_frame_outputs": {t: memory.as_sam2() for t, memory in self._prompted.items()},
                "non_cond_frame_outputs": {t: memory.as_sam2() for t, memory in self._tracked.items()},
            },
            num_frames=self.num_frames,
            track_in_reverse=reverse,
        )
        return pixels_BCHW

    def _remember(self, features: SamFeatures, step: Step, token_BC: Tensor, *, prompted: bool) -> _Memory:
        sam = self.sam
        rows = torch.arange(len(features), device=step.iou_BM.device)
        masks_B1hw = step.masks_BMhw[rows, step.best][:, None]
        seen_B1 = (step.object_B > 0).float()[:, None]
        if not self.learning:
            masks_B1hw = torch.where(seen_B1[..., None, None] > 0, masks_B1hw, ABSENT)
        masks_B1HW = functional.interpolate(masks_B1hw, size=(sam.image_size, sam.image_size), mode="bilinear", align_corners=False)
        hard = prompted and sam.binarize_mask_from_pts_for_mem_enc and not self.learning
        shares_B1HW = (masks_B1HW > 0).float() if hard else masks_B1HW.sigmoid()
        shares_B1HW = shares_B1HW * sam.sigmoid_scale_for_mem_enc + sam.sigmoid_bias_for_mem_enc
        made = sam.memory_encoder(features.top_FCHW, shares_B1HW, skip_mask_sigmoid=True)
        mask_BCHW = made["vision_features"]
        if sam.no_obj_embed_spatial is not None:
            mask_BCHW = mask_BCHW + (1 - seen_B1)[..., None, None] * sam.no_obj_embed_spatial[..., None, None]
        if not self.learning:
            mask_BCHW = mask_BCHW.to(torch.bfloat16)
        pointer_BC = sam.obj_ptr_proj(token_BC)
        if sam.fixed_no_obj_ptr:
            pointer_BC = seen_B1 * pointer_BC
        pointer_BC = pointer_BC + (1 - seen_B1) * sam.no_obj_ptr
        return _Memory(mask_BCHW, made["vision_pos_enc"], pointer_BC)

    def _forget(self, frontier: int) -> None:
        near = int(self.sam.num_maskmem * self.sam.memory_temporal_stride_for_eval)
        far = max(near, int(self.sam.max_obj_ptrs_in_encoder))
        for frame in list(self._tracked):
            # What lies behind the prompt frame is needed again when the way back begins.
            kept = frame >= self.prompt_frame > 0
            distance = min(abs(frontier - frame), frame - self.prompt_frame if kept else far)
            if distance >= far:
                del self._tracked[frame]
            elif distance >= near:
                memory = self._tracked[frame]
                memory.mask_BCHW, memory.pos_B = None, None


def propagate(tracker: Tracker, features: SamFeatures, index_BT: Tensor, sparse_BPC: Tensor, *, multimask: bool = False) -> list[Step]:
    """Segment T frames of each row from the tracker's prompt frame: forward to the end, then backward to the beginning.

    Args:
        features: of F frames. index_BT: which of them each row has at each time.

    Returns:
        one step per frame, in the frames' order.
    """
    start, count = tracker.prompt_frame, index_BT.shape[1]
    steps: dict[int, Step] = {}
    steps[start] = tracker.prompt(features.take(index_BT[:, start]), sparse_BPC, multimask=multimask, remember=count > 1)
    order = [*range(start + 1, count), *range(start - 1, -1, -1)]
    for frame in order:
        # What nothing will read is not encoded: the last frame of the way back, and of the way there when no way back follows.
        last = frame == 0 if start else frame == count - 1
        steps[frame] = tracker.follow(frame, features.take(index_BT[:, frame]), remember=not last)
    return [steps[frame] for frame in range(count)]


def stack_steps(steps: Sequence[Step]) -> tuple[Tensor, Tensor, Tensor]:
    """Return candidates (B, T, M, h, w), their IoUs (B, T, M) and object scores (B, T); a single mask stands M times among three."""
    most = max(step.iou_BM.shape[1] for step in steps)
    masks_BTMhw = torch.stack([_repeat(step.masks_BMhw, most) for step in steps], dim=1)
    iou_BTM = torch.stack([_repeat(step.iou_BM, most) for step in steps], dim=1)
    return masks_BTMhw, iou_BTM, torch.stack([step.object_B for step in steps], dim=1)


def _repeat(candidates_BM: Tensor, count: int) -> Tensor:
    if candidates_BM.shape[1] == count:
        return candidates_BM
    return candidates_BM.expand(-1, count, *candidates_BM.shape[2:])


def choose(masks_BTMhw: Tensor, iou_BTM: Tensor) -> tuple[Tensor, Tensor]:
    """Return the candidate of highest predicted IoU: masks (B, T, h, w) and IoUs (B, T)."""
    best_BT1 = iou_BTM.argmax(dim=2, keepdim=True)
    where = best_BT1[..., None, None].expand(-1, -1, 1, *masks_BTMhw.shape[3:])
    return masks_BTMhw.gather(2, where).squeeze(2), iou_BTM.gather(2, best_BT1).squeeze(2)


def unused_parameters(*, boxes: bool, memory: bool) -> Iterator[str]:
    """Yield prefixes of the parameters that no path here reaches: SAM2's own points and mask prompts (corners only with `boxes`).

    Args:
        memory: whether clips of more than one frame are followed; without, memory and object pointers are not reached either.
    """
    yield "sam_prompt_encoder.mask_downscaling."
    yield "mask_downsample."
    yield "no_mem_pos_enc"
    if not boxes:
        yield "sam_prompt_encoder.point_embeddings."
    if not memory:
        names = ("memory_attention.", "memory_encoder.", "maskmem_tpos_enc", "obj_ptr", "no_obj_", "sam_prompt_encoder.not_a_point_embed.")
        yield from names
