"""Streaming: a long clip in pieces gives what the whole gives, reads no more than it needs, and holds no more than before."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tpo_core.stack import stack_rows
from tpo_core.types import Chunk, ClipView
from tpo_heads.mask.config import MaskConfig
from tpo_heads.mask.stream import _Stream
from tpo_heads.mask.track import decode_first, encode_frames


class Stream:
    """A long clip's chunks as core hands them over, noting how far they were read."""

    def __init__(self, bench: Any, config: MaskConfig, clip: ClipView) -> None:
        self.codec, self.clip = bench.codec(config), clip
        self.read: list[int] = []

    def __iter__(self) -> Iterator[Chunk]:
        for chunk in self.codec.chunks(self.clip):
            self.read.append(int(chunk.inputs["stage"]))
            yield Chunk(stack_rows([chunk.inputs], self.codec.ragged))


def frames_of(head: Any, queries: Any, stream: Stream) -> dict[tuple[int, int], torch.Tensor]:
    """Return (row, frame) -> mask logits and object score, flat."""
    found = {}
    with torch.no_grad():
        for output in head.stream(queries, stream):
            for row, t in torch.nonzero(output["valid"]).tolist():
                key = (row, int(output["frame_index"][row, t]))
                assert key not in found
                found[key] = torch.cat([output["masks"][row, t].flatten(), output["object"][row, t : t + 1]])
    return found


@pytest.mark.parametrize(("prompt", "options"), [(None, {}), (0, {}), (7, {}), (None, {"anchor": "box"}), (0, {"presence": True})])
def test_a_streamed_clip_gives_what_the_whole_gives(bench: Any, prompt: int | None, options: dict[str, Any]) -> None:
    count = 11
    clip = bench.clip(bench.media(count), training=False, seen=(0, 3, 6, 9))
    prompts = {0: bench.box_prompt(prompt)} if prompt is not None else None
    found = []
    for chunk_frames in (4, count):
        config = MaskConfig(chunk_frames=chunk_frames, path="box", prompt_frame="first", **options)
        head = bench.head(config).eval()
        if head.presence is not None:
            torch.nn.init.constant_(head.presence.read.bias, 3.0)
        targets = [bench.target({0: bench.block(0, width=0)}, name) for name in ("a", "b")]
        queries, _ = bench.batch(config, [bench.clip(clip.media, *targets, training=False)], prompts=prompts)
        stream = Stream(bench, config, clip)
        found.append(frames_of(head, queries, stream))
    assert stream.read == [0]
    streamed, whole = found
    assert sorted(whole) == [(row, frame) for row in range(2) for frame in range(count)]
    assert sorted(streamed) == sorted(whole)
    for key, values in whole.items():
        torch.testing.assert_close(streamed[key], values, rtol=1e-4, atol=1e-5)
    # Fresh weights differ little, yet by more than what is allowed above.
    assert float((whole[0, 10] - whole[1, 10]).abs().max()) > 1e-4
    assert float((whole[0, 9] - whole[0, 10]).abs().max()) > 1e-3


def test_streaming_reads_the_way_back_only_where_needed(bench: Any) -> None:
    config = MaskConfig(chunk_frames=4, prompt_frame="first")
    head = bench.head(config).eval()
    clip = bench.clip(bench.media(10), training=False, seen=(0, 5))
    queries, _ = bench.batch(config, [clip])
    stream = Stream(bench, config, clip)
    frames_of(head, queries, stream)
    assert stream.read == [1, 2, 2, 2]
    assert head.source.encoded == 10
    queries, _ = bench.batch(config, [clip], prompts={0: bench.box_prompt(6)})
    stream = Stream(bench, config, clip)
    assert sorted(frames_of(head, queries, stream)) == [(0, frame) for frame in range(10)]
    assert stream.read == [1, 2, 2, 2, 3, 3, 3]


def test_streaming_looks_among_the_frames_that_the_model_saw(bench: Any) -> None:
    config = MaskConfig(chunk_frames=4, prompt_frame="best")
    head = bench.head(config).eval()
    clip = bench.clip(bench.media(12), training=False, seen=(0, 5, 11))
    queries, _ = bench.batch(config, [clip])
    look = next(iter(Stream(bench, config, clip))).inputs
    assert look["frame_index"].tolist() == [[0, 5, 11]]
    with torch.no_grad():
        tokens = head.adapter(queries.states_NSD).expand(3, -1, -1)
        step = decode_first(head.sam, encode_frames(head.sam, look["frames"][0]), tokens)
    best = (0, 5, 11)[int(step.object_B.argmax())]
    found = frames_of(head, queries, Stream(bench, config, clip))
    assert sorted(found) == [(0, frame) for frame in range(12)]
    torch.testing.assert_close(found[0, best][:-1], step.masks_BMhw[int(step.object_B.argmax()), 0].flatten())


def test_streaming_memory_does_not_grow(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config = MaskConfig(chunk_frames=4)
    head = bench.head(config).eval()
    held: list[int] = []
    answer = _Stream.answer

    def counted(self: _Stream, inputs: Any, stage: int) -> Any:
        output = answer(self, inputs, stage)
        held.append(sum(tracker.held for tracker, _ in self.trackers.values()))
        return output

    monkeypatch.setattr(_Stream, "answer", counted)
    clip = bench.clip(bench.media(48), training=False, seen=(0, 20))
    queries, _ = bench.batch(config, [clip], prompts={0: bench.box_prompt(20)})
    list(head.stream(queries, Stream(bench, config, clip)))
    bound = 2 * head.sam.max_obj_ptrs_in_encoder + 1
    assert max(held) <= bound
    assert held[10] == held[12] == bound - 1
