"""Options of the mask head. No torch here."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from tpo_core.contract import HeadConfig

SamName = Literal["tiny", "sam2.1_hiera_t", "sam2.1_hiera_s", "sam2.1_hiera_b+", "sam2.1_hiera_l"]


class MaskConfig(HeadConfig):
    """The default supervises pixels; ``objective: distil`` with ``trains: adapter`` is what the paper's release does."""

    sam: SamName = Field("tiny", description="which SAM2; tiny is the small one for CPUs")
    weights: str | None = Field(
        None, description="SAM2's weights: a .safetensors or .pt file, or `hub` for the published ones; default: random"
    )
    image_size: int | None = Field(None, ge=32, description="side of the square picture that SAM2 sees, a multiple of 64; default: its own")
    trains: Literal["adapter", "decoder", "all"] = Field(
        "adapter", description="what learns: the adapter alone (paper), with it SAM2's mask decoder, or all of SAM2"
    )

    objective: Literal["mask", "distil", "both"] = Field(
        "mask", description="mask: SAM2's losses on pixels; distil: L1 to SAM2's own box prompt (the release); both: their sum"
    )
    focal: float = Field(20.0, ge=0, description="factor of the focal loss of the masks")
    dice: float = Field(1.0, ge=0, description="factor of the dice loss of the masks")
    iou: float = Field(1.0, ge=0, description="factor of the L1 loss of the predicted IoU")
    object: float = Field(1.0, ge=0, description="factor of the cross-entropy of the object's score (is it there?)")
    projection: float = Field(1.0, ge=0, description="factor of the projection loss where only boxes are annotated")
    distil: float = Field(1.0, ge=0, description="factor of the L1 distance to SAM2's box prompt")
    aux_box: float = Field(1.0, ge=0, description="factor of the L1 distance of the auxiliary box to the annotated one")
    points: int | None = Field(None, ge=16, description="sample this many points of a mask for the losses; default: all pixels")

    num_prompt_tokens: int = Field(3, ge=1, le=64, description="SAM2 prompt tokens that the adapter makes of the task embedding")
    adapter_depth: int = Field(2, ge=1, le=6, description="linear layers of the adapter, ReLU between")
    anchor: Literal["none", "box"] = Field(
        "none",
        description="what the adapter's tokens are added to: nothing (paper), or SAM2's own prompt for a box that is read off the "
        "embedding and learnt by aux_box whatever the objective, so that the adapter says only what a box does not",
    )
    presence: bool = Field(
        False,
        description="add to SAM2's object score (a logit) what one linear layer reads off the task embedding, zero at first: whether the "
        "words name anything here at all; learnt by the loss of that score, so that objective distil has none; false: SAM2's own (paper)",
    )
    multimask: bool = Field(False, description="three candidate masks at the prompt frame (SAM2 does so for one point, not for boxes)")
    path: Literal["embedding", "box", "both"] = Field(
        "embedding", description="what prompts SAM2 where the question gives a box: the embedding, the box (plain SAM2), or both"
    )
    prompt_frame: Literal["seen", "best", "first"] = Field(
        "seen",
        description="frame that is prompted when none is given: the first one where the object is seen, the one of best object score, "
        "or frame 0",
    )
    parts: Literal["union", "each"] = Field("union", description="several objects of one phrase: one mask, or one query per object")

    train_frames: int = Field(4, ge=1, description="frames through which memory is unrolled in training")
    max_stride: int = Field(4, ge=1, description="largest step between drawn frames, counted in annotated frames")
    absent_prompts: float = Field(0.0, ge=0, le=1, description="share of draws that prompt a frame without the object (teaches its score)")
    chunk_frames: int = Field(16, ge=1, description="frames that prediction holds at once; longer clips are streamed")

    cache_mib: float = Field(256.0, ge=0, description="memory for image features of a frozen SAM2, in MiB; 0: none")
    cache_dir: str | None = Field(None, description="folder for image features on disk, of this SAM2 alone; default: none")
    cache_dir_mib: float = Field(10240.0, ge=0, description="size up to which `cache_dir` is filled, in MiB")

    @model_validator(mode="after")
    def _agree(self) -> MaskConfig:
        if self.boxes and self.num_prompt_tokens not in (2, 3):
            option = f"objective {self.objective} imitates" if self.imitates else "anchor box adds to"
            raise ValueError(
                f"{option} SAM2's box prompt of 2 corners and a pad, but num_prompt_tokens is "
                f"{self.num_prompt_tokens}; set it to 3 (or 2, without the pad)"
            )
        if self.trains == "all" and self.cache_dir is not None:
            raise ValueError("trains: all changes the image features, so that cache_dir cannot keep them; leave cache_dir out")
        if self.sam == "tiny" and self.weights == "hub":
            raise ValueError("weights: hub was given, but sam: tiny has no published weights; give a file, or leave weights out")
        return self

    @property
    def pixels(self) -> bool:
        """Return whether SAM2's losses on pixels are asked for."""
        return self.objective != "distil"

    @property
    def imitates(self) -> bool:
        """Return whether SAM2's box prompt is imitated."""
        return self.objective != "mask"

    @property
    def boxes(self) -> bool:
        """Return whether a box is read off the embedding."""
        return self.imitates or self.anchor == "box"

    @property
    def factors(self) -> dict[str, float]:
        """Return the factor of each loss term of this objective."""
        names = ["focal", "dice", "iou", "object", "projection"] if self.pixels else []
        names += ["distil"] if self.imitates else []
        names += ["aux_box"] if self.boxes else []
        return {name: float(getattr(self, name)) for name in names}
