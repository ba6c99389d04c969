"""Teach the base model: first tower and connector, into the language model's embedding table, then everything on captions and questions.

Plain loops over stock classes. Every batch follows from (seed, step), so that an interrupted course goes on where its last checkpoint lies.

Legend: B scenes, L token positions, F frames, P tokens of a frame, D width.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tpo_core.errors import CheckpointError
from tpo_heads.playground.curriculum import TOKENS, Cells, Lesson, base_scene, make_cells, make_lesson, stack_rows, write_row
from tpo_heads.playground.scenes import Kind
from tpo_heads.playground.talk import OFFERED, TAUGHT

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen3VLForConditionalGeneration

Report = Callable[[str, int, dict[str, float]], None]
"""Called as (phase, step, values) now and then."""


Pattern = tuple[tuple[Kind, int], ...]
"""Kinds of scenes in turn, with the size of their batches."""


@dataclass(frozen=True)
class Course:
    """How long and how fast.

    Attributes:
        mixture: in the first `first` of the steps; pictures teach the look-up from words to objects. mixture_late: afterwards.
        chained: every n-th round of the pattern is chats, where turns see the turns before them; else every turn is a first one.
        harder: every n-th round is of level 2, so that its colours and shapes are known too.
    """

    align_steps: int = 1200
    align_rate: float = 2e-3
    align_batch: int = 32
    steps: int = 3250
    rate: float = 1e-3
    warmup: int = 50
    decay: float = 500 / 3250
    chained: int = 4
    harder: int = 5
    first: float = 1000 / 3250
    mixture: Pattern = (("image", 16), ("image", 16), ("track", 10), ("image", 16), ("clip", 6))
    mixture_late: Pattern = (("image", 16), ("clip", 6), ("image", 16), ("track", 10))

    def batch(self, step: int) -> tuple[Kind, int, bool, int]:
        """Return (kind, size, whether chained, level) of a step's batch."""
        pattern = self.mixture if step < self.first * self.steps else self.mixture_late
        kind, size = pattern[step % len(pattern)]
        turn = step // len(pattern)
        return kind, size, turn % self.chained == self.chained - 1, 2 if turn % self.harder == self.harder - 1 else 1


def grids(frames: int) -> Tensor:
    """Return the grid of `frames` frames of 64x64 as the tower wants it, one row per frame."""
    return torch.tensor([[1, 8, 8]]).expand(frames, 3)


def see(model: Qwen3VLForConditionalGeneration, pixels: Tensor) -> Tensor:
    """Return the vision tokens of frames, (F * P, D)."""
    frames = pixels.shape[0] // (4 * TOKENS)
    tokens: Tensor = model.model.visual(pixels, grid_thw=grids(frames)).pooler_output
    return tokens


def read(model: Qwen3VLForConditionalGeneration, lesson: Lesson) -> Tensor:
    """Return the last hidden states (B, L, D) after the final norm."""
    embeds_BLD = model.get_input_embeddings()(lesson.ids_BL)
    embeds_BLD = embeds_BLD.masked_scatter(lesson.seen_BL[..., None], see(model, lesson.pixels_FP).to(embeds_BLD.dtype))
    states: Tensor = model.model.language_model(
        inputs_embeds=embeds_BLD, position_ids=lesson.place_3BL, attention_mask=lesson.allowed_B1LL, use_cache=False
    ).last_hidden_state
    return states


def words_loss(model: Qwen3VLForConditionalGeneration, lesson: Lesson) -> Tensor:
    """Return the mean loss over the answers' tokens."""
    states_BLD = read(model, lesson)[:, :-1]
    labels_BL = lesson.labels_BL[:, 1:]
    wanted = labels_BL != -100
    return functional.cross_entropy(model.lm_head(states_BLD[wanted]), labels_BL[wanted])


