"""The head: gradients, who trains, padding, prompts and their frames, shared features."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tpo_core.errors import CheckpointError, ConfigError
from tpo_core.types import Target
from tpo_heads.mask.config import MaskConfig
from tpo_heads.mask.sam import save_weights
from tpo_heads.mask.segment import pick_frame
from tpo_heads.mask.track import corner_tokens, decode_first, encode_frames

EMPTY = np.zeros((48, 64), dtype=bool)


def moving(bench: Any, count: int, name: str = "t0", absent: tuple[int, ...] = ()) -> Target:
    return bench.target({frame: EMPTY if frame in absent else bench.block(3 * frame) for frame in range(count)}, name)


def weighted(head: Any, losses: dict[str, torch.Tensor]) -> torch.Tensor:
    return sum(head.term_weights[name] * rows.sum() for name, rows in losses.items())


@pytest.mark.parametrize(
    ("options", "sam_trains"),
    [
        ({"trains": "adapter"}, "none"),
        ({"trains": "decoder"}, "decoder"),
        ({"trains": "all"}, "all"),
        ({"trains": "all", "path": "both"}, "all"),
        ({"trains": "all", "train_frames": 1}, "all"),
        ({"trains": "decoder", "objective": "both"}, "decoder"),
        ({"trains": "decoder", "objective": "distil"}, "none"),
        ({"trains": "decoder", "anchor": "box"}, "decoder"),
        ({"trains": "decoder", "presence": True}, "decoder"),
    ],
    ids=str,
)
def test_exactly_what_trains_gets_a_gradient(bench: Any, options: dict[str, Any], sam_trains: str) -> None:
    """In one step every trainable parameter is reached (DDP needs no search for unused ones), and nothing else."""
    config = MaskConfig(**options)
    head = bench.head(config).train()
    target = moving(bench, 4, absent=(2,))
    prompts = {0: bench.box_prompt()}
    queries, targets = bench.batch(config, [bench.clip(bench.media(4), target)], prompts=prompts)
    states = queries.states_NSD.requires_grad_()
    losses = head.loss(head(queries, targets), targets)
    point = {"box": torch.rand(2, 4), "point": torch.rand(2, 2), "is_box": torch.tensor([True, False])}
    (weighted(head, losses) + head.prompt(point).sum()).backward()
    assert states.grad is not None
    assert states.grad.abs().sum() > 0
    trained = {name for name, parameter in head.named_parameters() if parameter.requires_grad}
    reached = {name for name, parameter in head.named_parameters() if parameter.grad is not None}
    assert trained == reached
    inside = {name for name in trained if name.startswith("sam.")}
    if sam_trains == "none":
        assert not inside
    elif sam_trains == "decoder":
        assert inside
        assert all(name.startswith("sam.sam_mask_decoder.") for name in inside)
        decoder = dict(head.sam.sam_mask_decoder.named_parameters())
        assert float(sum(p.grad.abs().sum() for p in decoder.values() if p.grad is not None)) > 0
    else:
        assert "sam.image_encoder.trunk.patch_embed.proj.weight" in inside
        assert ("sam.memory_encoder.out_proj.weight" in inside) == (config.train_frames > 1)


def test_masks_learn_while_the_object_score_is_negative(bench: Any) -> None:
    """sam2's own forward writes -1024 over the masks there, and no gradient comes back."""
    config = MaskConfig(object=0.0, iou=0.0)
    head = bench.head(config).train()
    with torch.no_grad():
        head.sam.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.fill_(-50)
    queries, targets = bench.batch(config, [bench.clip(bench.media(3), moving(bench, 3))])
    states = queries.states_NSD.requires_grad_()
    output = head(queries, targets)
    assert (output["object"] < 0).all()
    weighted(head, head.loss(output, targets)).backward()
    assert states.grad is not None
    assert states.grad.abs().sum() > 0


def test_later_frames_teach_the_prompt_through_memory(bench: Any) -> None:
    """With the loss on the last frame alone, the gradient comes back through memory, though SAM2 is frozen and in eval mode."""
    config = MaskConfig(object=0.0, iou=0.0)
    head = bench.head(config).train()
    with torch.no_grad():
        # Where the object is not seen, sam2's pointer and memory carry its absence alone.
        head.sam.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.fill_(50)
    assert not head.sam.training
    queries, targets = bench.batch(config, [bench.clip(bench.media(3), moving(bench, 3))])
    targets["mask_known"][:, :-1] = False
    targets["present"][:, :-1] = False
    targets["annotated"][:, :-1] = False
    states = queries.states_NSD.requires_grad_()
    weighted(head, head.loss(head(queries, targets), targets)).backward()
    assert states.grad is not None
    assert states.grad.abs().sum() > 0


