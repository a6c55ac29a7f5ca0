"""DreamDiffusion's masked autoencoder for EEG: hide most tokens of a window, predict their samples.

The encoder sees the visible tokens only. The decoder gets them in the order visible-then-masked, each with
its position added, instead of unshuffled into time: attention does not depend on the order of its tokens, so
the mathematics is the original's, without a gather to differentiate, and the predictions are one slice.
Shape letters: B batch, T samples, C channels, N tokens, V visible, M masked, D width, P values per patch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ddscale.models.config import MAEConfig
from ddscale.models.embedding import LearnedToken, Positions, patchify, take_tokens, unpatchify
from ddscale.models.encoder import TokenEncoder
from ddscale.models.masking import random_mask
from ddscale.models.transformer import Transformer, XavierLinear


class MAEOutput(NamedTuple):
    """Errors of one micro-batch, unnormalised: the loss is the sum of the sums over the sum of the counts."""

    sum_squared_error: Tensor
    """Scalar float32, over the masked values (all channels) of the valid windows; carries the gradient."""
    masked_values: Tensor
    """Scalar float32, how many values that sum has."""
    per_sample_mse: Tensor
    """(B,) float32 without gradient, each window's mean squared error over its masked values."""


class Decoder(nn.Module):
    """Light transformer over all tokens that predicts the patches of the masked ones."""

    def __init__(self, config: MAEConfig) -> None:
        super().__init__()
        width = config.decoder_width
        self.embed = XavierLinear(config.width, width)
        self.mask_token = LearnedToken(width)
        self.positions = Positions(config.n_tokens, width)
        self.transformer = Transformer(
            width,
            config.decoder_depth,
            config.decoder_heads,
            config.mlp_ratio,
            config.activation_checkpointing,
        )
        self.predict = XavierLinear(width, config.patch_values)

    def forward(self, latent_BLD: Tensor, visible_BV: Tensor, masked_BM: Tensor) -> Tensor:
        """latent_BLD: the encoder's output (B, 1 + V, D), class token first. Returns patches (B, M, P)."""
        B, M = masked_BM.shape
        seen_BLD = self.embed(latent_BLD)
        class_B1D, visible_BVD = seen_BLD[:, :1], seen_BLD[:, 1:]
        x_BND = torch.cat(
            [
                class_B1D,
                self.positions(visible_BVD, visible_BV),
                self.positions(self.mask_token(B, M), masked_BM),
            ],
            dim=1,
        )
        x_BND = self.transformer(x_BND)
        return self.predict(x_BND[:, -M:])


class MaskedAutoencoder(nn.Module):
    """Encoder on visible tokens, light decoder, squared error on masked tokens.

    All weights lie in submodules and are touched in their forward alone, so ZeRO-3 may partition them.
    """

    def __init__(self, config: MAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = TokenEncoder(config.encoder, config.activation_checkpointing)
        self.decoder = Decoder(config)

    def forward(self, x_BTC: Tensor, mask_seeds_B: Tensor, valid_B: Tensor | None = None) -> MAEOutput:
        """Errors of the predictions for a batch.

        x_BTC: float windows, time-major, normalised. mask_seeds_B: int64, decides each window's mask.
        valid_B: bool; windows with False (unreadable ones, padding) add neither error nor count.
        Raises ValueError when the windows are not (T, C) as configured.
        """
        visible_BV, masked_BM = self._mask(mask_seeds_B)
        prediction_BMP = self.decoder(self.encoder(x_BTC, visible_BV), visible_BV, masked_BM)
        target_BMP = take_tokens(patchify(x_BTC, self.config.patch), masked_BM)
        # In float32 whatever the model's precision: half-precision sums of millions of squares are no loss.
        error_B = (prediction_BMP.float() - target_BMP.float()).square().sum(dim=(1, 2))
        values_per_window = masked_BM.shape[1] * self.config.patch_values
        if valid_B is None:
            counted_B, n_windows = error_B, torch.full_like(error_B[0].detach(), error_B.shape[0])
        else:
            counted_B, n_windows = torch.where(valid_B, error_B, 0.0), valid_B.sum().float()
        return MAEOutput(counted_B.sum(), n_windows * values_per_window, error_B.detach() / values_per_window)

    @torch.no_grad()
    def reconstruct(self, x_BTC: Tensor, mask_seeds_B: Tensor) -> tuple[Tensor, Tensor]:
        """The windows with their masked tokens replaced by the predictions.

        Returns (prediction (B, T, C) float32, masked (B, N) bool). Raises ValueError as forward does.
        """
        visible_BV, masked_BM = self._mask(mask_seeds_B)
        prediction_BMP = self.decoder(self.encoder(x_BTC, visible_BV), visible_BV, masked_BM)
        patches_BNP = patchify(x_BTC.float(), self.config.patch).clone()
        rows_B1 = torch.arange(x_BTC.shape[0], device=x_BTC.device)[:, None]
        patches_BNP[rows_B1, masked_BM] = prediction_BMP.float()
        masked_BN = torch.zeros(patches_BNP.shape[:2], dtype=torch.bool, device=x_BTC.device)
        masked_BN[rows_B1, masked_BM] = True
        return unpatchify(patches_BNP, self.config.n_channels), masked_BN

    def _mask(self, mask_seeds_B: Tensor) -> tuple[Tensor, Tensor]:
        return random_mask(mask_seeds_B, self.config.n_tokens, self.config.n_visible)
