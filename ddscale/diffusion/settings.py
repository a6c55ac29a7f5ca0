"""The recipe of fine-tuning: encoder and Stable Diffusion, what trains, on what, towards which losses."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ddscale.diffusion.objective import ObjectiveSettings
from ddscale.diffusion.precompute import PrecomputeSettings
from ddscale.diffusion.unet import UNetTraining
from ddscale.store.layout import is_url
from ddscale.stream.settings import StreamSettings
from ddscale.training.settings import Optimiser, TrainingSettings


class FinetuneOptimiser(Optimiser):
    """AdamW for weights most of which are pretrained."""

    lr: float = Field(default=5.3e-5, gt=0)
    """Peak learning rate; the default is DreamDiffusion's, for a global batch of 25."""

    weight_decay: float = Field(default=0.0, ge=0)
    """Decay of weight matrices; it would pull pretrained weights towards 0, away from where they are good."""


class FinetuneRecipe(TrainingSettings):
    """From an encoder and a Stable Diffusion to pictures, on stores of EEG with the pictures that were shown."""

    stage: Literal["finetune"]
    """This recipe's stage."""

    encoder: str
    """Folder of a pretrained encoder, such as RUN/encoder of a pretraining run."""

    from_scratch: bool = False
    """Take only the encoder's sizes and draw its weights afresh: shows what pretraining is worth."""

    stable_diffusion: str
    """Folder of a Stable Diffusion in diffusers' layout; nothing is downloaded."""

    clip_model: str | None = None
    """Folder of a whole CLIP (text and vision); null: `clip/` in the Stable Diffusion's folder."""

    time_condition: bool = False
    """Also add the EEG's vector to the U-Net's time embedding, as the original does; trained with the U-Net."""

    normalise_states: bool = True
    """Bring the states made of EEG to the scale of a caption's, so that training begins with what the U-Net knows;
    false: as the original."""

    data: StreamSettings
    """Stores of trials with pictures, and how their windows are prepared; normalised as in pretraining."""

    optimiser: FinetuneOptimiser = FinetuneOptimiser()
    """How weights follow gradients."""

    ema: float | None = Field(default=0.999, gt=0, lt=1)
    """Memory of the running average of the trained weights, which is what is saved for generating; null: none."""

    unet: UNetTraining = UNetTraining()
    """What trains beside encoder and projector."""

    objective: ObjectiveSettings = ObjectiveSettings()
    """The losses."""

    views: PrecomputeSettings = PrecomputeSettings()
    """Crops of the pictures, encoded once before training."""

    features: str | None = None
    """Folder on this machine or shared by all, where latents and CLIP features are kept for other runs; null: beside
    the first store, unless that is at a URL."""

    @property
    def features_folder(self) -> str:
        """Where precomputed latents and features are."""
        return self.features or f"{self.data.stores[0].rstrip('/')}.features"

    @property
    def clip_folder(self) -> str:
        """Where CLIP is."""
        return self.clip_model or self.stable_diffusion

    def _problems(self) -> list[str]:
        found = super()._problems()
        if self.data.cut != "trials":
            found.append(
                f"data.cut is {self.data.cut!r}: windows have to begin when a picture is shown; set it to `trials`."
            )
        if is_url(self.features_folder):
            found.append(
                f"latents and CLIP features would be kept at {self.features_folder}, and they have to be in a folder: "
                "set features to one that all ranks share."
            )
        if self.objective.schedule == "sequential":
            if self.objective.alignment == "none":
                found.append(
                    "objective.schedule is `sequential` and objective.alignment is `none`: there would be nothing to "
                    "train first; choose cosine or infonce, or `combined`."
                )
            if self.optimiser.weight_decay:
                found.append(
                    f"optimiser.weight_decay is {self.optimiser.weight_decay} with objective.schedule `sequential`: it "
                    "would shrink the U-Net while only alignment trains; set it to 0, or use `combined`."
                )
        return found
