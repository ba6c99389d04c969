"""SAM2 by name: a closed table of builds, weights without unpickling. `sam2` is imported only when one is built.

sam2's configurations are read from the installed package; no path, override or ``_target_`` of a user, a checkpoint or data reaches Hydra.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tpo_core.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SamCard:
    """What is known of a build before it is built.

    Args:
        config: sam2's own configuration inside its package, or None for the small build of `tpo_heads.mask.tiny`.
        hub: (repository, file) of the published weights on the Hugging Face hub, or None.
        image_size: side of the square picture it was made for.
        prompt_dim: width of its prompt tokens.
    """

    config: str | None
    hub: tuple[str, str] | None
    image_size: int
    prompt_dim: int


SAM_CARDS: dict[str, SamCard] = {
    "tiny": SamCard(None, None, 64, 64),
    "sam2.1_hiera_t": SamCard("sam2.1/sam2.1_hiera_t.yaml", ("facebook/sam2.1-hiera-tiny", "sam2.1_hiera_tiny.pt"), 1024, 256),
    "sam2.1_hiera_s": SamCard("sam2.1/sam2.1_hiera_s.yaml", ("facebook/sam2.1-hiera-small", "sam2.1_hiera_small.pt"), 1024, 256),
    "sam2.1_hiera_b+": SamCard("sam2.1/sam2.1_hiera_b+.yaml", ("facebook/sam2.1-hiera-base-plus", "sam2.1_hiera_base_plus.pt"), 1024, 256),
    "sam2.1_hiera_l": SamCard("sam2.1/sam2.1_hiera_l.yaml", ("facebook/sam2.1-hiera-large", "sam2.1_hiera_large.pt"), 1024, 256),
}


def build_sam(name: str, *, image_size: int | None = None) -> SAM2Base:
    """Build a SAM2 with random weights, set up as sam2's video predictor sets it up (stability fallback, hard masks from prompts).

    Args:
        name: a key of `SAM_CARDS`.
        image_size: another side than the build's own, a multiple of 32; for the small build of 64.

    Raises:
        ConfigError: unknown name, or a side that does not divide.
    """
    card = SAM_CARDS.get(name)
    if card is None:
        raise ConfigError(f"no SAM2 named {name!r}; choose one of {', '.join(SAM_CARDS)}")
    side = image_size if image_size is not None else card.image_size
    step = 64 if card.config is None else 32
    if side % step or side <= 0:
        raise ConfigError(
            f"image_size {side} was given for {name}, expected a positive multiple of {step}; choose {max(step, side // step * step)}"
        )
    _import_quietly()
    if card.config is None:
        from tpo_heads.mask.tiny import build_tiny

        return build_tiny(side)
    return _build_published(card.config, side)


def _import_quietly() -> None:
    """Import sam2 without leaving Hydra's global state set, which importing sam2 does as a side effect."""
    from hydra.core.global_hydra import GlobalHydra

    taken = GlobalHydra.instance().is_initialized()
    import sam2  # noqa: F401  (its import has the side effect)

    if not taken:
        GlobalHydra.instance().clear()


def _build_published(config: str, side: int) -> SAM2Base:
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    text = resources.files("sam2").joinpath("configs", config).read_text(encoding="utf-8")
    model = OmegaConf.create(text)["model"]
    model["image_size"] = side
    model["binarize_mask_from_pts_for_mem_enc"] = True
    model["sam_mask_decoder_extra_args"] = dict(STABILITY)
    return instantiate(model, _recursive_=True)


STABILITY: dict[str, Any] = {
    "dynamic_multimask_via_stability": True,
    "dynamic_multimask_stability_delta": 0.05,
    "dynamic_multimask_stability_thresh": 0.98,
}
"""What sam2's predictors set for inference: an unstable single mask gives way to the best of three."""


def fetch_weights(name: str) -> Path:
    """Return the published weights of this build, downloaded from the Hugging Face hub into its cache where needed.

    Raises:
        ConfigError: the build has no published weights, or the hub cannot be reached.
    """
    hub = SAM_CARDS[name].hub
    if hub is None:
        raise ConfigError(f"weights: hub was given, but {name} has no published weights; give a file, or leave `weights` out")
    from huggingface_hub import hf_hub_download

    repository, file = hub
    try:
        return Path(hf_hub_download(repo_id=repository, filename=file))
    except Exception as error:  # the hub client raises its own, httpx's and OSError families
        raise ConfigError(f"{file} could not be fetched from {repository} ({error}); download it and give its path as `weights`") from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return a state dict of SAM2 from ``.safetensors`` or from sam2's ``.pt`` (``weights_only``: nothing in the file is run).

    Raises:
        CheckpointError: another suffix, or the file holds something else than tensors by name.
    """
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            tensors: dict[str, Tensor] = load_file(path)
            return tensors
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: no readable safetensors file ({error}); give SAM2's weights") from error
    if path.suffix not in {".pt", ".pth"}:
        raise CheckpointError(f"{path}: SAM2's weights come as .safetensors or .pt, got {path.suffix or 'no suffix'!r}; convert the file")
    import pickle

    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{path}: no weights that can be read without running code ({first}); give SAM2's own .pt") from error
    state = held.get("model", held) if isinstance(held, dict) else held
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise CheckpointError(
            f"{path}: expected SAM2's tensors by name (or under 'model'), got {type(state).__name__}; give SAM2's own .pt"
        )
    return state


def load_weights(sam: nn.Module, path: Path) -> None:
    """Load a file's tensors into a SAM2.

    Raises:
        CheckpointError: unreadable, or keys or shapes differ (they are listed).
    """
    state = read_weights(path)
    own = sam.state_dict()
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    odd = sorted(key for key in own.keys() & state.keys() if own[key].shape != state[key].shape)
    if missing or unexpected or odd:
        raise CheckpointError(
            f"{path}: not the weights of this SAM2: missing {_few(missing)}, unexpected {_few(unexpected)}, of another shape {_few(odd)}; "
            f"give the file that belongs to the `sam` you chose"
        )
    sam.load_state_dict(state)
    logger.info("loaded SAM2 from %s", path)


def save_weights(sam: nn.Module, path: Path) -> None:
    """Write a SAM2 as safetensors, to be given as ``weights``; the file appears whole or not at all."""
    from safetensors.torch import save_file

    partial = path.with_name(f".{path.name}.partial")
    save_file({key: value.detach().cpu().contiguous() for key, value in sam.state_dict().items()}, partial)
    partial.replace(path)


def _few(keys: list[str]) -> str:
    if not keys:
        return "none"
    return f"{len(keys)} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
