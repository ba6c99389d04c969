"""Flow, sampling, scores and the reader of the `frame` head."""

import base64
import json
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from tpo_head_frame.head import FrameCodec, FrameConfig, FrameHead
from tpo_head_frame.metric import FrameMetric
from tpo_head_frame.reader import SIDE, read

from tpo_core.testing import ArrayMedia
from tpo_core.types import BackboneView, Queries, Target, Widths


def head(**options: int) -> FrameHead:
    torch.manual_seed(0)
    return FrameHead(FrameConfig(slots=1, side=2, width=16, **options), Widths(hidden=4, features=4, words=4))


def queries(states_NSD: torch.Tensor) -> Queries:
    return Queries(states_NSD, torch.zeros(len(states_NSD), dtype=torch.long), states_NSD, torch.ones(len(states_NSD), 1, dtype=torch.bool))


def grey(value: int) -> str:
    return base64.b64encode(bytes([value] * 12)).decode()


def test_a_perfect_guess_has_the_straight_velocity_and_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the network guesses the picture itself, the velocity is picture - noise at every time, and integration ends in the picture."""
    model, picture_NC = head(sampling_steps=5).eval(), torch.linspace(-1, 1, 12)[None]
    monkeypatch.setattr(model.picture, "forward", lambda mixed: picture_NC)
    output = model(queries(torch.randn(1, 1, 4)), {"rgb": ((picture_NC + 1) * 127.5).round().byte()})
    torch.testing.assert_close(output["velocity"], output["straight"], atol=1e-2, rtol=0)
    torch.testing.assert_close(output["frame"], picture_NC.expand(1, 8, 12))


def test_answers_depend_on_the_seed_of_the_noise_alone() -> None:
    states = torch.randn(2, 1, 4)
    first, again = head(noise_seed=1).eval(), head(noise_seed=1).eval()
    other = head(noise_seed=2).eval()
    torch.manual_seed(5)
    torch.testing.assert_close(first(queries(states))["frame"], again(queries(states))["frame"], atol=0, rtol=0)
    assert not torch.allclose(first(queries(states))["frame"], other(queries(states))["frame"])


def test_it_learns_two_pictures_of_two_states() -> None:
    model = head()
    states, targets = torch.eye(4)[:2, None], {"rgb": torch.tensor([[20] * 12, [230] * 6 + [128] * 6], dtype=torch.uint8)}
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(300):
        optimizer.zero_grad()
        model.loss(model(queries(states), targets), targets)["flow"].sum().backward()
        optimizer.step()
    with torch.no_grad():
        frame_NRC = model.eval()(queries(states))["frame"]
    assert float((frame_NRC - (targets["rgb"].float() / 127.5 - 1)[:, None]).abs().max()) < 0.1


def test_a_frame_of_another_size_is_refused() -> None:
    codec = FrameCodec(FrameConfig(side=4), BackboneView("toy", 4, 1, 4, 4))
    clip = ArrayMedia(np.zeros((2, 4, 4, 3), np.uint8))
    with pytest.raises(ValueError, match="rgb holds 12 bytes, expected 48: 4 x 4 pixels"):
        codec.check(Target.model_validate({"id": "t", "rgb": grey(1)}), clip)


def test_scores_by_hand() -> None:
    metric = FrameMetric()
    for answer, truth in ((0, 0), (200, 100), (None, 200)):
        answers = [] if answer is None else [{"rgb": grey(answer), "mean": grey(answer), "side": 2}]
        metric.update(answers, Target.model_validate({"id": "t", "rgb": grey(truth)}))
    scores = metric.compute()
    assert scores["nearest"] == pytest.approx(1 / 3)
    exact, off = 10 * np.log10(12 * 255**2), -20 * np.log10(100 / 255)
    assert scores["psnr"] == pytest.approx((exact + off + 0) / 3)
    assert metric.chance()["nearest"] == pytest.approx(1 / 3)


def test_the_reader_cuts_before_what_is_asked(tmp_path: Path) -> None:
    (tmp_path / "media").mkdir()
    with av.open(str(tmp_path / "media" / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264rgb", rate=4, options={"crf": "0"})
        stream.width, stream.height, stream.pix_fmt = 32, 16, "rgb24"
        for value in (10, 20, 30, 240):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((16, 32, 3), value, np.uint8), format="rgb24")))
        container.mux(stream.encode())
    scene = {"id": "s", "kind": "track", "media": "media/a.mp4", "frames": 4, "fps": 4.0}
    path = tmp_path / "scenes-train.jsonl"
    path.write_text(json.dumps(scene) + "\n" + json.dumps(scene | {"kind": "image"}) + "\n")
    ((_, row),) = read(path)
    assert row["messages"][0]["content"][0]["end"] == pytest.approx(0.625)
    assert base64.b64decode(row["targets"][0]["rgb"]) == bytes([240] * 3 * SIDE**2)
