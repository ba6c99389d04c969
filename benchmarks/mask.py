"""Speed and memory of the mask head, as ratios within one run.

    python benchmarks/mask.py objects   # 8 objects in one clip: one batch, each frame encoded once, against object after object
    python benchmarks/mask.py cache     # a training step with warm features against one without, and against the naive way
    python benchmarks/mask.py stream    # peak memory of 600 streamed frames against 60, fresh processes

Pairs alternate (A B A B ...); the median of the ratios is printed with its spread. Times are CPU seconds of one thread. Equal work is
checked before anything is timed. "Naive" is the release's way: the encoder for every object, one clip and one object at a time.
"""

from __future__ import annotations

import argparse
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from tpo_core.stack import stack_rows
from tpo_core.types import BackboneView, Chunk, ClipView, Queries, Target, Widths
from tpo_heads.mask.codec import MaskCodec
from tpo_heads.mask.config import MaskConfig
from tpo_heads.mask.head import MaskHead
from tpo_heads.mask.rle import encode
from tpo_heads.mask.track import Tracker, encode_frames, propagate

HIDDEN = 64
VIEW = BackboneView(model_type="none", frames=8, temporal_patch=1, feature_dim=HIDDEN, hidden=HIDDEN)
SIZE = (320, 240)


class Clip:
    """A clip whose frames are drawn when they are asked for."""

    kind, path = "video", "<drawn>"

    def __init__(self, count: int, seed: int = 0) -> None:
        self.size, self.seed, self.key = SIZE, seed, f"{count}-{seed}"
        self.duration, self.times = float(count), tuple(float(t) for t in range(count))

    def frames(self, indices: Sequence[int]) -> np.ndarray:
        noise = [np.random.default_rng((self.seed, index)).integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8) for index in indices]
        return np.stack(noise)


def compare(ours: Callable[[], object], theirs: Callable[[], object], pairs: int) -> str:
    """Return the median and the spread of theirs / ours in CPU time."""
    ours(), theirs()
    ratios = []
    for _ in range(pairs):
        times = []
        for work in (ours, theirs):
            start = time.process_time()
            work()
            times.append(time.process_time() - start)
        ratios.append(times[1] / times[0])
    return f"{statistics.median(ratios):.2f}x (from {min(ratios):.2f} to {max(ratios):.2f}, {pairs} pairs)"


def block(left: int) -> np.ndarray:
    mask = np.zeros((SIZE[1], SIZE[0]), dtype=bool)
    mask[60:160, left : left + 80] = True
    return mask


def targets_of(objects: int, frames: int) -> list[Target]:
    return [
        Target.model_validate(
            {
                "id": f"t{number}",
                "size": SIZE,
                "frames": list(range(frames)),
                "rle": [encode(block(number * 20 + t)) for t in range(frames)],
            }
        )
        for number in range(objects)
    ]


def make_batch(config: MaskConfig, *, clips: int, objects: int, frames: int) -> tuple[Queries, dict[str, Tensor]]:
    codec = MaskCodec(config, VIEW)
    views = [ClipView(Clip(frames, seed), tuple(targets_of(objects, frames)), training=True, seed=(seed,)) for seed in range(clips)]
    encoded = [row for view in views for target in view.targets for row in codec.encode(target, view)]
    count = clips * objects
    queries = Queries(
        states_NSD=torch.randn(count, 1, HIDDEN, generator=torch.Generator().manual_seed(0)),
        media_N=torch.arange(count) // objects,
        words_NWD=torch.zeros(count, 1, HIDDEN),
        words_valid_NW=torch.ones(count, 1, dtype=torch.bool),
        inputs=stack_rows([codec.inputs(view) for view in views], codec.ragged),
        prompted_N=torch.zeros(count, dtype=torch.bool),
    )
    return queries, stack_rows(encoded, codec.ragged)


def make_head(config: MaskConfig) -> MaskHead:
    torch.manual_seed(0)
    return MaskHead(config, Widths(hidden=HIDDEN, features=HIDDEN, words=HIDDEN))


@torch.no_grad()
def compare_objects(sam: str, side: int | None, frames: int, pairs: int) -> None:
    """8 objects in one clip, prediction."""
    head = make_head(MaskConfig(sam=sam, image_size=side, cache_mib=0)).eval()
    pictures = torch.randint(0, 256, (frames, 3, head.sam.image_size, head.sam.image_size), dtype=torch.uint8)
    tokens = torch.randn(8, 3, head.sam.hidden_dim)
    index = torch.arange(frames)

    def together() -> Tensor:
        tracker = Tracker(head.sam, num_frames=frames, prompt_frame=0, learning=False)
        steps = propagate(tracker, encode_frames(head.sam, pictures), index.expand(8, frames), tokens)
        return torch.stack([step.masks_BMhw[:, 0] for step in steps], dim=1)

    def naive() -> Tensor:
        rows = []
        for number in range(8):
            tracker = Tracker(head.sam, num_frames=frames, prompt_frame=0, learning=False)
            features = encode_frames(head.sam, pictures, at_once=1)
            steps = propagate(tracker, features, index[None], tokens[number : number + 1])
            rows.append(torch.stack([step.masks_BMhw[:, 0] for step in steps], dim=1))
        return torch.cat(rows)

    torch.testing.assert_close(together(), naive(), rtol=1e-3, atol=1e-3)
    print(f"8 objects, {frames} frames, {sam} at {head.sam.image_size} px: naive takes {compare(together, naive, pairs)} the time")


