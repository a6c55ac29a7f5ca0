"""Pictures to latents and back: one interface to diffusers' AutoencoderKL and AutoencoderTiny.

Shape letters: B batch, H and W a picture's, C, h, w a latent's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor

from ddscale.diffusion.folders import component_class, find_component
from ddscale.diffusion.tiny_vae import TinyVAE, load_taesd, taesd_files

VAE: TypeAlias = AutoencoderKL | AutoencoderTiny


class Latents(NamedTuple):
    """The Gaussian a picture is encoded as, before scaling."""

    mean: Tensor
    """(B, C, h, w)."""
    std: Tensor
    """(B, C, h, w); zeros for a codec that encodes to one point."""


class LatentCodec:
    """A latent diffusion model's autoencoder, with the scale and shift that the U-Net expects."""

    def __init__(self, vae: VAE) -> None:
        self.vae = vae
        config: Any = vae.config
        self.scale = float(config.scaling_factor)
        self.shift = float(getattr(config, "shift_factor", None) or 0.0)
        self.latent_channels = int(config.latent_channels)
        self.downsampling = _downsampling(vae)

    @classmethod
    def from_folder(cls, folder: str | Path) -> LatentCodec:
        """The codec of a diffusers folder, a whole pipeline's or the autoencoder's own, or of TAESD's two files.

        Raises FileNotFoundError or ValueError naming the folder when there is none that is known.
        """
        if files := taesd_files(Path(folder)):
            return cls(load_taesd(*files))
        path = find_component(folder, "vae")
        kind = component_class(path)
        classes: dict[str, Any] = {c.__name__: c for c in (AutoencoderKL, AutoencoderTiny, TinyVAE)}
        if kind not in classes:
            raise ValueError(
                f"{path} holds a {kind}: as latent codec serve {' and '.join(classes)} folders of diffusers."
            )
        return cls(classes[kind].from_pretrained(path, local_files_only=True).eval().requires_grad_(False))

    def encode(self, pictures_B3HW: Tensor) -> Latents:
        """pictures: float in -1..1, H and W multiples of `downsampling` (ValueError otherwise)."""
        height, width = pictures_B3HW.shape[-2:]
        if height % self.downsampling or width % self.downsampling:
            raise ValueError(
                f"pictures of {height} x {width} cannot be encoded: sides must be multiples of {self.downsampling}."
            )
        encoded = self.vae.encode(pictures_B3HW)
        if hasattr(encoded, "latent_dist"):
            return Latents(encoded.latent_dist.mean, encoded.latent_dist.std)
        return Latents(encoded.latents, torch.zeros_like(encoded.latents))

    def scaled(self, latents: Tensor) -> Tensor:
        """What the U-Net works on: encoded latents shifted and scaled to about unit variance."""
        return (latents - self.shift) * self.scale if self.shift else latents * self.scale

    def decode(self, scaled_BChw: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) from scaled latents, about -1..1, not clipped."""
        # Written as Stable Diffusion's pipeline does, whose pictures ours equal bit for bit.
        latents = scaled_BChw / self.scale
        decoded: Tensor = self.vae.decode(latents + self.shift if self.shift else latents, return_dict=False)[
            0
        ]
        return decoded


def _downsampling(vae: VAE) -> int:
    config: Any = vae.config
    levels = getattr(config, "block_out_channels", None) or config.encoder_block_out_channels
    return int(2 ** (len(levels) - 1))
