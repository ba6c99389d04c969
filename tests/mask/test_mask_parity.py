"""The differentiable path equals sam2's own predictors, given the same sparse embeddings (random weights, float32, 1e-4)."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from sam2.sam2_image_predictor import SAM2ImagePredictor
from sam2.sam2_video_predictor import SAM2VideoPredictor
from torch import Tensor

from tpo_heads.mask.sam import build_sam
from tpo_heads.mask.track import ABSENT, Step, Tracker, decode_first, encode_frames, normalise_frames, propagate

TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}
BUILDS = [("tiny", 64), ("sam2.1_hiera_t", 64)]


@pytest.fixture(params=BUILDS, ids=[name for name, _ in BUILDS], scope="module")
def sam(request: pytest.FixtureRequest) -> Any:
    name, side = request.param
    torch.manual_seed(3)
    built = build_sam(name, image_size=side).eval()
    with torch.no_grad():
        # Fresh weights give masks and scores near 0; spread them, so that candidates, gates and hard memories differ between objects.
        score = built.sam_mask_decoder.pred_obj_score_head.layers[-1]
        score.weight.mul_(20)
        for network in built.sam_mask_decoder.output_hypernetworks_mlps:
            network.layers[-1].weight.mul_(8)
        built.sam_mask_decoder.iou_prediction_head.layers[-1].weight.mul_(8)
        built.memory_encoder.fuser.layers[0].gamma.fill_(0.5)
        # Half of the objects' frames are seen and half are not.
        steps = track(built, frames_of(built, 6), tokens_of(built, 3), start=3)
        score.bias.sub_(torch.stack([step.object_B for step in steps]).median())
    return built


def frames_of(sam: Any, count: int) -> Tensor:
    return torch.randint(0, 256, (count, 3, sam.image_size, sam.image_size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def tokens_of(sam: Any, rows: int, count: int = 3) -> Tensor:
    return torch.randn(rows, count, sam.hidden_dim, generator=torch.Generator().manual_seed(5))


def track(sam: Any, frames: Tensor, sparse: Tensor, *, start: int) -> list[Step]:
    """Return our steps, frame by frame, for objects of one clip."""
    count = len(frames)
    tracker = Tracker(sam, num_frames=count, prompt_frame=start, learning=False)
    return propagate(tracker, encode_frames(sam, frames), torch.arange(count).expand(len(sparse), count), sparse)


def feed(monkeypatch: pytest.MonkeyPatch, predictor_model: Any, queue: list[Tensor]) -> None:
    """Make the model's prompt encoder answer prompts with these embeddings, in turn; frames without a prompt keep sam2's answer."""
    encoder = predictor_model.sam_prompt_encoder
    real = encoder.forward

    def forward(points: Any, boxes: Any, masks: Any) -> Any:
        sparse, dense = real(points, boxes, masks)
        if points is not None and bool((points[1] >= 0).any()):
            sparse = queue.pop(0)
        return sparse, dense

    monkeypatch.setattr(encoder, "forward", forward)


@pytest.mark.parametrize("multimask", [False, True])
@torch.no_grad()
def test_image_path_equals_image_predictor(sam: Any, monkeypatch: pytest.MonkeyPatch, multimask: bool) -> None:
    frames, sparse = frames_of(sam, 2), tokens_of(sam, 3)
    rows = torch.tensor([0, 0, 1])
    ours = decode_first(sam, encode_frames(sam, frames).take(rows), sparse, multimask=multimask)
    reference_model = copy.deepcopy(sam)
    predictor = SAM2ImagePredictor(reference_model)
    side = sam.image_size
    predictor._bb_feat_sizes = [(side // 4, side // 4), (side // 8, side // 8), (side // 16, side // 16)]
    for row, image in enumerate(rows.tolist()):
        feed(monkeypatch, reference_model, [sparse[row : row + 1]])
        predictor.set_image(frames[image].permute(1, 2, 0).numpy())
        _, iou, low = predictor.predict(box=np.array([1, 2, 30, 40]), multimask_output=multimask, return_logits=True)
        torch.testing.assert_close(ours.masks_BMhw[row].clamp(-32, 32), torch.from_numpy(low), **TOLERANCE)
        torch.testing.assert_close(ours.iou_BM[row], torch.from_numpy(iou), **TOLERANCE)
        monkeypatch.undo()


def video_predictor(sam: Any) -> Any:
    """Return sam2's video predictor around a copy of the model: the class differs from SAM2Base by methods and four options."""
    model = copy.deepcopy(sam)
    model.__class__ = SAM2VideoPredictor
    model.fill_hole_area = 0
    model.non_overlap_masks = model.clear_non_cond_mem_around_input = model.add_all_frames_to_correct_as_cond = False
    return model


