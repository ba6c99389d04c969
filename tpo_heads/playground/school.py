"""``tpo data base``: the whole course of the stand-in base model, from random weights to a folder.

It stands for the checkpoints that others trained (a multimodal LLM, and SAM2): tower and connector are aligned, the language model learns
captions and questions, and the small SAM2 learns points and clips. It sees no target of a head in the answer's format, and no test scene.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from tpo_heads.mask.losses import enlarge
from tpo_heads.mask.pretrain import ClipBatch, pretrain
from tpo_heads.mask.tiny import build_tiny
from tpo_heads.mask.track import Tracker, encode_frames, point_tokens, propagate, stack_steps
from tpo_heads.playground.base import make_base
from tpo_heads.playground.curriculum import SIDE, base_scene
from tpo_heads.playground.pretrain import Course, align, examine, teach
from tpo_heads.playground.scenes import Kind

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base

SAM_FILE = "sam2.safetensors"
"""SAM2's weights lie beside the model's, under this name."""
REACHED_FILE = "reached.json"
SAM_STEPS = (2400, 1200)
SAM_BATCH = (12, 6)


def teach_base(folder: str | Path, *, seed: int = 0, scale: float = 1.0, say: Callable[[str], None] | None = None) -> dict[str, float]:
    """Teach a base model and write it to a folder: half-precision safetensors, processor, SAM2's weights, what was reached.

    Deterministic in `seed` on one kind of machine (one thread is used); goes on from ``<folder>.course`` where it was interrupted.

    Args:
        folder: where to write.
        seed: of weights and scenes.
        scale: factor of all lengths; 1 takes about an hour on one core.
        say: gets lines of progress.

    Returns:
        What was reached on held-out scenes, 0-1: by kind of question, and SAM2's mean IoU (``sam_first``, ``sam_last``: frame).
    """
    target = Path(folder)
    work = target.with_name(target.name + ".course")
    work.mkdir(parents=True, exist_ok=True)
    course = scaled(Course(), scale)
    start = time.monotonic()

    def report(phase: str, step: int, values: dict[str, float]) -> None:
        if say is not None:
            text = "  ".join(f"{name} {value:.3f}" for name, value in values.items())
            say(f"{time.monotonic() - start:6.0f} s  {phase} {step}: {text}")

    from safetensors.torch import load_model, save_model

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        reached = teach_sam(work / SAM_FILE, seed=seed, scale=scale, report=report)
        model, processor = make_base(seed=seed)
        aligned = work / "aligned.safetensors"
        if aligned.is_file():
            load_model(model, aligned)
        else:
            align(model, processor.tokenizer, seed=seed, course=course, report=report)
            save_model(model, work / "aligned.tmp")
            os.replace(work / "aligned.tmp", aligned)
        teach(model, processor.tokenizer, seed=seed, course=course, report=report, folder=work)
        reached |= examine(model, processor.tokenizer, seed=seed, scenes=max(16, int(256 * min(1.0, scale))))
    finally:
        torch.set_num_threads(threads)
    model.half().save_pretrained(target)
    processor.save_pretrained(target)
    shutil.copyfile(work / SAM_FILE, target / SAM_FILE)
    rounded = {name: round(value, 4) for name, value in reached.items()}
    (target / REACHED_FILE).write_text(json.dumps({"seed": seed, "scale": scale, "reached": rounded}, indent=1) + "\n", "utf-8")
    return rounded


def scaled(course: Course, scale: float) -> Course:
    """Return the course with all its lengths multiplied."""
    return replace(course, align_steps=max(2, int(course.align_steps * scale)), steps=max(2, int(course.steps * scale)))


def teach_sam(path: Path, *, seed: int, scale: float, report: Callable[[str, int, dict[str, float]], None]) -> dict[str, float]:
    """Teach the small SAM2 points, then clips, unless its file is there; return its mean IoU from true points.

    The weights are written in half precision.
    """
    from safetensors.torch import load_file, save_file

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sam = build_tiny(SIDE)
    mean: list[float] = []

    def log(step: int, loss: float) -> None:
        mean.append(loss)
        if (step + 1) % 100 == 0:
            report("sam2", step + 1, {"loss": sum(mean[-100:]) / 100})

    if not path.is_file():
        single, clips = (max(2, int(steps * scale)) for steps in SAM_STEPS)
        pretrain(
            sam,
            point_batches(seed, size=SAM_BATCH[0], frames=1),
            point_batches(seed, size=SAM_BATCH[1], frames=3),
            steps_single=single,
            steps_clips=clips,
            log=log,
        )
        draft = path.with_name("sam2.tmp")
        save_file({name: weight.half().contiguous() for name, weight in sam.state_dict().items()}, draft)
        os.replace(draft, path)
    sam.load_state_dict({name: weight.float() for name, weight in load_file(path).items()})
    return examine_sam(sam, seed=seed, batches=max(1, int(8 * min(1.0, scale))))


def point_batches(seed: int, *, size: int, frames: int, split: str = "base") -> Iterator[ClipBatch]:
    """Yield batches of clips with a point on up to two objects each in the first frame, without end.

    Single frames come from all kinds of scenes, clips from the kind in which things move.

    Args:
        size: clips of a batch. frames: T.
    """
    index = 0
    while True:
        pictures: list[np.ndarray] = []
        masks: list[np.ndarray] = []
        points: list[list[float]] = []
        owners: list[int] = []
        while len(pictures) < size:
            kinds: tuple[Kind, ...] = ("image", "clip", "track") if frames == 1 else ("track",)
            level = 2 if index % 5 == 4 and split == "base" else 1
            scene, picture, _ = base_scene(seed, kinds[index % len(kinds)], index, split=split, level=level)
            rng = scene.rng(4)
            index += 1
            first = int(rng.integers(scene.frames - frames + 1))
            seen = [i for i in rng.permutation(len(scene.things)) if picture.mask(int(i), first).sum() >= 20][:2]
            for thing in seen:
                rows, columns = np.nonzero(picture.mask(int(thing), first))
                chosen = int(rng.integers(rows.size))
                masks.append(picture.owner_THW[first : first + frames] == thing)
                points.append([(columns[chosen] + 0.5) / scene.size[0], (rows[chosen] + 0.5) / scene.size[1]])
                owners.append(len(pictures))
            if seen:
                pictures.append(picture.frames_THW3[first : first + frames])
        frames_KTCHW = torch.from_numpy(np.stack(pictures)).permute(0, 1, 4, 2, 3).contiguous()
        masks_BTHW, points_B2 = torch.from_numpy(np.stack(masks)), torch.tensor(points, dtype=torch.float32)
        yield ClipBatch(frames_KTCHW, masks_BTHW, points_B2, torch.tensor(owners))


def examine_sam(sam: SAM2Base, *, seed: int, batches: int) -> dict[str, float]:
    """Return SAM2's mean IoU on held-out clips of four frames from a true point: on the prompted frame, and on the last one."""
    scores: list[torch.Tensor] = []
    source = point_batches(seed, size=12, frames=4, split="val")
    with torch.no_grad():
        for _ in range(batches):
            clip = next(source)
            count = clip.frames_KTCHW.shape[1]
            features = encode_frames(sam, clip.frames_KTCHW.flatten(0, 1), at_once=clip.frames_KTCHW[:, 0].shape[0] * count)
            tracker = Tracker(sam, num_frames=count, prompt_frame=0, learning=False)
            assert clip.clip_B is not None
            index_BT = clip.clip_B[:, None] * count + torch.arange(count)
            masks_BTMhw, iou_BTM, _ = stack_steps(propagate(tracker, features, index_BT, point_tokens(sam, clip.points_B2)))
            best_BT = iou_BTM.argmax(-1)
            masks_BThw = masks_BTMhw.gather(2, best_BT[..., None, None, None].expand(-1, -1, 1, *masks_BTMhw.shape[3:])).squeeze(2)
            seen, truth = enlarge(masks_BThw, sam.image_size) > 0, clip.masks_BTHW.flatten(2)
            both, either = (seen & truth).sum(-1), (seen | truth).sum(-1)
            scores.append(torch.where(either > 0, both / either.clamp(min=1), torch.ones(())))
    mean_T = torch.cat(scores).mean(0)
    return {"sam_first": float(mean_T[0]), "sam_last": float(mean_T[-1])}
