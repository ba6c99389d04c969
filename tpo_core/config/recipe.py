"""A recipe: everything a run is made of, as one typed tree. Paths in messages and overrides follow it: ``stages[1].train.lora``."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from tpo_core.contract import HeadConfig

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
Rate = Annotated[float, Field(gt=0)]

GROUPS = ("vision", "connector", "llm", "lora", "tokens", "heads")
"""Roots of the parameter groups; ``heads.region`` and ``tokens.region`` name one head's part."""


class Part(BaseModel):
    """Base of the tree: unknown keys, coercions and changes are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, validate_by_name=True, validate_by_alias=True)


class ModelConfig(Part):
    """The backbone, what it is shown, and how it answers."""

    path: str = Field(description="folder of the multimodal LLM, or its name on the hub")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="of the weights; auto: as they are stored")
    attention: str | None = Field(None, description="attention kernel (eager, sdpa, flash_attention_2); null: the library's choice")
    frames: int = Field(8, ge=1, le=4096, description="frames of a video that the language model sees")
    max_length: int = Field(2048, ge=16, description="tokens of a sample; longer ones are quarantined, never cut")
    token_init: Literal["mean", "normal"] = Field(
        "mean",
        description="new task tokens start at the vocabulary's mean row (plus a little noise), or are drawn with its mean and spread",
    )
    start_bias: float = Field(
        0.0,
        allow_inf_nan=False,
        description="added to the logits of start tokens when the model answers: below 0 a head is called only where the model is surer, "
        "and words are said otherwise; training does not know it; 0: as in the paper",
    )


class LoraConfig(Part):
    """Low-rank adapter of the language model; biases are not trained."""

    r: int = Field(16, ge=1, description="rank")
    alpha: float = Field(32.0, gt=0, description="scale; the update counts alpha / r")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the adapter's input")


class LossConfig(Part):
    """The objective: L_mllm + assign * L_assign + sum of each head's weight (heads.<name>.weight) times its loss."""

    assign: float = Field(1.0, ge=0, description="weight of the loss on start tokens (which task is this)")
    assign_every_answer: bool = Field(
        False,
        description="L_assign counts every answer: one that begins in words teaches, with the weight of a start token, that no start token "
        "comes there; false: start tokens alone, as in the paper",
    )
    balance: Literal["fixed", "uncertainty", "gradient_norm"] = Field(
        "fixed",
        description="fixed: weights as written; uncertainty: learnt, one per loss; gradient_norm: evens out their pull on shared weights",
    )
    measure_every: int | None = Field(
        None,
        ge=1,
        description="steps between measurements of each head's gradient norm and their cosines on the shared weights; null: never",
    )

    @model_validator(mode="after")
    def _measured(self) -> Self:
        if self.balance == "gradient_norm" and self.measure_every is None:
            raise ValueError("balance: gradient_norm needs measure_every, such as 50")
        return self


class Source(Part):
    """One set of records."""

    name: Name = Field(description="how stages and tables call it")
    path: str = Field(description="the annotation file, relative to the working directory")
    reader: str = Field("tpo", description="annotation format; `tpo heads` lists those installed")
    weight: float | None = Field(None, ge=0, description="share in the mixture; null in all: by number of samples and temperature")
    root: str | None = Field(None, description="folder that media paths are relative to; null: the file's own folder")
    max_samples: int | None = Field(None, ge=1, description="use only this many records, from the first; null: all")


class DataConfig(Part):
    """What is read, and what happens to bad rows."""

    train: tuple[Source, ...] = Field((), description="sources to train on")
    test: tuple[Source, ...] = Field((), description="sources to evaluate on, never trained on")
    policy: Literal["skip", "raise"] = Field("skip", description="bad rows: set aside with a report, or stop at the first")
    max_bad: int = Field(100, ge=0, description="stop when more rows than this were set aside")
    temperature: float | None = Field(
        None, gt=0, description="of sources without weights: shares go with samples ** (1 / temperature); null: every sample counts alike"
    )
    workers: int = Field(2, ge=0, description="processes that prepare samples; 0: prepare in the main process")
    allow_outside_root: bool = Field(False, description="allow media paths that leave their root folder")

    @model_validator(mode="after")
    def _names_once(self) -> Self:
        for split, sources in (("train", self.train), ("test", self.test)):
            names = [source.name for source in sources]
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"{split} names the source {twice[0]!r} twice; names must differ")
        return self


