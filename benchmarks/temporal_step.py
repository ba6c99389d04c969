"""One training step of CG-DETR: this package's network against the published code, in one run.

    TPO_CGDETR_SOURCE=/path/to/CGDETR python benchmarks/temporal_step.py

The checkout (github.com/wjun0830/CGDETR) is only read. First both networks get the same weights and must give the same losses; then steps
(forward, losses, backward, with dropout) alternate, and the median of the ratios counts. Times say nothing apart from their ratio.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from tpo_core.types import Tensors
from tpo_heads.temporal.config import TemporalConfig
from tpo_heads.temporal.head import choose_wrong_questions
from tpo_heads.temporal.losses import alignment_losses, ranking_losses, window_losses
from tpo_heads.temporal.network import CGDETR
from tpo_heads.temporal.published import convert

PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "_scaled_dot_product")
SAME = 1e-4


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--clips", type=int, default=75)
    parser.add_argument("--words", type=int, default=32)
    parser.add_argument("--clip-width", type=int, default=2818)
    parser.add_argument("--text-width", type=int, default=512)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="compile this package's network")
    parser.add_argument("--memory-of", choices=("ours", "theirs"), help="(internal) run two steps and print the peak memory in MB")
    return parser.parse_args()


def make_batch(options: argparse.Namespace) -> Tensors:
    """Return random features and targets of full length: two windows a query, every clip of the first one rated."""
    generator = torch.Generator().manual_seed(0)
    rows, clips = options.batch, options.clips
    start = torch.randint(0, clips - 10, (rows, 2), generator=generator)
    length = torch.randint(3, 10, (rows, 2), generator=generator)
    windows = torch.stack(((start + length / 2) / clips, length / clips), -1)
    order = torch.arange(clips)
    inside = ((order >= start[..., None]) & (order < (start + length)[..., None])).any(1)
    level = inside * torch.randint(1, 13, (rows, clips), generator=generator)
    draw = torch.rand(rows, clips, generator=generator)
    batch = {
        "video": torch.randn(rows, clips, options.clip_width, generator=generator),
        "text": torch.randn(rows, options.words, options.text_width, generator=generator),
        "video_mask": torch.ones(rows, clips),
        "text_mask": torch.ones(rows, options.words),
        "windows": windows,
        "level": level.float(),
        "high": (draw * inside).topk(2).indices,
        "low": (draw * ~inside).topk(2).indices,
    }
    return {name: tensor.to(options.device) for name, tensor in batch.items()}


class Theirs:
    """The published network and criterion."""

    def __init__(self, options: argparse.Namespace) -> None:
        source = os.environ.get("TPO_CGDETR_SOURCE", "")
        if not (Path(source) / "cg_detr" / "model.py").is_file():
            sys.exit("TPO_CGDETR_SOURCE must name a checkout of github.com/wjun0830/CGDETR (a folder that holds cg_detr/model.py)")
        sys.path.insert(0, source)
        if options.device == "cpu":
            # The published code moves some tensors to the GPU by name.
            torch.Tensor.cuda = lambda self, *args, **kwargs: self  # type: ignore[method-assign]
        from cg_detr.model import build_model  # type: ignore[import-not-found]

        sizes = {"t_feat_dim": options.text_width, "v_feat_dim": options.clip_width, "hidden_dim": options.hidden}
        sizes |= {"max_q_l": options.words, "max_v_l": options.clips, "device": options.device}
        torch.manual_seed(0)
        self.network, self.criterion = build_model(SimpleNamespace(**PUBLISHED, **sizes))
        self.network.to(options.device)

    def step(self, batch: Tensors) -> tuple[Tensor, dict[str, float]]:
        rows = len(batch["video"])
        targets = {
            "span_labels": [{"spans": windows} for windows in batch["windows"]],
            "saliency_pos_labels": batch["high"],
            "saliency_neg_labels": batch["low"],
            "saliency_all_labels": batch["level"],
            "relevant_clips": batch["level"],
        }
        names = [f"video{i}_0.0_150.0" for i in range(rows)]
        inputs = (batch["text"], batch["text_mask"], batch["video"], batch["video_mask"], names, list(range(rows)))
        losses = self.criterion(self.network(*inputs, targets=targets), targets)
        weights = self.criterion.weight_dict
        total = sum(losses[name] * weights[name] for name in losses if name in weights)
        return total, {"total": float(total.detach()), **{name: float(torch.as_tensor(loss).detach()) for name, loss in losses.items()}}


class Ours:
    """This package's network and losses."""

    def __init__(self, options: argparse.Namespace) -> None:
        torch.manual_seed(0)
        self.config = TemporalConfig(hidden=options.hidden, sentence_heads=8, release_faults=True)
        self.network = CGDETR(self.config, clip_width=options.clip_width, text_width=options.text_width).to(options.device)
        self.call: Callable[..., Tensors] = torch.compile(self.network) if options.compile else self.network

    def step(self, batch: Tensors) -> tuple[Tensor, dict[str, float]]:
        output = self.forward(batch)
        total, means = self.loss(output, batch)
        return total, {"total": float(total.detach()), **means}

    def forward(self, batch: Tensors) -> Tensors:
        valid, text_valid = batch["video_mask"].bool(), batch["text_mask"].bool()
        ends = valid.cumsum(1) / valid.sum(1, keepdim=True)
        wrong_N, has_N = choose_wrong_questions(torch.arange(len(valid), device=valid.device), next_only=True)
        moment = batch["level"] > 0
        output = self.call(
            batch["video"], valid, ends, batch["text"], text_valid, moment_NT=moment, negative_N=wrong_N, has_negative_N=has_N
        )
        dummies = text_valid.new_ones(len(valid), self.config.dummies)
        labels = {"windows_valid": torch.ones_like(batch["windows"][..., 0], dtype=torch.bool), "moment": moment, "valid": valid}
        labels |= {"pairs": torch.ones_like(batch["high"], dtype=torch.bool), "has_negative": has_N}
        labels |= {name: batch[name] for name in ("windows", "level", "high", "low")}
        return output | labels | {"text_valid": torch.cat((dummies, text_valid), 1)}

    def loss(self, output: Tensors, batch: Tensors) -> tuple[Tensor, dict[str, float]]:
        config, rows = self.config, len(batch["video"])
        spans = torch.cat((output["lower_spans"].transpose(0, 1), output["spans"][None]))
        logits = torch.cat((output["lower_logits"].transpose(0, 1), output["logits"][None]))
        parts = window_losses(spans, logits, output["windows"], output["windows_valid"], config)
        last = len(spans) - 1
        losses = {name if j == last else f"{name}_{j}": part[j] for name, part in parts.items() for j in range(len(spans))}
        losses |= ranking_losses(output, config) | alignment_losses(output, config)
        windows = output["windows_valid"].sum()
        counts = {name: windows if name.startswith(("span", "giou")) else rows for name in losses}
        means = {name: loss.sum() / counts[name] for name, loss in losses.items()}
        total = torch.stack([config.factors[name] * mean for name, mean in means.items()]).sum()
        return total, {name: float(mean.detach()) for name, mean in means.items()}


