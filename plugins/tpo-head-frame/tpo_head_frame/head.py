"""Conditional flow matching (Lipman et al. 2023) of a small picture, from the task embedding. N queries, C numbers of a picture, R draws.

The straight path x_t = (1 - t) noise + t picture; the network guesses the picture, so that the velocity is (guess - x_t) / (1 - t).
"""

import base64
import math
from collections.abc import Sequence

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from tpo_core import Codec, Head, HeadConfig
from tpo_core.types import Answer, ClipView, MediaInfo, Queries, Target, Tensors, Widths


class FrameConfig(HeadConfig):
    slots: int = Field(4, ge=1, le=64, description="task embeddings (slot tokens) per query")
    side: int = Field(8, ge=1, description="rows and columns of the picture")
    width: int = Field(256, ge=1, description="width of the network's layers")
    sampling_steps: int = Field(8, ge=1, description="Euler steps from noise to picture")
    draws: int = Field(8, ge=1, description="pictures drawn for an answer; the first is shown, their mean is what is expected")
    noise_seed: int = Field(0, ge=0, description="of the noises that every answer starts from")


class Fields(BaseModel):
    model_config = ConfigDict(extra="forbid")
    rgb: str = Field(description="the frame, side x side pixels, as base64 of its RGB bytes")


class FrameCodec(Codec[FrameConfig]):
    schema = Fields
    kinds = frozenset({"video"})
    needs_features = False
    terms = ("flow",)

    def check(self, target: Target, media: MediaInfo) -> None:
        found, wanted = len(base64.b64decode(target["rgb"], validate=True)), 3 * self.config.side**2
        if found != wanted:
            raise ValueError(f"rgb holds {found} bytes, expected {wanted}: {self.config.side} x {self.config.side} pixels of 3 bytes")

    def encode(self, target: Target, clip: ClipView) -> list[Tensors]:
        return [{"rgb": torch.tensor(list(base64.b64decode(target["rgb"])), dtype=torch.uint8)}]

    def decode(self, output: Tensors, clip: ClipView) -> Answer:
        frame_RC = output["frame"].double().clamp(-1, 1)
        shown = {"rgb": frame_RC[0], "mean": frame_RC.mean(0)}
        pixels = {name: ((frame_C + 1) * 127.5).round().byte().tolist() for name, frame_C in shown.items()}
        return {"side": self.config.side, **{name: base64.b64encode(bytes(values)).decode() for name, values in pixels.items()}}

    def describe(self, answers: Sequence[Answer]) -> str:
        return "; ".join(f"a picture of {answer['side']} x {answer['side']} pixels" for answer in answers)


class FrameHead(Head[FrameConfig]):
    noise_RC: Tensor

    def __init__(self, config: FrameConfig, widths: Widths) -> None:
        super().__init__(config, widths)
        numbers, width = 3 * config.side**2, config.width
        self.state = nn.Linear(config.slots * widths.hidden, width)
        self.mixed = nn.Sequential(nn.Linear(numbers + 2 + width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.picture = nn.Linear(2 * width, numbers)
        self.register_buffer("noise_RC", torch.randn(config.draws, numbers, generator=torch.Generator().manual_seed(config.noise_seed)))

    def forward(self, queries: Queries, targets: Tensors | None = None) -> Tensors:
        """Return ``frame`` (N, R, C) in -1 to 1 by integration; with targets ``velocity`` and ``straight`` (N, C) at one time."""
        state_NW = nn.functional.silu(self.state(queries.states_NSD.flatten(1)))
        output: Tensors = {}
        if targets is not None:
            count, last = len(state_NW), 1 - 1 / self.config.sampling_steps
            time_N1 = torch.rand(count, 1, device=state_NW.device) if self.training else state_NW.new_full((count, 1), 0.5).float()
            fixed_NC = self.noise_RC[0].expand(count, -1)
            noise_NC = torch.randn_like(fixed_NC) if self.training else fixed_NC
            picture_NC, time_N1 = targets["rgb"].float() / 127.5 - 1, time_N1 * last
            output["velocity"] = self.velocity(noise_NC.lerp(picture_NC, time_N1), time_N1, state_NW)
            output["straight"] = picture_NC - noise_NC
        if targets is None or not self.training:
            count, draws = len(state_NW), self.config.draws
            drawn_NC = self.sample(state_NW.repeat_interleave(draws, 0), self.noise_RC.repeat(count, 1))
            output["frame"] = drawn_NC.reshape(count, draws, -1)
        return output

    def sample(self, state_NW: Tensor, noise_NC: Tensor) -> Tensor:
        """Integrate the velocity from noise to pictures (N, C)."""
        frame_NC, steps = noise_NC, self.config.sampling_steps
        for step in range(steps):
            frame_NC = frame_NC + self.velocity(frame_NC, frame_NC.new_full((len(frame_NC), 1), step / steps), state_NW) / steps
        return frame_NC

    def velocity(self, at_NC: Tensor, time_N1: Tensor, state_NW: Tensor) -> Tensor:
        clock_N2 = torch.cat([(math.pi * time_N1).cos(), time_N1], 1)
        mixed_NW = self.mixed(torch.cat([at_NC, clock_N2, state_NW.float()], 1).to(state_NW.dtype))
        guess_NC: Tensor = self.picture(torch.cat([mixed_NW, state_NW], 1))
        return (guess_NC.float() - at_NC) / (1 - time_N1)

    def loss(self, output: Tensors, targets: Tensors) -> Tensors:
        """Return the mean squared error of the velocity over a picture's numbers, (N,)."""
        return {"flow": (output["velocity"] - output["straight"]).square().mean(1)}

    def ideal(self, targets: Tensors) -> Tensors:
        return {"frame": (targets["rgb"].float() / 127.5 - 1).unsqueeze(1)}
