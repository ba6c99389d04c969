"""The default recipe: what ``tpo train --heads region,temporal,mask`` runs when nothing else is given.

`prepare` writes the data and lays the base model beside them; `default` gives the recipe over them as a plain mapping (see
`tpo_core.config.recipe`). Nothing heavy is imported before `prepare` runs.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from tpo_core.errors import ConfigError
from tpo_heads.playground.guests import check_guests, guest_sources

HEADS = ("region", "temporal", "mask")
SAM_FILE = "sam2.safetensors"
SOURCES = {"region": ("image",), "temporal": ("clip",), "mask": ("image", "track")}
"""Which kinds of scenes hold a head's records."""


def default(
    heads: Sequence[str],
    output: str | Path,
    *,
    samples: int = 3000,
    seed: int = 0,
    level: int = 1,
    base: str = "shipped",
    scale: float = 1.0,
) -> dict[str, Any]:
    """Return the default recipe as a plain mapping; its data and base model are written under ``<output>/playground``.

    Args:
        heads: heads to train: region, temporal, mask, and any whose package brings a reader of its own name (see `guests`).
        output: the run's folder.
        samples, seed, level, base: see `prepare`.
        scale: factor of all stages' steps.

    Raises:
        ConfigError: a head that the playground has no records for, or what `prepare` raises.
    """
    wanted = tuple(head for head in HEADS if head in heads)
    guests = tuple(head for head in heads if head not in HEADS)
    check_guests(guests, HEADS)
    if not heads:
        raise ConfigError(f"no head was named; give some of {', '.join(HEADS)}")
    root = Path(output) / "playground"
    made = prepare(root, samples=samples, seed=seed, level=level, heads=wanted or HEADS, base=base)
    kinds = list(dict.fromkeys(kind for head in wanted for kind in SOURCES[head]))
    files: dict[str, Path] = made["data"]
    tests = [name for name in files if name.startswith("test-") and (wanted or name.endswith("_qa"))]
    return {
        "seed": seed,
        "output": str(output),
        "model": {"path": str(made["base"]), "dtype": "float32", "frames": 12, "max_length": 1024, "start_bias": START_BIAS},
        "lora": {"r": 16, "alpha": 32.0},
        "heads": {name: _head(name, wanted, made["sam"]) for name in (*wanted, *guests)},
        "loss": {"assign": 1.0, "assign_every_answer": True},
        "data": {
            "train": [
                *({"name": kind, "path": str(files[f"train-{kind}"]), "weight": 1.0} for kind in kinds),
                *guest_sources(guests, root / "data", "train"),
            ],
            "test": [
                *({"name": TESTS.get(name, name.removeprefix("test-")), "path": str(files[name])} for name in tests),
                *guest_sources(guests, root / "data", "test"),
            ],
            "workers": 0,
        },
        "stages": _stages(wanted, guests, kinds, scale),
        "trainer": {"processes": 2},
    }


def _head(name: str, wanted: Sequence[str], sam: Path | None) -> dict[str, Any]:
    if name == "temporal":
        # Twelve steps of time, one event to find: small, no dropout, and of the losses those that bear on windows and highlights. (With
        # the published factor of the gIoU, some runs found the event and never its edges.)
        sizes = {"hidden": 64, "attention_heads": 4, "inner_width": 128, "moment_queries": 4, "dummies": 4}
        layers = {"dummy_layers": 1, "text_layers": 1, "encoder_layers": 1, "decoder_layers": 2}
        losses = {"background_weight": 0.5, "saliency_weight": 1.0, "align_weight": 0.0, "distill_weight": 0.0, "orthogonal_weight": 0.0}
        return {**sizes, **layers, "dropout": 0.0, "input_dropout": 0.0, **losses, "giou_weight": 4.0, "saliency_rank": 10.0}
    if name == "mask":
        start = {"init_from": "region"} if "region" in wanted else {}
        return {
            "sam": "tiny",
            "image_size": 64,
            "trains": "decoder",
            "anchor": "box",
            "aux_box": 5.0,
            "object": 2.0,
            "presence": True,
            "cache_mib": 64.0,
            **({"weights": str(sam)} if sam else {}),
            **start,
        }
    return {}


