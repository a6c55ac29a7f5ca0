"""The toy's pictures: scikit-learn's 1,797 scanned handwritten digits.

Shape letters: n pictures, H height, W width.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ddscale.diffusion.draws import Purpose, generator

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
HELD_OUT = 0.2
_SCANNED = 8


class Digits(NamedTuple):
    """Real digits, enlarged."""

    images: NDArray[np.uint8]
    """(n, 3, H, W), three equal planes of grey."""
    labels: NDArray[np.int64]
    """(n,), 0 to 9."""
    held_out: NDArray[np.bool_]
    """(n,), a fifth of each class that nothing is trained on; always the same."""


def load_digits(size: int = 32) -> Digits:
    """All digits as size x size pictures, in scikit-learn's order.

    Raises ModuleNotFoundError when scikit-learn, which ships them, is not installed.
    """
    try:
        from sklearn import datasets
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "The toy's pictures are scikit-learn's digits: pip install scikit-learn."
        ) from None
    scans, labels = datasets.load_digits(return_X_y=True)
    grey = (scans.reshape(-1, _SCANNED, _SCANNED) * (255 / 16)).round().astype(np.uint8)
    enlarged = np.stack([_enlarge(scan, size) for scan in grey])
    held_out = np.zeros(len(labels), dtype=bool)
    draw = generator(0, 0, Purpose.ORDER)
    for label in range(10):
        rows = np.flatnonzero(labels == label)
        held_out[draw.permutation(rows)[: round(HELD_OUT * len(rows))]] = True
    return Digits(np.repeat(enlarged[:, None], 3, axis=1), labels.astype(np.int64), held_out)


def caption_of(label: int) -> str:
    """What is said of a digit's picture."""
    return f"a handwritten {NAMES[label]}"


def _enlarge(scan: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(scan).resize((size, size), Image.Resampling.BICUBIC))