class Aligner(nn.Module):
    """Loss that pulls each vision token to the sum of the embeddings of the words that describe what it shows.

    The background is pulled to the picture's placeholder. A linear probe for the thing's place, thrown away afterwards, keeps what the
    words are too coarse to say.
    """

    table: Tensor

    def __init__(self, table_VD: Tensor, placeholder: int, *, seed: int) -> None:
        super().__init__()
        self.register_buffer("table", table_VD.detach().clone(), persistent=False)
        self.placeholder = placeholder
        self.probe = nn.Linear(table_VD.shape[1], 4)
        with torch.no_grad():
            self.probe.weight.copy_(torch.randn(self.probe.weight.shape, generator=torch.Generator().manual_seed(seed)) * 0.05)
            self.probe.bias.zero_()

    def forward(self, tokens: Tensor, cells: Cells) -> tuple[Tensor, dict[str, float]]:
        """Return the loss and how often (0-1) each word group of an object's cell is right."""
        owner = cells.owner_FP.reshape(-1)
        shown = owner >= 0
        words, seen = cells.words[owner[shown]], tokens[shown]
        filled = (words >= 0)[..., None]
        aim = (self.table[words.clamp(min=0)] * filled).sum(1) / filled.sum(1).sqrt()
        spread = aim.var()
        loss = (seen - aim).square().mean() / spread + 0.25 * (tokens[~shown] - self.table[self.placeholder]).square().mean() / spread
        scores: dict[str, float] = {}
        known = torch.unique(words[words >= 0])
        logits = seen @ self.table[known].T / 4
        for group, name in enumerate(("size", "colour", "shape", "row")):
            label = torch.searchsorted(known, words[:, group].contiguous())
            rivals = torch.isin(torch.arange(len(known)), label)
            logits_group = logits.masked_fill(~rivals, -math.inf)
            loss = loss + 0.5 * functional.cross_entropy(logits_group, label)
            scores[name] = (logits_group.argmax(-1) == label).float().mean().item()
        loss = loss + 5 * (self.probe(seen).sigmoid() - cells.boxes[owner[shown]]).abs().mean()
        return loss, scores


def align(model: Qwen3VLForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, *, seed: int, course: Course, report: Report) -> None:
    """Train tower and connector alone, in place."""
    aligner = Aligner(model.get_input_embeddings().weight, tokenizer.convert_tokens_to_ids("<|image_pad|>"), seed=seed)
    weights = [*model.model.visual.parameters(), *aligner.parameters()]
    optimiser = torch.optim.AdamW(weights, lr=course.align_rate, betas=(0.9, 0.98), weight_decay=0.01)
    mean: dict[str, float] = {}
    for step in range(course.align_steps):
        _set_rate(optimiser, course.align_rate * _ramp(step, course.align_steps, warmup=30, decay=1.0))
        level = 2 if step % course.harder == course.harder - 1 else 1
        cells = make_cells(tokenizer, seed=seed, first=step * course.align_batch, size=course.align_batch, level=level)
        loss, scores = aligner(see(model, cells.pixels), cells)
        _step(optimiser, weights, loss)
        for key, value in {"loss": loss.item(), **scores}.items():
            mean[key] = 0.95 * mean.get(key, value) + 0.05 * value
        if (step + 1) % 50 == 0 or step + 1 == course.align_steps:
            report("align", step + 1, dict(mean))


def teach(
    model: Qwen3VLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    *,
    seed: int,
    course: Course,
    report: Report,
    folder: Path | None = None,
    every: int = 250,
) -> None:
    """Train the whole model on captions and questions, in place; with a folder, keep a checkpoint there and go on from it."""
    names, weights = zip(*model.named_parameters())
    decayed = [w for w in weights if w.ndim >= 2]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": [w for w in weights if w.ndim < 2], "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=course.rate, betas=(0.9, 0.98))
    begin = _resume(folder, model, optimiser, dict(zip(names, weights))) if folder else 0
    used = _scenes_before(course, begin)
    mean: dict[str, float] = {}
    for step in range(begin, course.steps):
        kind, size, chained, level = course.batch(step)
        lesson = make_lesson(tokenizer, seed=seed, kind=kind, first=used[kind], size=size, chained=chained, level=level)
        used[kind] += size
        _set_rate(optimiser, course.rate * _ramp(step, course.steps, warmup=course.warmup, decay=course.decay))
        loss = words_loss(model, lesson)
        _step(optimiser, weights, loss)
        key = f"{kind}{'_chat' if chained else ''}"
        mean[key] = 0.95 * mean.get(key, loss.item()) + 0.05 * loss.item()
        if (step + 1) % every == 0 or step + 1 == course.steps:
            report("teach", step + 1, dict(mean))
            if folder:
                _keep(folder, model, optimiser, dict(zip(names, weights)), step + 1)