START_BIAS = -2.0
"""Added to start tokens' logits where the model answers: conversation is to stay conversation, even if more requests are answered in words
for it (docs/training.md has what it trades)."""
ORDER = ("region", "mask", "temporal")
"""Order of the heads' own stages."""
TESTS = {"test-assignment": "unseen"}
"""What the test sources are called, where it is not their file's name: phrasings that training never uses."""
SHARES = {
    "region": {"image": 0.9, "clip": 0.1},
    "mask": {"image": 0.55, "track": 0.35, "clip": 0.1},
    "temporal": {"clip": 1.0},
    "joint": {"track": 0.2, "image": 0.5, "clip": 0.3},
}
"""Sources of each stage. The mask head learns on pictures first of all, where the region head's tokens know their way."""
LENGTHS = {"assign": (60, 8), "region": (190, 10), "mask": (125, 8), "temporal": (400, 8), "joint": (125, 10), "guest": (200, 8)}
"""Optimiser steps and batch size of each stage."""
RATES = {
    "assign": (7e-3, 4e-3, 2e-3),
    "region": (7e-3, 4e-3, 2e-3),
    "head": (2e-3, 4e-3, 2e-3),
    "temporal": (None, None, 2e-3),
    "joint": (1e-3, 2e-3, 5e-4),
}
"""Learning rates of adapter, tokens and heads. At 2e-3 the region head may stay on its first plateau. The temporal head finds what is named
by itself: in its own stage nothing else learns, which costs no pass back through the language model. In the joint stage rates are low: at
half as much again, with Muon at 4e-3, the temporal head lost .03 of its R1@0.5 in two of four runs."""
KEEP = 512.0
"""MiB of states kept on disk where only a head trains: each clip passes through the language model once, not in every epoch."""
MUON = {"mask": {"mask": 5e-3}, "temporal": {"temporal": 8e-3}, "joint": {"mask": 2e-3, "temporal": 1e-3}}
"""Rates of Muon on heads' matrices, by stage: the temporal head learns in half the steps that AdamW needs."""
WEIGHTS = {
    "assign": {"region": 0.5},
    "region": {"region": 0.5},
    "mask": {"region": 0.15, "mask": 0.5},
    "joint": {"region": 0.2, "temporal": 0.1, "mask": 0.2},
}
"""Where a head's loss counts less than 1. Optimizers undo the scale of a head's own gradient; what shrinks is its pull on the language
model, beside words and assignment. In the joint stage, where a batch holds few samples of each head, their noise would fill the clipped
gradient: with .7, .3 and .7 all three heads were worse, and so was assignment (docs/training.md)."""


