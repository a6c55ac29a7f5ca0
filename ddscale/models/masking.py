"""Which tokens are hidden: a pure function of a window's masking seed, integer-exact on every device.

No random generator takes part, so a window's mask depends neither on its place in the batch, nor on the
number of ranks, nor on what was drawn before it; and nothing has to be saved to resume.
"""

from __future__ import annotations

import torch
from torch import Tensor

# splitmix64 (Steele, Lea & Flood 2014), its unsigned constants written as the int64 of the same bits: torch
# multiplies and adds int64 modulo 2**64 on every device.
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX_2 = 0x94D049BB133111EB - 2**64


def random_mask(mask_seeds_B: Tensor, n_tokens: int, n_visible: int) -> tuple[Tensor, Tensor]:
    """Split each window's tokens into visible and masked ones, uniformly at random by its seed.

    mask_seeds_B: int64, one seed per window; equal seeds give equal masks.
    Returns (visible (B, n_visible), masked (B, n_tokens - n_visible)): int64 token numbers, ascending.
    Raises ValueError when the seeds are not int64 or n_visible is not between 0 and n_tokens.
    """
    if mask_seeds_B.dtype != torch.int64:
        raise ValueError(f"masking seeds are {mask_seeds_B.dtype}, expected torch.int64.")
    if not 0 <= n_visible <= n_tokens:
        raise ValueError(f"cannot keep {n_visible} of {n_tokens} tokens visible.")
    steps_N = torch.arange(1, n_tokens + 1, dtype=torch.int64, device=mask_seeds_B.device) * _GOLDEN
    # The seed is mixed before the token number is added: windows with neighbouring seeds share no keys.
    keys_BN = splitmix64(splitmix64(mask_seeds_B)[:, None] + steps_N)
    order_BN = keys_BN.argsort(dim=1, stable=True)
    visible_BV = order_BN[:, :n_visible].sort(dim=1).values
    masked_BM = order_BN[:, n_visible:].sort(dim=1).values
    return visible_BV, masked_BM


def splitmix64(x: Tensor) -> Tensor:
    """splitmix64's output function, element-wise; int64 stands for the unsigned integer of the same bits."""
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    # >> on int64 copies the sign bit downwards; the bits it brought in are cleared.
    return (x >> bits) & ((1 << (64 - bits)) - 1)