def predict_video(sam: Any, frames: Tensor, sparse: Tensor, start: int, monkeypatch: pytest.MonkeyPatch) -> dict[int, Tensor]:
    """Return the mask logits (objects, h, w) of every frame by sam2's predictor: forward from the prompt frame, then in reverse."""
    predictor = video_predictor(sam)
    images = normalise_frames(frames)
    side = sam.image_size
    monkeypatch.setattr("sam2.sam2_video_predictor.load_video_frames", lambda **_: (images, side, side))
    monkeypatch.setattr(predictor, "_get_orig_video_res_output", lambda _, masks: (masks, masks))
    monkeypatch.setattr("sam2.sam2_video_predictor.tqdm", lambda items, **_: items)
    feed(monkeypatch, predictor, [sparse[row : row + 1] for row in range(len(sparse))])
    state = predictor.init_state("unused")
    for row in range(len(sparse)):
        predictor.add_new_points_or_box(state, start, row, box=[4, 4, 40, 40])
    given: dict[int, Tensor] = {}
    for frame, _, masks in predictor.propagate_in_video(state, start_frame_idx=start):
        given[frame] = masks[:, 0]
    for frame, _, masks in predictor.propagate_in_video(state, start_frame_idx=start, reverse=True):
        given[frame] = masks[:, 0]
    monkeypatch.undo()
    return given


def gated(step: Step) -> Tensor:
    masks = step.masks_BMhw[torch.arange(len(step.object_B)), step.best]
    return torch.where(step.object_B[:, None, None] > 0, masks, ABSENT)


@pytest.mark.parametrize(
    ("objects", "start", "count"),
    [
        (1, 0, 4),
        (3, 0, 3),
        (3, 2, 4),
        pytest.param(1, 0, 19, marks=pytest.mark.long),
        pytest.param(1, 9, 12, marks=pytest.mark.long),
        pytest.param(3, 10, 20, marks=pytest.mark.long),
    ],
)
@torch.no_grad()
def test_propagation_equals_video_predictor(sam: Any, monkeypatch: pytest.MonkeyPatch, objects: int, start: int, count: int) -> None:
    frames, sparse = frames_of(sam, count), tokens_of(sam, objects)
    reference = predict_video(sam, frames, sparse, start, monkeypatch)
    steps = track(sam, frames, sparse, start=start)
    assert sorted(reference) == list(range(count))
    for frame in range(count):
        torch.testing.assert_close(gated(steps[frame]), reference[frame], **TOLERANCE)


@torch.no_grad()
def test_parity_sees_a_difference(sam: Any) -> None:
    """The parity above is not one of constants: gates are open and shut, masks have both signs and depend on the prompt frame."""
    frames, sparse = frames_of(sam, 6), tokens_of(sam, 3)
    steps = track(sam, frames, sparse, start=3)
    seen = torch.stack([step.object_B for step in steps]) > 0
    assert 0.1 < float(seen.float().mean()) < 0.9
    masks = torch.stack([step.masks_BMhw[:, 0] for step in steps])
    assert 0.02 < float((masks[seen] > 0).float().mean()) < 0.98
    other = torch.stack([step.masks_BMhw[:, 0] for step in track(sam, frames, sparse, start=0)])
    assert float((masks - other).abs().max()) > 0.05