def _stages(wanted: Sequence[str], guests: Sequence[str], kinds: Sequence[str], scale: float) -> list[dict[str, Any]]:
    """Return the paper's three stages: assignment, each head with vision and connector frozen, all together with conversation.

    Heads begin in the order region, mask, temporal, each in its own stage: until then its loss counts nothing, and only its start token is
    learnt. (The region head begins at once.) The mask head's tokens start as the region head's, which know where things are by then.
    """
    wanted = tuple(head for head in ORDER if head in wanted)
    everyone = (*wanted, *guests)
    order = {"assign": 0} | {head: place for place, head in enumerate(wanted)}

    def stage(name: str, sources: dict[str, float], *, length: str = "") -> dict[str, Any]:
        steps, size = LENGTHS[length or name]
        lora, tokens, head_rate = RATES.get(length or name, RATES["head"])
        late = [head for place, head in enumerate(wanted) if place > order.get(name, len(wanted))]
        alone = lora is None
        learning = [head for head in everyone if head not in late and (not alone or head == name)]
        heads = {f"heads.{head}": head_rate for head in learning} if late or alone else {"heads": head_rate}
        weights = {head: weight for head, weight in WEIGHTS.get(name, {}).items() if head in wanted} | dict.fromkeys(late, 0.0)
        muon = {f"heads.{head}": rate for head, rate in MUON.get(name, {}).items() if head in wanted}
        return {
            "name": name,
            "steps": max(1, round(steps * scale)),
            "batch_size": size,
            "heads": list(everyone),
            "sources": {source: share for source, share in sources.items() if source in kinds or source in guests},
            **({"weights": weights} if weights else {}),
            "train": {group: rate for group, rate in {"lora": lora, "tokens": tokens, **heads}.items() if rate is not None},
            **({"muon": muon} if muon else {}),
            **({"keep_states": KEEP} if alone else {}),
            "warmup": 0.05,
            "min_lr_ratio": 0.05,
            "betas": [0.9, 0.98],
        }

    stages = [stage("assign", dict.fromkeys((*kinds, *guests), 1.0))]
    stages += [stage(head, SHARES[head]) for head in wanted]
    stages += [stage(guest, {guest: 1.0}, length="guest") for guest in guests]
    return [*stages, stage("joint", SHARES["joint"] | dict.fromkeys(guests, 0.3))]


def prepare(
    folder: str | Path,
    *,
    samples: int = 3000,
    seed: int = 0,
    level: int = 1,
    heads: Sequence[str] = HEADS,
    base: str = "shipped",
) -> dict[str, Any]:
    """Write a playground and its base model under a folder; what is there already is kept.

    Args:
        folder: gets ``data/`` and ``base/``.
        samples, seed, level, heads: see `tpo_heads.playground.writer.write_playground`.
        base: ``shipped`` (taught, part of this package), ``scratch`` (random weights), or a folder.

    Returns:
        ``data``: annotation files by name; ``base``: the model's folder; ``sam``: SAM2's weights, or None.

    Raises:
        ConfigError: an argument is out of range, or `base` is no folder.
    """
    from tpo_heads.playground.writer import write_playground

    root = Path(folder)
    files = write_playground(root / "data", samples=samples, seed=seed, level=level, heads=heads)
    model = lay_base(root / "base", base=base, seed=seed)
    sam = model / SAM_FILE
    return {"data": files, "base": model, "sam": sam if sam.is_file() else None}


def lay_base(folder: Path, *, base: str = "shipped", seed: int = 0) -> Path:
    """Return a base model's folder: the shipped one unpacked to single precision, a random one, or the folder that `base` names.

    Raises:
        ConfigError: `base` is neither ``shipped``, ``scratch`` nor a folder with a model.
    """
    if base not in ("shipped", "scratch"):
        given = Path(base)
        if not (given / "config.json").is_file():
            raise ConfigError(f"base {base!r} is no folder of a model; give shipped, scratch, or a folder with config.json")
        return given
    if (folder / "config.json").is_file():
        return folder
    if base == "scratch":
        from tpo_heads.playground.base import build_base

        return build_base(folder, seed=seed)
    return unpack_shipped(folder)


def unpack_shipped(folder: Path) -> Path:
    """Write the base model that this package ships to a folder, in single precision, and return the folder."""
    from safetensors.torch import load_file, save_file

    folder.mkdir(parents=True, exist_ok=True)
    with resources.as_file(resources.files("tpo_heads.playground") / "assets" / "base") as shipped:
        for path in sorted(shipped.iterdir()):
            if path.suffix == ".safetensors":
                tensors = {name: tensor.float() for name, tensor in load_file(path).items()}
                save_file(tensors, folder / path.name, metadata={"format": "pt"})
            elif path.name != "config.json":
                shutil.copyfile(path, folder / path.name)
        text = (shipped / "config.json").read_text("utf-8").replace('"float16"', '"float32"')
    (folder / "config.json").write_text(text, "utf-8")
    return folder