def test_losses_count_annotated_frames_alone(bench: Any) -> None:
    config = MaskConfig()
    head = bench.head(config).train()
    clip = bench.clip(bench.media(3), moving(bench, 3))
    queries, targets = bench.batch(config, [clip])
    full = head.loss(head(queries, targets), targets)
    parts = []
    for frame in range(3):
        own = dict(targets) | {name: targets[name].clone() for name in ("annotated", "mask_known")}
        own["annotated"][:] = torch.arange(3) == frame
        parts.append(head.loss(head(queries, own), own))
    for name, value in full.items():
        torch.testing.assert_close(value, sum(part[name] for part in parts))
    assert full["focal"].item() > 0


def test_an_empty_mask_is_a_legal_target(bench: Any) -> None:
    config = MaskConfig()
    head = bench.head(config).train()
    clip = bench.clip(bench.media(2), moving(bench, 2, absent=(0, 1)))
    queries, targets = bench.batch(config, [clip])
    losses = head.loss(head(queries, targets), targets)
    assert {name: value.item() for name, value in losses.items() if name != "object"} == dict.fromkeys(
        ("focal", "dice", "iou", "projection"), 0
    )
    assert losses["object"].item() > 0


def test_rows_do_not_see_the_clips_beside_them(bench: Any) -> None:
    """A picture, a clip of three frames and one of five, with other prompt frames: each as alone."""
    config = MaskConfig(train_frames=5, cache_mib=0)
    head = bench.head(config).train()
    clips = [
        bench.clip(bench.media(1, 1), moving(bench, 1)),
        bench.clip(bench.media(3, 2), moving(bench, 3, absent=(0,)), moving(bench, 3, "t1")),
        bench.clip(bench.media(5, 3), moving(bench, 5)),
    ]
    queries, targets = bench.batch(config, clips)
    together = head(queries, targets)
    losses = head.loss(together, targets)
    row = 0
    for clip in clips:
        rows = len(clip.targets)
        alone_queries, alone_targets = bench.batch(config, [clip])
        alone_queries = dataclasses.replace(alone_queries, states_NSD=queries.states_NSD[row : row + rows])
        alone = head(alone_queries, alone_targets)
        length = alone["masks"].shape[1]
        assert together["valid"][row : row + rows].sum(1).tolist() == [length] * rows
        for name in ("masks", "iou", "object", "candidates"):
            torch.testing.assert_close(together[name][row : row + rows, :length], alone[name], rtol=1e-4, atol=1e-5)
        for name, value in head.loss(alone, alone_targets).items():
            torch.testing.assert_close(losses[name][row : row + rows], value, rtol=1e-4, atol=1e-5)
        row += rows


def test_a_frame_is_encoded_once_for_all_its_queries(bench: Any) -> None:
    config = MaskConfig(cache_mib=0)
    head = bench.head(config).train()
    targets_of = [moving(bench, 4, name) for name in ("a", "b", "c")]
    queries, targets = bench.batch(config, [bench.clip(bench.media(4), *targets_of)])
    output = head(queries, targets)
    assert output["masks"].shape[:2] == (3, 4)
    assert head.source.encoded == 4


