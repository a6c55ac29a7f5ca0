"""The hash functions that data order and masks rest on, written down so that no platform can change them.

Python's own hash() differs between processes, and NumPy's generators may change between versions; these are
fixed by their definition and held by golden values in the tests.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def splitmix64(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """One output of the SplitMix64 generator at state `x` (Steele, Lea and Flood 2014), elementwise, mod 2**64."""
    z = np.asarray(x, dtype=np.uint64) + _GAMMA
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def named_seed(*parts: object, bits: int) -> int:
    """A whole number below 2**bits (bits a multiple of 8) from the texts of `parts`: BLAKE2b, little-endian."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=bits // 8).digest(), "little")


def stream(state: int, numbers: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Outputs `numbers` (from 0) of the SplitMix64 generator that starts at `state`, each without the ones before."""
    return splitmix64(np.uint64(state) + numbers.astype(np.uint64) * _GAMMA)


def mask_seeds(seed: int, positions: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each position its output in a SplitMix64 stream owned by `seed`, without the lowest bit.

    positions: int64 array, not negative. Returns int64 of the same shape, 0 <= value < 2**63.
    """
    return (stream(named_seed("ddscale masks", seed, bits=64), positions) >> np.uint64(1)).astype(np.int64)


def below(seeds: NDArray[np.int64], limits: NDArray[np.int64], purpose: str) -> NDArray[np.int64]:
    """For each seed a whole number in [0, limit), independent between purposes.

    seeds, limits: int64 arrays of one shape, limits positive. The modulo's bias is below limit / 2**63.
    """
    salt = np.uint64(named_seed("ddscale", purpose, bits=64))
    mixed = splitmix64(seeds.astype(np.uint64) ^ salt) >> np.uint64(1)
    return mixed.astype(np.int64) % limits
