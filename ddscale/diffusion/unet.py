"""The U-Net of Stable Diffusion: loading it, letting a vector into its time embedding, choosing what trains."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from pydantic import Field
from torch import nn

from ddscale.diffusion.folders import component_class, find_component
from ddscale.recipes import Settings

Trained = Literal["none", "attn2", "lora", "all"]
_LORA_TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]


class UNetTraining(Settings):
    """Which weights of the U-Net are trained beside encoder and projector."""

    trained: Trained = "attn2"
    """`none`: encoder and projector alone (the paper's ablation); `attn2`: cross-attention; `lora`; or `all`."""
    lora_rank: int = Field(default=16, ge=1)
    """Rank of the adapters on all attention projections; memory and freedom grow with it."""
    lora_alpha: float = Field(default=16.0, gt=0)
    """Adapters are scaled by alpha over rank."""
    gradient_checkpointing: bool = False
    """Recompute blocks in the backward pass: a third more work, much less memory."""


class PartCount(NamedTuple):
    """Parameters of one part of the model."""

    part: str
    trained: int
    frozen: int


def load_unet(folder: str | Path) -> UNet2DConditionModel:
    """The U-Net of a diffusers folder: a whole pipeline's, or its own. Nothing is downloaded.

    Raises FileNotFoundError or ValueError naming the folder when there is none.
    """
    path = find_component(folder, "unet")
    if (kind := component_class(path)) != "UNet2DConditionModel":
        raise ValueError(
            f"{path} holds a {kind}, not a UNet2DConditionModel as Stable Diffusion 1 and 2 have."
        )
    unet: UNet2DConditionModel = UNet2DConditionModel.from_pretrained(path, local_files_only=True)
    return unet


@torch.no_grad()
def add_time_condition(unet: UNet2DConditionModel, width: int) -> None:
    """Let a vector (B, width) be added to the time embedding, as the original does after its two linear maps.

    Uses diffusers' own slot for that (`class_labels` with a `simple_projection`), so the saved U-Net loads in
    diffusers. Begins at zero: until trained, the U-Net does what it did before. `timestep_cond` is not used: it is
    added before the maps, and latent consistency models have their guidance scale there.
    Raises ValueError when the slot is taken by a class embedding.
    """
    if unet.config.class_embed_type == "simple_projection":
        stated = unet.config.projection_class_embeddings_input_dim
        if stated != width:
            raise ValueError(
                f"the U-Net takes a vector of {stated} beside the time, the conditioner gives {width}."
            )
        return
    if getattr(unet, "class_embedding", None) is not None:
        raise ValueError(
            f"the U-Net has a class embedding ({unet.config.class_embed_type or 'by number'}), where the EEG's "
            "vector would have to go: set time_condition to false."
        )
    time_width = unet.time_embedding.linear_2.out_features
    projection = nn.Linear(width, time_width).to(device=unet.device, dtype=unet.dtype)
    nn.init.zeros_(projection.weight)
    nn.init.zeros_(projection.bias)
    unet.class_embedding = projection
    unet.register_to_config(class_embed_type="simple_projection", projection_class_embeddings_input_dim=width)


def choose_trained(unet: UNet2DConditionModel, settings: UNetTraining) -> None:
    """Freeze the U-Net but for what `settings` names. A time condition's projection is always trained.

    Parts are found by their place in diffusers' transformer blocks, not by a piece of their name.
    """
    unet.requires_grad_(settings.trained == "all")
    if settings.trained == "attn2":
        for block in unet.modules():
            if isinstance(block, BasicTransformerBlock) and block.attn2 is not None:
                block.attn2.requires_grad_(True)
    if settings.trained == "lora":
        from peft import LoraConfig

        unet.add_adapter(
            LoraConfig(
                r=settings.lora_rank,
                lora_alpha=settings.lora_alpha,
                target_modules=_LORA_TARGETS,
                init_lora_weights="gaussian",
            )
        )
    if unet.config.class_embed_type == "simple_projection":
        unet.class_embedding.requires_grad_(True)
    if settings.gradient_checkpointing:
        unet.enable_gradient_checkpointing()


def merge_lora(unet: UNet2DConditionModel) -> None:
    """Add the adapters into the weights they adapt: a plain U-Net again, which any diffusers loads."""
    if getattr(unet, "peft_config", None):
        unet.fuse_lora()
        unet.unload_lora()


def count_parameters(parts: Mapping[str, nn.Module]) -> list[PartCount]:
    """Trained and frozen parameters of each named part, and of all together (`total`)."""
    counts = []
    for name, module in parts.items():
        sizes = [(_size(p), p.requires_grad) for p in module.parameters()]
        counts.append(PartCount(name, sum(n for n, t in sizes if t), sum(n for n, t in sizes if not t)))
    counts.append(PartCount("total", sum(c.trained for c in counts), sum(c.frozen for c in counts)))
    return counts


def _size(parameter: Any) -> int:
    # Partitioned over ranks (ZeRO-3), a parameter is empty here and tells its size apart.
    return int(getattr(parameter, "ds_numel", parameter.numel()))