def test_distilling_runs_no_layer_of_sam2(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config = MaskConfig(objective="distil")
    head = bench.head(config).train()
    queries, targets = bench.batch(config, [bench.clip(bench.media(3), moving(bench, 3))])
    monkeypatch.setattr(head.sam, "forward_image", None)
    monkeypatch.setattr(head.sam.sam_mask_decoder, "forward", None)
    losses = head.loss(head(queries, targets), targets)
    tokens = corner_tokens(head.sam, targets["boxes"][:, 0])
    ours = head.adapter(queries.states_NSD)
    torch.testing.assert_close(losses["distil"], (ours - tokens).abs().mean(dim=(1, 2)))
    box = head.aux_box(queries.states_NSD)[:, 0]
    torch.testing.assert_close(losses["aux_box"], (box - targets["boxes"][:, 0]).abs().mean(dim=1))


def test_an_anchored_adapter_begins_as_sam2_with_the_box_that_it_reads(bench: Any) -> None:
    """The prompt is SAM2's own for the box read off the embedding, plus the adapter's tokens; the box is learnt with pixels too."""
    config = MaskConfig(anchor="box")
    head = bench.head(config).train()
    queries, targets = bench.batch(config, [bench.clip(bench.media(3), moving(bench, 3))])
    with torch.no_grad():
        head.adapter.layers[-1].weight.zero_()
        output = head(queries, targets)
    torch.testing.assert_close(output["tokens"], corner_tokens(head.sam, output["aux_box"]))
    assert ((output["aux_box"] - torch.tensor([0.25, 0.25, 0.75, 0.75])).abs() < 0.2).all()
    losses = head.loss(output, targets)
    assert losses.keys() == config.factors.keys() == {"focal", "dice", "iou", "object", "projection", "aux_box"}
    torch.testing.assert_close(losses["aux_box"], (output["aux_box"] - targets["boxes"][:, 0]).abs().mean(dim=1))


def test_box_prompt_equals_plain_sam2(bench: Any) -> None:
    """With ``path: box`` the answer is SAM2's own for that box; ``embedding`` and ``both`` give others, on the prompt's frame."""
    media = bench.media(3)
    found = {}
    for path in ("embedding", "box", "both"):
        config = MaskConfig(path=path, cache_mib=0)
        head = bench.head(config).eval()
        queries, _ = bench.batch(config, [bench.clip(media, training=False)], prompts={0: bench.box_prompt(frame=1)})
        with torch.no_grad():
            found[path] = head(queries)["masks"][0, 1]
            frames = bench.codec(config).inputs(bench.clip(media, training=False))["frames"]
            tokens = corner_tokens(head.sam, torch.tensor([[8 / 64, 12 / 48, 40 / 64, 36 / 48]]))
            plain = decode_first(head.sam, encode_frames(head.sam, frames[1:2]), tokens)
    torch.testing.assert_close(found["box"], plain.masks_BMhw[0, 0])
    assert not torch.allclose(found["embedding"], found["box"], atol=1e-3)
    assert not torch.allclose(found["both"], found["box"], atol=1e-3)


def test_unprompted_queries_use_the_embedding_whatever_the_path(bench: Any) -> None:
    media = bench.media(2)
    found = []
    for path in ("embedding", "both"):
        config = MaskConfig(path=path, prompt_frame="first")
        head = bench.head(config).eval()
        targets = [moving(bench, 2, "a"), moving(bench, 2, "b")]
        queries, _ = bench.batch(config, [bench.clip(media, *targets, training=False)], prompts={0: bench.box_prompt()})
        with torch.no_grad():
            found.append(head(queries)["masks"])
    torch.testing.assert_close(found[0][1], found[1][1])
    assert not torch.allclose(found[0][0], found[1][0], atol=1e-3)


def test_the_frame_that_is_prompted() -> None:
    scores = [-2.0, 0.5, 3.0, 3.0]
    assert pick_frame(scores, MaskConfig(prompt_frame="seen")) == 1
    assert pick_frame(scores, MaskConfig(prompt_frame="best")) == 2
    assert pick_frame([-2.0, -1.0], MaskConfig(prompt_frame="seen")) == 1


@pytest.mark.parametrize("rule", ["seen", "best", "first"])
def test_prediction_prompts_the_frame_of_its_object_score(bench: Any, rule: Any) -> None:
    config = MaskConfig(prompt_frame=rule)
    head = bench.head(config).eval()
    media = bench.media(4)
    queries, _ = bench.batch(config, [bench.clip(media, moving(bench, 4), training=False)])
    with torch.no_grad():
        frames = bench.codec(config).inputs(bench.clip(media, training=False))["frames"]
        tokens = head.adapter(queries.states_NSD).expand(4, -1, -1)
        step = decode_first(head.sam, encode_frames(head.sam, frames), tokens)
        # Half of the frames see the object.
        score = head.sam.sam_mask_decoder.pred_obj_score_head.layers[-1]
        shift = step.object_B.sort().values[1:3].mean()
        score.bias -= shift
        expected = 0 if rule == "first" else pick_frame((step.object_B - shift).tolist(), config)
        output = head(queries)
    torch.testing.assert_close(output["masks"][0, expected], step.masks_BMhw[expected, 0])
    others = [frame for frame in range(4) if frame != expected]
    assert not any(torch.allclose(output["masks"][0, frame], step.masks_BMhw[frame, 0], atol=1e-4) for frame in others)


def test_missing_weights_are_an_error_unless_a_run_brings_them(bench: Any, tmp_path: Path) -> None:
    config = MaskConfig(weights=str(tmp_path / "gone.safetensors"))
    head = bench.head(config).eval()
    queries, _ = bench.batch(config, [bench.clip(bench.media(1), training=False)])
    with pytest.raises(ConfigError, match=r"gone\.safetensors does not exist"):
        head(queries)
    head.load_state_dict(bench.head(MaskConfig(), seed=1).state_dict())
    assert head(queries)["masks"].shape == (1, 1, 16, 16)


def test_weights_from_a_file(bench: Any, tmp_path: Path) -> None:
    source = bench.head(MaskConfig(), seed=1)
    save_weights(source.sam, tmp_path / "sam.safetensors")
    head = bench.head(MaskConfig(weights=str(tmp_path / "sam.safetensors")), seed=2)
    for name, value in source.sam.state_dict().items():
        assert torch.equal(head.sam.state_dict()[name], value)
    other = {name: value for name, value in source.state_dict().items() if name.startswith("adapter")}
    torch.save(other, tmp_path / "adapter.pt")
    with pytest.raises(CheckpointError, match="not the weights of this SAM2: missing"):
        bench.head(MaskConfig(weights=str(tmp_path / "adapter.pt")))


def test_a_few_steps_teach_the_adapter(bench: Any) -> None:
    config = MaskConfig(trains="decoder")
    head = bench.head(config).train()
    queries, targets = bench.batch(config, [bench.clip(bench.media(2), moving(bench, 2))])
    optimizer = torch.optim.Adam([parameter for parameter in head.parameters() if parameter.requires_grad], lr=2e-3)
    values = []
    for _ in range(8):
        loss = weighted(head, head.loss(head(queries, targets), targets))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(float(loss.detach()))
    assert values[-1] < 0.9 * values[0]
