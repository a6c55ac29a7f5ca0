"""What fine-tuning trains as one module: the EEG conditioner and the U-Net it speaks to.

Shape letters: B batch, T samples, C channels, c, h, w a latent's channels, height, width, D CLIP's width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from ddscale.diffusion.clip import caption_states
from ddscale.diffusion.conditioning import EEGConditioner
from ddscale.diffusion.settings import FinetuneRecipe
from ddscale.diffusion.unet import add_time_condition, choose_trained, load_unet
from ddscale.models import EEGEncoder, load_encoder
from ddscale.models.encoder_folder import describe
from ddscale.store import Store


class Prediction(NamedTuple):
    """What the model says of a batch."""

    noise: Tensor | None
    """(B, c, h, w) the U-Net's output; None when it was not asked."""
    clip: Tensor | None
    """(B, D), to be aligned; None without alignment."""


class EEGToLatent(nn.Module):
    """Conditioner and U-Net. DeepSpeed shares out, casts and saves what is in here, and nothing else."""

    def __init__(self, conditioner: EEGConditioner, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.conditioner = conditioner
        self.unet = unet

    def forward(
        self,
        x_BTC: Tensor,
        dropped_B: Tensor | None = None,
        latents_Bchw: Tensor | None = None,
        timesteps_B: Tensor | None = None,
    ) -> Prediction:
        """dropped_B: bool, samples that go without their EEG. Without latents the U-Net is not run."""
        condition = self.conditioner(x_BTC.to(self.conditioner.dtype), dropped_B)
        if latents_Bchw is None:
            return Prediction(None, condition.clip)
        noise = self.unet(
            latents_Bchw.to(condition.hidden_states.dtype),
            timesteps_B,
            encoder_hidden_states=condition.hidden_states,
            class_labels=condition.time,
            return_dict=False,
        )[0]
        return Prediction(noise, condition.clip)

    def parts(self) -> dict[str, nn.Module]:
        """What parameter counts are told by."""
        conditioner = self.conditioner
        named = {
            "encoder": conditioner.encoder,
            "projector": conditioner.projector,
            "time pooling": conditioner.time_pooling,
            "alignment head": conditioner.alignment,
            "no-EEG states": conditioner.null,
            "U-Net": self.unet,
        }
        return {name: part for name, part in named.items() if part is not None}


def build(recipe: FinetuneRecipe, clip_width: int | None, windows: dict[str, Any]) -> EEGToLatent:
    """The recipe's model, pretrained parts loaded, the others drawn from torch's generator, the rest frozen.

    clip_width: width of the features to align with; None: no alignment. windows: sfreq, normalisation and
    preprocessing, kept in the conditioner's configuration for whoever prepares windows later.
    Raises ValueError, FileNotFoundError naming the folder when a part is not there or does not fit.
    """
    unet = load_unet(recipe.stable_diffusion)
    states_1LW = caption_states(recipe.stable_diffusion, [""])
    conditioner = EEGConditioner.around(
        _encoder(recipe),
        length=states_1LW.shape[1],
        width=int(unet.config.cross_attention_dim),
        time_condition=recipe.time_condition,
        clip_width=clip_width,
        normalise_states=recipe.normalise_states,
        **windows,
    )
    conditioner.start_null_from(states_1LW)
    if recipe.time_condition:
        add_time_condition(unet, int(unet.config.cross_attention_dim))
    choose_trained(unet, recipe.unet)
    return EEGToLatent(conditioner, unet)


def _encoder(recipe: FinetuneRecipe) -> EEGEncoder:
    encoder = load_encoder(recipe.encoder)
    return EEGEncoder(encoder.config) if recipe.from_scratch else encoder


def check_windows(recipe: FinetuneRecipe, sfreq: float, unit: str) -> None:
    """Raise ValueError unless the recipe prepares windows as the encoder was pretrained on them.

    sfreq, unit: of the stores. What the encoder's folder does not say is not checked; nor is the rate where trials
    are stretched, which changes it anyway, nor the normalisation of numbers that are not in µV.
    """
    described = describe(recipe.encoder)
    stated, sizes = described.metadata, described.config
    asked = recipe.data.normalisation.model_dump(mode="json")
    pairs: list[tuple[str, Any, Any]] = [
        ("data.window_samples", recipe.data.window_samples, sizes.get("n_samples")),
        ("data.n_channels", recipe.data.n_channels, sizes.get("n_channels")),
    ]
    if not recipe.from_scratch and recipe.data.short_trials != "stretch":
        pairs.append(("the stores' sfreq", sfreq, stated.get("sfreq")))
    if not recipe.from_scratch and unit == "uV":
        pairs.append(("data.normalisation", asked, stated.get("normalisation")))
    wrong = [
        f"{name} is {ours}, the encoder's {theirs}"
        for name, ours, theirs in pairs
        if theirs is not None and ours != theirs
    ]
    if wrong:
        raise ValueError(
            f"{recipe.encoder} knows other windows: {'; '.join(wrong)}. Change the recipe, or ingest at the "
            "encoder's rate (preprocessing.sfreq)."
        )


def check_stores(stores: Sequence[Store], captions: bool) -> None:
    """Raise ValueError unless every trial that is trained or watched has a picture, and all were filtered alike.

    captions: whether every picture needs one.
    """
    for store in stores:
        if store.images is None:
            raise ValueError(
                f"{store.path} holds no pictures: ingest a source that has them, such as `events`, `things-eeg2` or "
                "`simulated-evoked`, or take the store out of data.stores."
            )
        without = int((store.is_trial & (store.image_row_of_record < 0) & (store.split <= 1)).sum())
        if without:
            raise ValueError(
                f"{store.path} has {without:,} trials without a picture among those to train on: ingest its labelled "
                "trials and those with pictures into stores of their own."
            )
        if captions and "" in (text or "" for text in store.images["caption"].cast("string").to_pylist()):
            raise ValueError(
                f"{store.path} has pictures without a caption, and objective.alignment_target is `caption`: align with "
                "`image`, or ingest with captions."
            )
        if store.content.filters != stores[0].content.filters:
            raise ValueError(
                f"{store.path} was filtered otherwise than {stores[0].path}: ingest both with one `preprocessing:`."
            )


@torch.no_grad()
def overlay(model: nn.Module, trained: dict[str, Tensor]) -> None:
    """Put trained weights over a fresh model's; the frozen ones stay as they were read from their folder, bit for bit.

    Raises KeyError when a trained weight is missing.
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.copy_(trained[name])