PUBLISHED: dict[str, Any] = {
    "dset_name": "hl",
    "a_feat_dir": None,
    "num_queries": 10,
    "input_dropout": 0.5,
    "aux_loss": True,
    "contrastive_align_loss": False,
    "contrastive_hdim": 64,
    "span_loss_type": "l1",
    "use_txt_pos": False,
    "n_input_proj": 2,
    "total_prompts": 10,
    "num_prompts": 1,
    "num_dummies": 45,
    "dim_feedforward": 1024,
    "dummy_layers": 2,
    "sent_layers": 1,
    "moment_layers": 1,
    "enc_layers": 3,
    "dec_layers": 3,
    "t2v_layers": 2,
    "dropout": 0.1,
    "nheads": 8,
    "pre_norm": False,
    "position_embedding": "sine",
    "set_cost_span": 10,
    "set_cost_giou": 1,
    "set_cost_class": 4,
    "span_loss_coef": 10,
    "giou_loss_coef": 1,
    "label_loss_coef": 4,
    "lw_saliency": 4.0,
    "lw_wattn": 1.0,
    "lw_ms_align": 1.0,
    "lw_distill": 1.0,
    "eos_coef": 0.1,
    "temperature": 0.07,
    "saliency_margin": 0.2,
}


def show_equal_losses(theirs: Theirs, ours: Ours, batch: Tensors) -> None:
    """Copy the published weights, switch dropout off, and print both totals and terms; stop if they differ."""
    ours.network.load_state_dict(convert(theirs.network.state_dict(), ours.config))
    theirs.network.eval(), ours.network.eval()
    with torch.no_grad():
        (_, left), (_, right) = theirs.step(batch), ours.step(batch)
    saliency = sum(value for name, value in right.items() if name.startswith(("saliency", "attention")))
    pairs = {
        "total": (left["total"], right["total"]),
        "span": (left["loss_span"], right["span"]),
        "giou": (left["loss_giou"], right["giou"]),
        "label": (left["loss_label"], right["label"]),
        "saliency": (left["loss_saliency"], saliency),
        "alignment": (left["loss_ms_align"], sum(right[f"align_{part}"] for part in ("sentence", "dummy", "clips"))),
        "distill": (left["loss_distill"], right["distill"]),
        "orthogonal": (left["loss_orthogonal_dummy"], right["orthogonal"]),
    }
    print(f"{'loss':12}{'published':>14}{'ours':>14}")
    for name, (published, own) in pairs.items():
        print(f"{name:12}{published:14.6f}{own:14.6f}")
        if abs(published - own) > SAME * max(abs(published), 1e-3):
            sys.exit(f"{name} differs: equal work comes before timing")
    theirs.network.train(), ours.network.train()