class StageConfig(Part):
    """One stage: what trains, how fast, on what, for how long. It begins from a checkpoint."""

    name: Name = Field(description="how tables and checkpoints call it")
    steps: int | None = Field(None, ge=1, description="optimiser steps; give steps or epochs")
    epochs: float | None = Field(None, gt=0, description="passes over the stage's sources; give steps or epochs")
    heads: tuple[str, ...] | None = Field(None, description="heads that take part; null: all")
    train: dict[str, Rate | None] = Field(
        description="learning rate per group: vision, connector, llm, lora, tokens, heads, or one as heads.<name>; absent or null: frozen"
    )
    muon: dict[str, Rate] = Field(
        {},
        description="groups (keys as in train, which must train there) whose weight matrices Muon moves, at this rate; embeddings, biases "
        "and norms stay with AdamW at the rate in train",
    )
    sources: dict[str, float] | None = Field(None, description="weight of each source of data.train in this stage; null: as in data.train")
    weights: dict[str, Annotated[float, Field(ge=0)]] = Field(
        {}, description="weight of heads' losses in this stage, by head; others keep heads.<name>.weight"
    )
    assign: float | None = Field(None, ge=0, description="weight of the loss on start tokens in this stage; null: loss.assign")
    batch_size: int = Field(16, ge=1, description="samples per optimiser step, over all processes")
    micro_batch: int | None = Field(
        None,
        ge=1,
        description="samples per forward pass of one process; the rest is accumulated; null: all at once. Gradients do not depend on it",
    )
    schedule: Literal["cosine", "constant"] = Field("cosine", description="course of the learning rate after warm-up")
    warmup: float = Field(0.0, ge=0, description="linear warm-up: below 1 a share of the steps, else a number of steps")
    min_lr_ratio: float = Field(0.0, ge=0, le=1, description="where the cosine ends, as a share of the learning rate")
    weight_decay: float = Field(0.02, ge=0, description="AdamW's decay; biases and norms are exempt")
    betas: tuple[float, float] = Field((0.9, 0.999), description="AdamW's moment decays")
    eps: float = Field(1e-8, gt=0, description="AdamW's epsilon")
    clip_norm: float | None = Field(1.0, gt=0, description="greatest norm of the gradient; null: not clipped")
    keep_states: float | None = Field(
        None,
        gt=0,
        description="where nothing but heads trains: what the language model gives for a sample is kept on disk, up to so many MiB over "
        "all processes, and not computed again while the stage lasts; null: computed each time",
    )
    merge_at_start: bool = Field(False, description="merge the adapter into the weights and begin a new one")
    start: str = Field("previous", alias="from", description="previous: where the stage before ended; or the folder of a run or checkpoint")

    @model_validator(mode="after")
    def _length_and_groups(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either steps or epochs")
        if self.micro_batch is not None and self.batch_size % self.micro_batch:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of micro_batch {self.micro_batch}")
        if not self.rates:
            raise ValueError(f"train names no group, so nothing would learn; give a learning rate to some of {', '.join(GROUPS)}")
        return self

    @field_validator("betas")
    @classmethod
    def _below_one(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"found {list(betas)}, expected two numbers from 0 to below 1")
        return betas

    @property
    def rates(self) -> dict[str, float]:
        """Learning rates of the groups that train."""
        return {group: rate for group, rate in self.train.items() if rate is not None}


class TrainerConfig(Part):
    """Machinery: none of it changes what is learnt."""

    checkpoint_every: int = Field(500, ge=1, description="optimiser steps between checkpoints; the end of a stage is always kept")
    keep: int = Field(2, ge=1, description="newest checkpoints to keep")
    log_every: int = Field(1, ge=1, description="optimiser steps between rows of metrics.jsonl")
    trackers: tuple[str, ...] = Field((), description="experiment trackers known to Accelerate (tensorboard, wandb, ...)")
    eval_samples: int | None = Field(None, ge=1, description="test records per source to evaluate at the end; null: all")
    eval_after_stage: bool = Field(
        False, description="evaluate after every stage, not only after the last: the summary then tells what a later stage cost"
    )
    report: bool = Field(True, description="write report.html (curves, figures, predictions with pictures) at the end")
    bf16: Literal["auto"] | bool = Field("auto", description="compute in bfloat16; auto: where the device has it")
    processes: int = Field(
        1,
        ge=1,
        description="processes that `tpo train` starts on this machine (DDP), at most one per GPU or CPU thread; other launchers: leave 1",
    )
    distributed: Literal["auto", "none", "ddp", "fsdp2"] = Field(
        "auto", description="what the launcher must have set up; auto: whatever it did"
    )


class Recipe(Part):
    """Everything a run is made of. `load_recipe` narrows `heads` to the configs of the installed heads."""

    seed: int = Field(0, ge=0, lt=2**63, description="of every random draw")
    output: str = Field("runs/first", description="folder of the run")
    model: ModelConfig = Field(description="the backbone and what it is shown")
    lora: LoraConfig | None = Field(LoraConfig(), description="low-rank adapter of the language model; null: none")
    heads: dict[str, HeadConfig] = Field(description="the task heads and their options; `tpo heads` lists those installed")
    loss: LossConfig = Field(LossConfig(), description="the objective")
    data: DataConfig = Field(DataConfig(), description="what is read")
    stages: tuple[StageConfig, ...] = Field((), description="the stages, in order")
    trainer: TrainerConfig = Field(TrainerConfig(), description="machinery")
