"""The pictures that simulated persons look at: scikit-learn's 1,797 scanned handwritten digits.

Shapes: N pictures.
"""

from __future__ import annotations

import io
from typing import NamedTuple

import numpy as np

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SIZE = 32
_SCANNED = 8
# Which digits are held out is the toy Stable Diffusion's rule (ddscale.diffusion.toy_digits), so that a picture it has
# learnt to draw is never one to be found from EEG; a test holds the two together.
_HELD_OUT = 0.2
_PHILOX_COUNTER = (0, 0, 0, 6)


class Digits(NamedTuple):
    """scans: (N, 8, 8) float, 0 to 1. labels: (N,), 0 to 9. held_out: (N,) bool."""

    scans: np.ndarray
    labels: np.ndarray
    held_out: np.ndarray


def load() -> Digits:
    """All digits, in scikit-learn's order. Raises ModuleNotFoundError without scikit-learn."""
    try:
        from sklearn import datasets
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "The pictures of a simulated-evoked source are scikit-learn's digits: pip install scikit-learn."
        ) from None
    scans, labels = datasets.load_digits(return_X_y=True)
    held_out = np.zeros(len(labels), dtype=bool)
    draw = np.random.Generator(
        np.random.Philox(key=np.zeros(2, np.uint64), counter=np.array(_PHILOX_COUNTER, np.uint64))
    )
    for label in range(10):
        rows = np.flatnonzero(labels == label)
        held_out[draw.permutation(rows)[: round(_HELD_OUT * len(rows))]] = True
    return Digits(scans.reshape(-1, _SCANNED, _SCANNED) / 16, labels, held_out)


def caption_of(label: int) -> str:
    """What is said of a digit's picture."""
    return f"a handwritten {NAMES[label]}"


def png(scan: np.ndarray) -> bytes:
    """A scan (8, 8) as a picture of 32 x 32, enlarged as the toy's pictures are."""
    from PIL import Image

    grey = (scan * 255).round().astype(np.uint8)
    enlarged = Image.fromarray(grey).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    content = io.BytesIO()
    Image.merge("RGB", [enlarged] * 3).save(content, "PNG")
    return content.getvalue()
