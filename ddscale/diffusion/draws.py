"""Random numbers that belong to a sample: pure functions of (seed, position), whatever batch the sample is in.

A sample's noise depends neither on its neighbours in the batch, nor on the number of ranks, nor on what was drawn
before; so nothing has to be saved to resume. Drawn on the CPU: a GPU's generator would give other numbers.
Shape letters: B batch.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

from ddscale.models.masking import splitmix64

_BITS = 2**64 - 1


class Purpose(IntEnum):
    """What a number is drawn for: draws for different purposes are independent."""

    NOISE = 0
    TIMESTEP = 1
    LATENT = 2
    CROP = 3
    DROPOUT = 4
    START = 5
    ORDER = 6
    VIEW = 7


def generator(seed: int, position: int, purpose: Purpose) -> np.random.Generator:
    """NumPy's generator for one position: Philox, counter-based, its key (seed, position), the same everywhere."""
    # As uint64 arrays: NumPy turns a list with an integer above 2**63 into floats, and rounds it.
    key = np.array([seed & _BITS, position & _BITS], dtype=np.uint64)
    counter = np.array([0, 0, 0, int(purpose)], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def normal(seed: int, positions_B: Tensor, purpose: Purpose, shape: tuple[int, ...]) -> Tensor:
    """Standard normal numbers (B, *shape), float32 on the CPU.

    positions_B: int64, each sample's place in the order of the data.
    """
    drawn = np.empty((len(positions_B), *shape), dtype=np.float32)
    for row, position in zip(drawn, positions_B.tolist(), strict=True):
        generator(seed, position, purpose).standard_normal(out=row, dtype=np.float32)
    return torch.from_numpy(drawn)


def uniform(seed: int, positions_B: Tensor, purpose: Purpose) -> Tensor:
    """One number in [0, 1) for each sample: (B,) float64, on the device of the positions."""
    stream = splitmix64(splitmix64(torch.tensor(_signed(seed))) + int(purpose))
    mixed_B = splitmix64(stream.to(positions_B.device) ^ splitmix64(positions_B + 1))
    # The upper 53 bits, which is what a float64 in [0, 1) holds exactly.
    return ((mixed_B >> 11) & (2**53 - 1)).double() * 2.0**-53


def integers(seed: int, positions_B: Tensor, purpose: Purpose, below: int) -> Tensor:
    """One integer in 0 .. below - 1 for each sample: (B,) int64."""
    return (uniform(seed, positions_B, purpose) * below).long()


def _signed(seed: int) -> int:
    """The int64 with the bits of `seed` taken modulo 2**64."""
    bits = seed & _BITS
    return bits - 2**64 if bits >= 2**63 else bits
