"""Masked autoencoder and encoder. Names are loaded when first used, so that importing stays light."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ddscale.models.config import EncoderConfig, MAEConfig
    from ddscale.models.encoder import EEGEncoder, EncoderOutput
    from ddscale.models.masked_autoencoder import MAEOutput, MaskedAutoencoder

_HOMES = {
    "EEGEncoder": "encoder",
    "EncoderConfig": "config",
    "EncoderOutput": "encoder",
    "MAEConfig": "config",
    "MAEOutput": "masked_autoencoder",
    "MaskedAutoencoder": "masked_autoencoder",
}

__all__ = ["EEGEncoder", "EncoderConfig", "EncoderOutput", "MAEConfig", "MAEOutput", "MaskedAutoencoder"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