def time_step(side: Theirs | Ours, batch: Tensors, device: str) -> tuple[float, float]:
    """Return wall and CPU seconds of one step."""
    side.network.zero_grad(set_to_none=True)
    _synchronise(device)
    wall, cpu = time.perf_counter(), time.process_time()
    total, _ = side.step(batch)
    total.backward()
    _synchronise(device)
    return time.perf_counter() - wall, time.process_time() - cpu


def _synchronise(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def compare(theirs: Theirs, ours: Ours, batch: Tensors, options: argparse.Namespace) -> None:
    """Alternate steps and print the median of the ratios."""
    for side in (theirs, ours):
        time_step(side, batch, options.device)
    rows = [(*time_step(theirs, batch, options.device), *time_step(ours, batch, options.device)) for _ in range(options.pairs)]
    for name, index in (("wall", 0), ("CPU", 1)):
        ratios = sorted(row[index + 2] / row[index] for row in rows)
        published, own = (statistics.median(row[index + shift] for row in rows) for shift in (0, 2))
        print(
            f"step, {name:4}  published {published:.3f} s  ours {own:.3f} s  "
            f"ratio: median {statistics.median(ratios):.3f}, from {ratios[0]:.3f} to {ratios[-1]:.3f} ({len(ratios)} pairs)"
        )


def show_parts(ours: Ours, batch: Tensors, device: str) -> None:
    """Print how our step divides into forward, losses and backward (median of five)."""
    rows = []
    for _ in range(5):
        ours.network.zero_grad(set_to_none=True)
        marks = [time.process_time()]
        output = ours.forward(batch)
        _synchronise(device)
        marks.append(time.process_time())
        total, _ = ours.loss(output, batch)
        _synchronise(device)
        marks.append(time.process_time())
        total.backward()
        _synchronise(device)
        marks.append(time.process_time())
        rows.append([after - before for before, after in pairwise(marks)])
    medians = [statistics.median(column) for column in zip(*rows, strict=True)]
    shares = ", ".join(
        f"{name} {100 * part / sum(medians):.1f} %" for name, part in zip(("forward", "losses", "backward"), medians, strict=True)
    )
    print(f"our step by part (CPU): {shares}")


def show_products(name: str, side: Theirs | Ours, batch: Tensors, device: str) -> None:
    """Print the share of matrix products in a step's operator time."""
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU] if device == "cpu" else [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    with profile(activities=activities) as profiler:
        total, _ = side.step(batch)
        total.backward()
    field = "self_cpu_time_total" if device == "cpu" else "self_device_time_total"
    times = {event.key: float(getattr(event, field)) for event in profiler.key_averages()}
    whole = sum(times.values())
    products = sum(value for key, value in times.items() if key.removeprefix("aten::").startswith(PRODUCTS))
    top = sorted(((value, key) for key, value in times.items()), reverse=True)[:6]
    heads = ", ".join(f"{key.removeprefix('aten::')} {100 * value / whole:.0f} %" for value, key in top)
    print(f"{name}: matrix products {100 * products / whole:.0f} % of {whole / 1e6:.2f} s operator time; most: {heads}")


def show_memory(options: argparse.Namespace) -> None:
    """Print peak memory of fresh processes as clips and batch grow."""
    print("memory that two steps add to a fresh process at its peak, MB (on a GPU: device memory)")
    sizes = [(8, 75), (16, 75), (32, 75), (8, 150), (8, 300)]
    for batch, clips in sizes:
        found = {}
        for side in ("theirs", "ours"):
            command = [
                sys.executable,
                __file__,
                "--memory-of",
                side,
                "--batch",
                str(batch),
                "--clips",
                str(clips),
                "--device",
                options.device,
            ]
            found[side] = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1]
        print(f"  batch {batch:3}, {clips:4} clips: published {found['theirs']:>6}, ours {found['ours']:>6}")


def peak_memory(options: argparse.Namespace) -> None:
    side: Theirs | Ours = Ours(options) if options.memory_of == "ours" else Theirs(options)
    batch = make_batch(options)
    before = _peak_rss_mb()
    for _ in range(2):
        time_step(side, batch, options.device)
    if options.device == "cpu":
        print(f"{_peak_rss_mb() - before:.0f}")
    else:
        print(f"{torch.cuda.max_memory_allocated() / 2**20:.0f}")


def _peak_rss_mb() -> float:
    """Return this process's own peak; `ru_maxrss` would begin with that of the process which started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        peak_memory(options)
        return
    batch = make_batch(options)
    theirs, ours = Theirs(options), Ours(options)
    counts = [sum(p.numel() for p in side.network.parameters()) for side in (theirs, ours)]
    print(
        f"torch {torch.__version__}, {options.device}, {options.threads} threads; batch {options.batch}, {options.clips} clips, "
        f"{options.words} words, hidden {options.hidden}; parameters: published {counts[0] / 1e6:.1f} M, ours {counts[1] / 1e6:.1f} M"
    )
    show_equal_losses(theirs, ours, batch)
    compare(theirs, ours, batch, options)
    show_parts(ours, batch, options.device)
    show_products("published", theirs, batch, options.device)
    show_products("ours", ours, batch, options.device)
    show_memory(options)


if __name__ == "__main__":
    main()
