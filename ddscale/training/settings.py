"""Recipes of the stages that train: what all of them share, and pretraining's own."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from ddscale.models.config import MAEConfig
from ddscale.recipes import Settings
from ddscale.stream.settings import StreamSettings
from ddscale.training import deepspeed_config
from ddscale.training.schedules import Schedule


class Optimiser(Settings):
    """AdamW, its fused kernel where the device has one; biases, norms and learned tokens are not decayed."""

    lr: float = Field(default=2.5e-4, gt=0)
    """Peak learning rate; it belongs to the global batch size, so change both together."""

    betas: list[float] = Field(default=[0.9, 0.95], min_length=2, max_length=2)
    """Memory of the first and second moment; 0.95 forgets a spike of gradients sooner than Adam's 0.999."""

    eps: float = Field(default=1e-8, gt=0)
    """Smallest denominator of an update."""

    weight_decay: float = Field(default=0.05, ge=0)
    """Decoupled decay of weight matrices, per unit of learning rate."""


class Validation(Settings):
    """Loss on held-out subjects, always on the same windows and masks."""

    every: int = Field(default=500, ge=0)
    """Steps between validations, and one at the end; 0: never."""

    windows: int = Field(default=1024, ge=1)
    """Windows looked at each time, over all ranks: more give a steadier number and take longer."""


class Checkpointing(Settings):
    """When a run is saved, and how many of its states are kept."""

    every: int = Field(default=500, ge=1)
    """Steps between checkpoints, and one at the end: what a crash can cost."""

    keep: int = Field(default=3, ge=1)
    """Newest checkpoints that are kept: older ones are what a damaged newest one falls back to."""


class Wandb(Settings):
    """Mirror of the metrics on Weights & Biases; needs `pip install 'ddscale[wandb]'`."""

    project: str
    """Project the run is listed under."""

    entity: str | None = None
    """Team or user; null: the account's default."""

    name: str | None = None
    """Name shown for the run; null: the run folder's."""

    mode: Literal["online", "offline"] = "online"
    """offline: written to the run folder, to be sent later with `wandb sync`."""


class TrainingSettings(Settings):
    """What every stage that trains has in common."""

    run: str
    """Folder of the run. A run continues from the checkpoints it finds there; a fresh start needs a fresh folder."""

    global_batch_size: int = Field(ge=1)
    """Samples per step over all ranks: what decides the mathematics, whatever the number of ranks."""

    micro_batch_size: int = Field(ge=1)
    """Samples a rank takes at once: what decides the memory. The rest of a step is accumulated."""

    steps: int = Field(ge=1)
    """Optimiser steps of the whole run."""

    optimiser: Optimiser = Optimiser()
    """How weights follow gradients."""

    schedule: Schedule = Schedule()
    """How the learning rate changes over the run."""

    clip: float = Field(default=1.0, ge=0)
    """Largest norm of the whole gradient, above which it is scaled down; 0: never."""

    ema: float | None = Field(default=None, gt=0, lt=1)
    """Memory of a running average of the weights (0.999: about the last 1,000 steps), which is then what the run
    hands on; null: the last weights themselves. Costs 4 bytes a trained weight, shared out over ranks by ZeRO."""

    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Numbers of forward and backward; weights are kept in float32 as well. fp16 needs a GPU and scales its loss."""

    zero_stage: Literal[0, 1, 2, 3] = 1
    """What ranks share out: 0 nothing, 1 optimiser state, 2 gradients too, 3 weights too (less memory, more talk)."""

    deepspeed: dict[str, Any] = {}
    """DeepSpeed's own configuration for everything not decided above, such as zero_optimization.offload_optimizer."""

    validation: Validation = Validation()
    """When and on how much the held-out loss is measured."""

    checkpoint: Checkpointing = Checkpointing()
    """When the run is saved."""

    log_every: int = Field(default=10, ge=1)
    """Steps between rows of metrics.jsonl; a row's loss is that step's own, not a mean."""

    max_skipped_steps: int = Field(default=20, ge=1)
    """Steps in a row that may be skipped for a loss or gradient that is not finite, before the run stops."""

    stall_minutes: float = Field(default=5.0, gt=0)
    """Minutes without a step after which every rank says what it is doing, and writes its stacks to the run folder's
    `stalled`. Less than what collectives wait for each other: 10 minutes, or the environment's DEEPSPEED_TIMEOUT."""

    compile: bool = False
    """torch.compile the model: faster steps after a start of minutes; not bitwise equal to the uncompiled one."""

    wandb: Wandb | None = None
    """Weights & Biases; null: not used."""

    seed: int = Field(default=0, ge=0)
    """Decides the first weights; the order of the data has its own seed."""

    @model_validator(mode="after")
    def _parts_fit(self) -> TrainingSettings:
        problems = self._problems()
        if problems:
            raise ValueError("\n    ".join(problems))
        return self

    def _problems(self) -> list[str]:
        """Contradictions between the recipe's parts that no number of ranks could mend."""
        found = [*self.schedule.problems(self.steps), *deepspeed_config.conflicts(self)]
        if self.global_batch_size % self.micro_batch_size:
            found.append(
                f"global_batch_size {self.global_batch_size} is not a multiple of micro_batch_size "
                f"{self.micro_batch_size}: every rank takes whole micro-batches."
            )
        return found

    def problems_at(self, world_size: int) -> list[str]:
        """What does not hold for this number of ranks."""
        share = self.micro_batch_size * world_size
        if self.global_batch_size % share == 0:
            return []
        fitting = max(share, round(self.global_batch_size / share) * share)
        return [
            f"global_batch_size {self.global_batch_size} is not a multiple of micro_batch_size "
            f"{self.micro_batch_size} x {world_size} ranks = {share}: "
            f"use global_batch_size {fitting}, another micro_batch_size, or another number of ranks."
        ]

    @property
    def unwrapped_optimiser(self) -> bool:
        """Whether DeepSpeed leaves our optimiser as it is: then it has to clip and to refuse non-finite steps."""
        return self.zero_stage == 0 and self.precision == "fp32"


class PretrainRecipe(TrainingSettings):
    """Masked pretraining of an encoder on one or more stores."""

    stage: Literal["pretrain"]
    """This recipe's stage."""

    model: MAEConfig
    """The masked autoencoder: a preset or sizes."""

    data: StreamSettings
    """Which stores, how windows are cut from them, and in which order."""

    def _problems(self) -> list[str]:
        found = super()._problems()
        for theirs, ours in (("window_samples", "n_samples"), ("n_channels", "n_channels")):
            given, wanted = getattr(self.data, theirs), getattr(self.model, ours)
            if given != wanted:
                found.append(f"data.{theirs} is {given}, but model.{ours} is {wanted}: make them equal.")
        return found
