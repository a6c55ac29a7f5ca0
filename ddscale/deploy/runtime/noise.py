"""Starting noise without torch: number for number what `ddscale generate` draws with torch's CPU generator.

A picture's noise belongs to (seed, window's number, sample's number) and to nothing else: not to the batch, the
steps or the sampler. Its generator is the Mersenne Twister (NumPy's RandomState, whose stream is frozen), seeded as
torch seeds it; normal numbers are made of its output in torch's order, 16 at a time. The last digit may differ from
torch's, whose logarithm and cosine are approximations.
Shape letters: G pictures, c, h, w a latent's sizes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Numbers as ddscale.diffusion.draws has them: what a picture's own seed is drawn for.
_START = 5
_SAMPLES_PER_WINDOW = 2**20
_BITS = 2**64 - 1
_LANE = 8


def picture_seed(seed: int, window: int, sample: int) -> int:
    """Seed, below 2**32, of one picture's noise.

    Raises ValueError when a number is negative or a window has too many samples.
    """
    if window < 0 or not 0 <= sample < _SAMPLES_PER_WINDOW:
        raise ValueError(
            f"window {window}, sample {sample}: windows count from 0, samples from 0 to {_SAMPLES_PER_WINDOW - 1}."
        )
    stream = _splitmix64(_splitmix64(seed & _BITS) + _START)
    mixed = _splitmix64(stream ^ _splitmix64(window * _SAMPLES_PER_WINDOW + sample + 1))
    return mixed >> 32


class Noise:
    """The streams of noise of a batch of pictures, one for each; drawing goes on where it stopped."""

    def __init__(self, seeds: Sequence[int]) -> None:
        """seeds: of picture_seed."""
        # The old generator on purpose: it is the one that is the same as torch's, and that never changes.
        self._streams = [np.random.RandomState(seed) for seed in seeds]

    def draw(self, shape_chw: tuple[int, ...]) -> np.ndarray:
        """The next standard normal numbers (G, c, h, w), float32. Raises ValueError for fewer than 16 a picture."""
        return np.stack([_normal(stream, int(np.prod(shape_chw))) for stream in self._streams]).reshape(
            len(self._streams), *shape_chw
        )


def starting_noise(seed: int, windows: Sequence[int], samples: int, shape_chw: tuple[int, ...]) -> np.ndarray:
    """Noise (windows x samples, c, h, w) that pictures start from, those of one window beside each other.

    Given to EEGToImagePipeline as `latents`, PyTorch draws the pictures that the runtime draws.
    """
    return Noise([picture_seed(seed, w, s) for w in windows for s in range(samples)]).draw(shape_chw)


def _normal(stream: np.random.RandomState, count: int) -> np.ndarray:
    if count < 2 * _LANE:
        raise ValueError(f"latents of {count} numbers: noise is drawn for {2 * _LANE} or more.")
    numbers = np.empty(count, np.float32)
    full = count - count % (2 * _LANE)
    numbers[:full] = _box_muller(_uniform(stream, count)[:full])
    if full < count:
        # torch fills up by drawing the last 16 anew.
        numbers[-2 * _LANE :] = _box_muller(_uniform(stream, 2 * _LANE))
    return numbers


def _uniform(stream: np.random.RandomState, count: int) -> np.ndarray:
    """Numbers in [0, 1) with 24 bits, of 32 drawn."""
    drawn = np.frombuffer(stream.bytes(4 * count), dtype="<u4")
    return (drawn & np.uint32(2**24 - 1)).astype(np.float32) * np.float32(2.0**-24)


def _box_muller(uniform: np.ndarray) -> np.ndarray:
    """In groups of 16: the first eight with the second eight make eight cosines, then eight sines."""
    first, second = uniform.reshape(-1, 2, _LANE).swapaxes(0, 1)
    radius = np.sqrt(-2 * np.log(1 - first.astype(np.float64)))
    # Rounded to float32 where torch has float32, then exact.
    angle = (np.float32(2 * np.pi) * second).astype(np.float64)
    pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return pairs.astype(np.float32).ravel()


def _splitmix64(x: int) -> int:
    """splitmix64's output function, as ddscale.models.masking has it in torch."""
    x &= _BITS
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & _BITS
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & _BITS
    return x ^ (x >> 31)
