"""The toy's pictures: scikit-learn's 1,797 scanned handwritten digits, and a judge of generated ones.

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


class DigitClassifier:
    """Which digit a picture shows: a support vector machine on 8 x 8 grey values.

    It shares nothing with the toy's networks: neither weights nor features, only the real pictures it learns from.
    """

    def __init__(self, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
        """Learn from real pictures (n, 3, H, W) uint8, H and W multiples of 8."""
        from sklearn.svm import SVC

        self._machine = SVC(C=10.0, gamma="scale").fit(_features(images), labels)

    def predict(self, images: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Digit of each picture (n, 3, H, W) uint8: (n,), 0 to 9."""
        predicted: NDArray[np.int64] = self._machine.predict(_features(images))
        return predicted

    def accuracy(self, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> float:
        """Part of the pictures that show what `labels` say."""
        return float((self.predict(images) == labels).mean())


def _features(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    n, _, height, width = images.shape
    if height % _SCANNED or width % _SCANNED:
        raise ValueError(
            f"pictures of {height} x {width} cannot be reduced to {_SCANNED} x {_SCANNED} evenly: "
            f"resize them to a multiple of {_SCANNED}."
        )
    cells = images.mean(axis=1).reshape(n, _SCANNED, height // _SCANNED, _SCANNED, width // _SCANNED)
    features: NDArray[np.float64] = cells.mean(axis=(2, 4)).reshape(n, -1) / 255
    return features
