"""A small exported pipeline for tests: random weights, real classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ddscale.deploy.exporting import export
from ddscale.deploy.recipe import ExportRecipe
from ddscale.diffusion.conditioning import EEGConditioner
from ddscale.diffusion.pipeline import EEGToImagePipeline
from ddscale.diffusion.toy import ToySettings, build_toy
from ddscale.diffusion.unet import add_time_condition

ENCODER_SIZES = {"n_channels": 16, "n_samples": 128, "patch": 4, "width": 96, "depth": 2, "heads": 2}
CHANNELS = 6
TOY = ToySettings(vae_channels=(8, 16, 48), unet_channels=(48, 96), image_size=32)
SCHEDULES = [{"name": "dpmsolver++", "steps": 4}, {"name": "ddim", "steps": 4}, {"name": "lcm", "steps": 3}]


def save_toy_pipeline(folder: Path, time_condition: bool = True) -> Path:
    """An EEG-to-image pipeline that has learned nothing, as fine-tuning would save it. Returns the folder."""
    torch.manual_seed(0)
    toy = build_toy(["a toy"], TOY)
    conditioner = EEGConditioner(
        encoder_sizes=ENCODER_SIZES,
        length=8,
        width=TOY.width,
        clip_width=TOY.width,
        time_condition=time_condition,
        sfreq=256.0,
        normalisation={"kind": "zscore", "clip": 15.0, "eps_uv": 0.1},
    )
    conditioner.null.states.data.normal_()
    if time_condition:
        add_time_condition(toy.unet, TOY.width)
        torch.nn.init.normal_(toy.unet.class_embedding.weight, std=0.05)
    EEGToImagePipeline(toy.vae, toy.unet, toy.scheduler, conditioner).save_pretrained(folder)
    return folder


def toy_recipe(folder: Path, **settings: Any) -> ExportRecipe:
    """A recipe for the toy pipeline in `folder`/pipeline, which is made when it is not there."""
    source = folder / "pipeline"
    if not source.exists():
        save_toy_pipeline(source)
    return ExportRecipe.model_validate(
        {
            "source": str(source),
            "out": str(folder / "export"),
            "schedules": SCHEDULES,
            "eeg": {"channels": CHANNELS},
            **settings,
        }
    )


def export_toy(folder: Path, **settings: Any) -> Path:
    """Export the toy pipeline below `folder`; returns the fp32 export's folder. settings: of the recipe."""
    return export(toy_recipe(folder, **settings))[0]


def save_sd15_pipeline(folder: Path) -> Path:
    """Stable Diffusion 1.5's sizes and DreamDiffusion's encoder with random weights, 4.6 GB. Returns the folder."""
    from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel

    from ddscale.diffusion.reference_sizes import SD15_SCHEDULER, SD15_UNET, SD15_VAE
    from ddscale.models import MAEConfig

    torch.manual_seed(0)
    sizes: Any = MAEConfig.model_validate({"preset": "dreamdiffusion"}).encoder
    conditioner = EEGConditioner(
        encoder_sizes=sizes.model_dump(mode="json"),
        time_condition=True,
        sfreq=256.0,
        normalisation={"kind": "zscore", "clip": 15.0, "eps_uv": 0.1},
    )
    unet = UNet2DConditionModel(**SD15_UNET)
    add_time_condition(unet, 768)
    scheduler = PNDMScheduler(**SD15_SCHEDULER)
    EEGToImagePipeline(AutoencoderKL(**SD15_VAE), unet, scheduler, conditioner).save_pretrained(folder)
    return folder