def examine(
    model: Qwen3VLForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, *, seed: int, scenes: int = 128, level: int = 1
) -> dict[str, float]:
    """Return the share of exactly right answers on held-out scenes (split ``val``) by kind of question, first turns only.

    ``caption_image`` and the like give the share of right tokens instead. Answers are read off one teacher-forced pass: an answer counts
    when each of its tokens is the likeliest one after the right ones before it.
    """
    hits: dict[str, list[float]] = {}
    with torch.no_grad():
        for kind, first, size in _exam_batches(scenes):
            rows, asked, frames = [], [], []
            for index in range(first, first + size):
                scene, picture, speaker = base_scene(seed, kind, index, split="val", level=level)
                asks = [speaker.chat(name) for name in dict.fromkeys((*OFFERED[kind], *TAUGHT[kind]))] + [speaker.caption()]
                known = [ask for ask in asks if ask is not None]
                rows.append(write_row(tokenizer, scene, known, chained=False))
                asked.append(known)
                frames.append(torch.from_numpy(picture.frames_THW3))
            lesson = stack_rows(rows, torch.cat(frames).numpy(), tokenizer.pad_token_id)
            guess_BL = model.lm_head(read(model, lesson)).argmax(-1)
            for b, row in enumerate(rows):
                labels, turns = lesson.labels_BL[b, 1 : len(row.ids)], torch.tensor(row.turn[1:])
                right = guess_BL[b, : len(row.ids) - 1] == labels
                for number, ask in enumerate(asked[b], 1):
                    part = right[(turns == number) & (labels != -100)].float()
                    name = ask.template if ask.task == "caption" else f"{kind}_{ask.template}"
                    hits.setdefault(name, []).append(part.mean().item() if ask.task == "caption" else float(part.all()))
    return {name: sum(values) / len(values) for name, values in sorted(hits.items())}


def _exam_batches(scenes: int) -> Iterator[tuple[Kind, int, int]]:
    kinds: tuple[tuple[Kind, int], ...] = (("image", 16), ("clip", 8), ("track", 16))
    for kind, size in kinds:
        for first in range(0, scenes, size):
            yield kind, first, min(size, scenes - first)


def _scenes_before(course: Course, step: int) -> dict[Kind, int]:
    used: dict[Kind, int] = {"image": 0, "clip": 0, "track": 0}
    for done in range(step):
        kind, size, _, _ = course.batch(done)
        used[kind] += size
    return used


def _ramp(step: int, steps: int, *, warmup: int, decay: float) -> float:
    """Return the factor of the learning rate: linear warm-up, constant, then a cosine to 5 % over the last `decay` of the steps."""
    start = steps * (1 - decay)
    fall = 1.0 if step < start else 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step - start) / max(1.0, steps - start)))
    return min(1.0, (step + 1) / warmup) * fall


def _set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = rate


def _step(optimiser: torch.optim.Optimizer, weights: Any, loss: Tensor) -> None:
    optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]  # torch's own stub
    torch.nn.utils.clip_grad_norm_(weights, 1.0)
    optimiser.step()


def _keep(folder: Path, model: nn.Module, optimiser: torch.optim.Optimizer, named: dict[str, Tensor], step: int) -> None:
    """Write weights and moments; the file with the step is replaced last, so that a crash leaves the old checkpoint or the new one."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"weight/{name}": weight.detach().contiguous() for name, weight in named.items()}
    for name, weight in named.items():
        state = optimiser.state[weight]
        tensors |= {f"{key}/{name}": state[key] for key in ("exp_avg", "exp_avg_sq", "step") if key in state}
    draft = folder / "course.tmp"
    save_file(tensors, draft, metadata={"step": str(step)})
    os.replace(draft, folder / "course.safetensors")
    (folder / "course.json").write_text(json.dumps({"step": step}) + "\n", "utf-8")


def _resume(folder: Path, model: nn.Module, optimiser: torch.optim.Optimizer, named: dict[str, Tensor]) -> int:
    from safetensors import safe_open

    path = folder / "course.safetensors"
    if not path.is_file():
        return 0
    with safe_open(path, framework="pt") as file:
        names = set(file.keys())
        if missing := sorted(name for name in named if f"weight/{name}" not in names):
            raise CheckpointError(f"{path} lacks {len(missing)} weights, the first is {missing[0]!r}; delete the folder to start anew")
        with torch.no_grad():
            for name, weight in named.items():
                weight.copy_(file.get_tensor(f"weight/{name}"))
                keys = [key for key in ("exp_avg", "exp_avg_sq", "step") if f"{key}/{name}" in names]
                optimiser.state[weight] = {key: file.get_tensor(f"{key}/{name}") for key in keys}
        return int(file.metadata()["step"])
