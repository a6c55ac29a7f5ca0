"""What fine-tuning minimises: noise prediction with optional min-SNR weights, and alignment with CLIP features.

Functions of tensors and positions; no model is called here. Errors come per sample, unnormalised, so that
whoever trains divides their sum by the number of valid samples of the whole global batch.
Shape letters: B batch, C latent channels, H height, W width, D feature width.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from pydantic import Field
from torch import Tensor

from ddscale.diffusion import draws
from ddscale.diffusion.draws import Purpose
from ddscale.recipes import Settings
from ddscale.stream.device import send


class ObjectiveSettings(Settings):
    """The losses of fine-tuning, and when each of them counts."""

    schedule: Literal["combined", "sequential"] = "combined"
    """Both losses throughout (as the original), or alignment first and noise prediction after it."""
    alignment: Literal["none", "cosine", "infonce"] = "cosine"
    """1 - cosine similarity (as the original), or symmetric contrast with the samples of one micro-batch on all ranks:
    micro_batch_size times ranks are what each has to be told from."""
    alignment_target: Literal["image", "caption"] = "image"
    """CLIP features the EEG embedding is drawn to: the shown image's (as the original) or its caption's."""
    alignment_view: Literal["crop", "whole"] = "crop"
    """With the target `image`: the features of the crop that is to be generated, or of the whole image whatever the
    crop (as the original)."""
    alignment_weight: float = Field(default=1.0, ge=0)
    """Alignment's weight beside noise prediction."""
    alignment_share: float = Field(default=0.3, gt=0, lt=1)
    """With `sequential`: the part of all steps that trains alignment, before noise prediction begins."""
    temperature: float = Field(default=0.07, gt=0)
    """Of InfoNCE; smaller: only the nearest wrong candidates count."""
    min_snr_gamma: float | None = Field(default=None, gt=0)
    """Weight of a noise level is min(SNR, gamma) / SNR (Hang et al. 2023, who take 5); none: all levels equal."""
    condition_dropout: float = Field(default=0.1, ge=0, lt=1)
    """Part of the samples that train without EEG, as guidance at generation needs; the original has 0."""


class Weights(NamedTuple):
    """What the two losses count for at one step."""

    noise: float
    alignment: float


def weights_at(settings: ObjectiveSettings, step: int, steps: int) -> Weights:
    """Weights of the losses at `step` (counted from 0) of `steps`."""
    alignment = 0.0 if settings.alignment == "none" else settings.alignment_weight
    if settings.schedule == "combined" or alignment == 0:
        return Weights(1.0, alignment)
    return Weights(0.0, alignment) if step < settings.alignment_share * steps else Weights(1.0, 0.0)


class NoiseLevels:
    """How much noise each timestep has, and what is predicted: a diffusers scheduler's training side."""

    def __init__(self, signal_power: Tensor, prediction_type: str) -> None:
        """signal_power: (timesteps,) float, the scheduler's alphas_cumprod. Raises ValueError on an unknown type."""
        if prediction_type not in ("epsilon", "v_prediction"):
            raise ValueError(
                f"the scheduler's prediction_type is {prediction_type!r}: training knows epsilon and v_prediction."
            )
        self.signal_power = signal_power
        self.prediction_type = prediction_type

    @classmethod
    def of(cls, scheduler: Any) -> NoiseLevels:
        """The levels of any diffusers scheduler that has `alphas_cumprod`."""
        return cls(scheduler.alphas_cumprod.clone(), scheduler.config.prediction_type)


class Noised(NamedTuple):
    """A batch of latents with noise, and what the U-Net shall say of it."""

    latents: Tensor
    """(B, C, H, W), the U-Net's input."""
    timesteps: Tensor
    """(B,) int64."""
    target: Tensor
    """(B, C, H, W), the U-Net's output were it perfect."""
    snr: Tensor
    """(B,) signal power over noise power."""


def sample_latents(mean_BCHW: Tensor, std_BCHW: Tensor, positions_B: Tensor, seed: int) -> Tensor:
    """Latents drawn from the codec's Gaussians, not scaled; std 0 gives the mean."""
    drawn = draws.normal(seed, positions_B, Purpose.LATENT, tuple(mean_BCHW.shape[1:]))
    return mean_BCHW + std_BCHW * send(drawn, mean_BCHW.device).to(mean_BCHW)


def add_noise(levels: NoiseLevels, latents_BCHW: Tensor, positions_B: Tensor, seed: int) -> Noised:
    """Scaled latents with noise at uniformly drawn timesteps; both belong to (seed, position)."""
    device = latents_BCHW.device
    drawn = draws.normal(seed, positions_B, Purpose.NOISE, tuple(latents_BCHW.shape[1:]))
    noise = send(drawn, device).to(latents_BCHW)
    timesteps_B = draws.integers(seed, positions_B, Purpose.TIMESTEP, len(levels.signal_power))
    power_B = send(levels.signal_power[timesteps_B.to(levels.signal_power.device)], device)
    signal, spread = (p.sqrt().to(latents_BCHW.dtype)[:, None, None, None] for p in (power_B, 1 - power_B))
    epsilon = levels.prediction_type == "epsilon"
    return Noised(
        latents=signal * latents_BCHW + spread * noise,
        timesteps=send(timesteps_B, device),
        target=noise if epsilon else signal * noise - spread * latents_BCHW,
        snr=power_B / (1 - power_B),
    )


def noise_errors(
    prediction_BCHW: Tensor, noised: Noised, levels: NoiseLevels, min_snr_gamma: float | None = None
) -> Tensor:
    """Each sample's mean squared error of the prediction, weighted by its noise level: (B,) float32."""
    error_B = (prediction_BCHW.float() - noised.target.float()).square().mean(dim=(1, 2, 3))
    if min_snr_gamma is None:
        return error_B
    # Both are min(SNR, gamma) on the error of the predicted clean latents, expressed in what is predicted here.
    unit_B = noised.snr if levels.prediction_type == "epsilon" else noised.snr + 1
    return error_B * (noised.snr.clamp(max=min_snr_gamma) / unit_B).float()


def without_condition(settings: ObjectiveSettings, positions_B: Tensor, seed: int) -> Tensor:
    """Which samples train without their EEG: (B,) bool."""
    return draws.uniform(seed, positions_B, Purpose.DROPOUT) < settings.condition_dropout
