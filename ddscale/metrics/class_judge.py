"""Whether a generated picture shows the right class, judged by a classifier that knows only real pictures.

Shape letters: n pictures, G generated ones, H height, W width.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddscale.metrics.controls import wilson_interval

Pixels = NDArray[np.uint8]
_CELLS = 8
LARGEST = 64
"""Side in pixels above which so simple a judge is not used; there n-way top-k judges by an ImageNet classifier."""


@dataclass(frozen=True)
class Accuracy:
    """How many of `judged` pictures show the right class, with Wilson's 95 % interval."""

    value: float
    low: float
    high: float
    judged: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, right: NDArray[np.bool_]) -> Accuracy:
        low, high = wilson_interval(int(right.sum()), len(right))
        return cls(float(right.mean()), low, high, len(right))


class ClassJudge:
    """A support vector machine on 8 x 8 grey values: it shares neither weights nor features with any generator."""

    def __init__(self, pictures: Pixels, labels: list[str]) -> None:
        """Learn from real pictures (n, 3, H, W), which must not be those that are judged.

        Raises ValueError when they are too large for it, too few or all of one class.
        """
        from sklearn.svm import SVC

        if max(pictures.shape[-2:]) > LARGEST:
            raise ValueError(f"pictures of {pictures.shape[-2]} x {pictures.shape[-1]} are too large for it.")
        if len(set(labels)) < 2 or len(labels) < 10 * len(set(labels)):
            raise ValueError(
                f"{len(labels)} pictures of {len(set(labels))} classes are too few to learn from."
            )
        self._machine = SVC(C=10.0, gamma="scale").fit(_features(pictures), labels)
        self.learned_from = len(labels)

    def predict(self, pictures: Pixels) -> list[str]:
        """The label of each picture (n, 3, H, W) uint8."""
        return [str(label) for label in self._machine.predict(_features(pictures))]

    def right(self, pictures: Pixels, labels: list[str]) -> NDArray[np.bool_]:
        """(n,) whether each picture (n, 3, H, W) shows what its label says."""
        return np.array(self.predict(pictures)) == np.array(labels)


def _features(pictures: Pixels) -> NDArray[np.float64]:
    from PIL import Image

    grey = pictures.mean(axis=1).round().astype(np.uint8)
    reduced = [
        np.asarray(Image.fromarray(picture).resize((_CELLS, _CELLS), Image.Resampling.BOX))
        for picture in grey
    ]
    return np.stack(reduced).reshape(len(grey), -1) / 255
