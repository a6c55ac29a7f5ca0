"""The encoder: windows to tokens and to one vector, usable without the decoder it was pretrained with.

Shape letters: B batch, T samples, C channels, N tokens, V visible tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ddscale.models.config import EncoderConfig, MAEConfig
from ddscale.models.embedding import LearnedToken, PatchProjection, Positions, patchify, take_tokens
from ddscale.models.transformer import Transformer


class EncoderOutput(NamedTuple):
    """What the encoder gives for a batch of windows."""

    tokens: Tensor
    """(B, N, D), one for each patch of `patch` samples, in the order of time."""
    pooled: Tensor
    """(B, D), the mean over tokens."""


class TokenEncoder(nn.Module):
    """Patch embedding, positions, class token and transformer: what pretraining and later use share."""

    def __init__(self, config: EncoderConfig, activation_checkpointing: bool = False) -> None:
        super().__init__()
        self.config = config
        self.projection = PatchProjection(config.patch_values, config.width)
        self.positions = Positions(config.n_tokens, config.width)
        self.class_token = LearnedToken(config.width) if config.class_token else None
        self.transformer = Transformer(
            config.width, config.depth, config.heads, config.mlp_ratio, activation_checkpointing
        )

    def forward(self, x_BTC: Tensor, visible_BV: Tensor | None = None) -> Tensor:
        """Encode all tokens, or only those numbered by `visible_BV`.

        Returns (B, 1 + V, D) with the class token first, or (B, V, D) for an encoder without one.
        Raises ValueError when the windows are not (T, C) as configured.
        """
        check_windows(x_BTC, self.config)
        patches_BNP = patchify(x_BTC, self.config.patch)
        if visible_BV is not None:
            # Taken before the projection: masked patches cost nothing, and no gradient passes the index.
            patches_BNP = take_tokens(patches_BNP, visible_BV)
        tokens_BVD = self.projection(patches_BNP.to(self.projection.weight.dtype))
        tokens_BVD = self.positions(tokens_BVD, visible_BV)
        if self.class_token is not None:
            tokens_BVD = torch.cat([self.class_token(tokens_BVD.shape[0], 1), tokens_BVD], dim=1)
        return self.transformer(tokens_BVD)


class EEGEncoder(TokenEncoder):
    """A pretrained encoder as it is used afterwards; its weights are named as in the autoencoder."""

    def forward(self, x_BTC: Tensor) -> EncoderOutput:  # type: ignore[override]
        """x_BTC: float windows (B, T, C), normalised as in pretraining; ValueError for another shape."""
        sequence_BND = super().forward(x_BTC)
        tokens_BND = sequence_BND if self.class_token is None else sequence_BND[:, 1:]
        return EncoderOutput(tokens_BND, tokens_BND.mean(dim=1))

    @classmethod
    def from_autoencoder(cls, config: MAEConfig, state: Mapping[str, Tensor]) -> EEGEncoder:
        """The encoder out of an autoencoder's state dict, whose other weights are left.

        Raises KeyError when a weight of the encoder is missing.
        """
        encoder = cls(config.encoder)
        encoder.load_state_dict({name: state[f"encoder.{name}"] for name in encoder.state_dict()})
        return encoder


def check_windows(x_BTC: Tensor, config: EncoderConfig | MAEConfig) -> None:
    """Raise ValueError unless the batch is (B, n_samples, n_channels)."""
    expected = (config.n_samples, config.n_channels)
    if x_BTC.ndim != 3 or tuple(x_BTC.shape[1:]) != expected:
        raise ValueError(
            f"windows have shape {tuple(x_BTC.shape)}, the model takes (batch, {expected[0]} samples, "
            f"{expected[1]} channels), time before channels: set the model's n_samples and n_channels to the "
            "stream's window_samples and n_channels."
        )
