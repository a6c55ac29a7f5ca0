"""Windows to tokens: patches, their linear embedding and fixed sine-cosine positions.

Shape letters: B batch, T samples, C channels, N tokens, V visible tokens, D width, P values per patch.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ddscale.models.transformer import XavierLinear


def patchify(x_BTC: Tensor, patch: int) -> Tensor:
    """(B, T, C) to (B, T / patch, patch * C): a view, since a time-major patch lies in one piece."""
    B, T, C = x_BTC.shape
    return x_BTC.reshape(B, T // patch, patch * C)


def unpatchify(patches_BNP: Tensor, n_channels: int) -> Tensor:
    """(B, N, patch * C) back to (B, T, C)."""
    return patches_BNP.reshape(patches_BNP.shape[0], -1, n_channels)


def take_tokens(x_BNP: Tensor, tokens_BV: Tensor) -> Tensor:
    """The tokens numbered by `tokens_BV`, (B, V, P), of x (B, N, P)."""
    rows_B1 = torch.arange(x_BNP.shape[0], device=x_BNP.device)[:, None]
    return x_BNP[rows_B1, tokens_BV]


def sine_cosine_positions(n_tokens: int, width: int) -> Tensor:
    """DreamDiffusion's fixed positions, float32 (1 + n_tokens, width), the class token's (zeros) first.

    Token p has [sin(p w_k), cos(p w_k)] with w_k = 10000 ** (-k / (width / 2)), in float64 before rounding.
    """
    # NumPy, because deepspeed.zero.Init replaces torch's constructors by ones that round to half precision.
    frequencies = 1.0 / 10000.0 ** (np.arange(width // 2) / (width / 2.0))
    angles = np.arange(n_tokens)[:, None] * frequencies
    table = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    return torch.from_numpy(np.vstack([np.zeros((1, width)), table]).astype(np.float32))


class Positions(nn.Module):
    """Adds its fixed position to each token. The table stays out of checkpoints: the sizes determine it."""

    table: Tensor

    def __init__(self, n_tokens: int, width: int) -> None:
        super().__init__()
        self.register_buffer("table", sine_cosine_positions(n_tokens, width), persistent=False)

    def reset_parameters(self) -> None:
        """Refill the table, after the module was built on the meta device."""
        self.table.copy_(sine_cosine_positions(self.table.shape[0] - 1, self.table.shape[1]))

    def forward(self, x_BVD: Tensor, tokens_BV: Tensor | None = None) -> Tensor:
        """x plus the positions of the tokens numbered by `tokens_BV`, or of all tokens in order.

        The class token does not come here: its position is zero.
        """
        # In x's precision: built under deepspeed.zero.Init, the table is float32 beside half-precision weights.
        table_ND = self.table[1:].to(x_BVD.dtype)
        return x_BVD + (table_ND if tokens_BV is None else table_ND[tokens_BV])


class LearnedToken(nn.Module):
    """One learned token: the class token or the mask token."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.empty(1, 1, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.token, std=0.02)

    def forward(self, batch: int, n_tokens: int) -> Tensor:
        """The token repeated: a (batch, n_tokens, D) view."""
        return self.token.expand(batch, n_tokens, -1)


class PatchProjection(XavierLinear):
    """Linear embedding of a patch, initialised as the original's convolution: normal, std 0.02."""

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=0.02)
        if self.bias is not None:
            nn.init.zeros_(self.bias)
