"""Masked autoencoder and encoder. Names are loaded when first used, so that importing stays light."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ddscale.models.baselines import channel_mean, cubic_spline, linear_interpolation
    from ddscale.models.config import EncoderConfig, MAEConfig
    from ddscale.models.dreamdiffusion import load_dreamdiffusion
    from ddscale.models.encoder import EEGEncoder, EncoderOutput
    from ddscale.models.encoder_folder import (
        describe,
        load_autoencoder,
        load_encoder,
        save_autoencoder,
        save_encoder,
    )
    from ddscale.models.masked_autoencoder import MAEOutput, MaskedAutoencoder

__all__ = [
    "EEGEncoder",
    "EncoderConfig",
    "EncoderOutput",
    "MAEConfig",
    "MAEOutput",
    "MaskedAutoencoder",
    "channel_mean",
    "cubic_spline",
    "describe",
    "linear_interpolation",
    "load_autoencoder",
    "load_dreamdiffusion",
    "load_encoder",
    "save_autoencoder",
    "save_encoder",
]

_HOMES = {
    "EEGEncoder": "encoder",
    "EncoderConfig": "config",
    "EncoderOutput": "encoder",
    "MAEConfig": "config",
    "MAEOutput": "masked_autoencoder",
    "MaskedAutoencoder": "masked_autoencoder",
    "channel_mean": "baselines",
    "cubic_spline": "baselines",
    "describe": "encoder_folder",
    "linear_interpolation": "baselines",
    "load_autoencoder": "encoder_folder",
    "load_dreamdiffusion": "dreamdiffusion",
    "load_encoder": "encoder_folder",
    "save_autoencoder": "encoder_folder",
    "save_encoder": "encoder_folder",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