def compare_cache(sam: str, side: int | None, frames: int, clips: int, objects: int, pairs: int) -> None:
    """Forward, loss and backward of the head in training (adapter only)."""
    warm = make_head(MaskConfig(sam=sam, image_size=side, train_frames=frames, cache_mib=4096)).train()
    cold = make_head(MaskConfig(sam=sam, image_size=side, train_frames=frames, cache_mib=0)).train()
    queries, targets = make_batch(cold.config, clips=clips, objects=objects, frames=frames)

    def step(head: MaskHead, own: Queries, truth: dict[str, Tensor]) -> float:
        losses = head.loss(head(own, truth), truth)
        total = sum(head.term_weights[name] * rows.sum() for name, rows in losses.items())
        torch.autograd.backward(total)
        return float(total.detach())

    def naive() -> float:
        total = 0.0
        for row in range(len(queries)):
            medium = int(queries.media_N[row])
            own = Queries(
                states_NSD=queries.states_NSD[row : row + 1],
                media_N=torch.zeros(1, dtype=torch.long),
                words_NWD=queries.words_NWD[:1],
                words_valid_NW=queries.words_valid_NW[:1],
                inputs={name: value[medium : medium + 1] for name, value in queries.inputs.items()},
                prompted_N=torch.zeros(1, dtype=torch.bool),
            )
            total += step(cold, own, {name: value[row : row + 1] for name, value in targets.items()})
        return total

    expected = step(cold, queries, targets)
    assert abs(step(warm, queries, targets) - expected) < 1e-4 * abs(expected)
    assert abs(naive() - expected) < 1e-3 * abs(expected)
    what = f"training step, {clips} clips x {objects} objects x {frames} frames, {sam} at {cold.sam.image_size} px"
    print(f"{what}: without cache {compare(lambda: step(warm, queries, targets), lambda: step(cold, queries, targets), pairs)} the time")
    print(f"{what}: naive {compare(lambda: step(warm, queries, targets), naive, max(1, pairs // 2))} the time")


@torch.no_grad()
def stream_frames(frames: int) -> None:
    """Follow three objects through a long clip and print the process' peak memory in KiB."""
    config = MaskConfig(chunk_frames=16, prompt_frame="first")
    head, codec = make_head(config).eval(), MaskCodec(config, VIEW)
    view = ClipView(Clip(frames))
    queries = Queries(
        states_NSD=torch.randn(3, 1, HIDDEN),
        media_N=torch.zeros(3, dtype=torch.long),
        words_NWD=torch.zeros(3, 1, HIDDEN),
        words_valid_NW=torch.ones(3, 1, dtype=torch.bool),
        prompted_N=torch.zeros(3, dtype=torch.bool),
    )
    chunks = (Chunk(stack_rows([chunk.inputs], codec.ragged)) for chunk in codec.chunks(view))
    answered = 0
    for output in head.stream(queries, chunks):
        answered += len(codec.decode({name: value[0] for name, value in output.items()}, view)["frames"])
    assert answered == frames
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def compare_memory() -> None:
    """Peak memory of a whole process that streams 60 and 600 frames."""
    peak = {}
    for frames in (60, 600):
        run = subprocess.run([sys.executable, __file__, "peak", str(frames)], check=True, capture_output=True, text=True)
        peak[frames] = int(run.stdout.strip())
    print(f"peak memory of the process: 60 frames {peak[60] >> 10} MiB, 600 frames {peak[600] >> 10} MiB: {peak[600] / peak[60]:.2f}x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["objects", "cache", "stream", "peak"])
    parser.add_argument("frames", nargs="?", type=int, default=60)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.what == "peak":
        stream_frames(options.frames)
        return
    print(f"torch {torch.__version__}, {platform.processor() or platform.machine()}, 1 thread")
    if options.what == "objects":
        compare_objects("tiny", None, frames=8, pairs=7)
        compare_objects("sam2.1_hiera_t", 256, frames=4, pairs=3)
    elif options.what == "cache":
        compare_cache("tiny", None, frames=1, clips=8, objects=1, pairs=9)
        compare_cache("tiny", None, frames=4, clips=8, objects=2, pairs=5)
        compare_cache("sam2.1_hiera_t", 512, frames=1, clips=2, objects=1, pairs=3)
    else:
        compare_memory()


if __name__ == "__main__":
    main()
