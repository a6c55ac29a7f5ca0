"""Is a generated picture recognisably the one that was shown? Two-way identification and n-way top-k accuracy.

Legend: B generated pictures, N pictures to tell apart, D features, K classes.
"""

from __future__ import annotations

import numpy as np
import scipy.stats
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


class Gallery:
    """The pictures that were shown, by features, for two-way identification of generated ones.

    Likeness is Pearson's correlation over features (features that do not vary have 0); likenesses within 1e-6
    count as equal.
    """

    def __init__(self, features: NDArray[np.floating]) -> None:
        """features (N, D), float32 or float64; a copy of that size is kept."""
        if len(features) < 2:
            raise ValueError(
                f"two-way identification needs two or more pictures to tell apart, got {len(features)}."
            )
        self._rows = _centred_unit_rows(features)

    def two_way(self, generated: NDArray[np.floating], shown: Integers) -> Floats:
        """How often the picture shown is more like the generated one than another picture is; chance 0.5.

        generated: features (B, D). shown (B,): row of the gallery that each generated picture was made for.
        Each generated picture meets the N − 1 others. Equal likeness counts one half, so that a generator that
        ignores its input scores 0.5, not more or less. Returns win rates (B,).
        """
        likeness = np.round(_centred_unit_rows(generated) @ self._rows.T, 6)
        own = np.take_along_axis(likeness, shown[:, None], axis=1)
        # The own picture equals itself: taken out of the ties.
        wins = (likeness < own).sum(axis=1) + 0.5 * ((likeness == own).sum(axis=1) - 1)
        return wins / (len(self._rows) - 1)


def n_way_top_k(
    scores: NDArray[np.floating],
    classes: Integers,
    positions: Integers,
    n_way: int = 50,
    top_k: int = 1,
    trials: int = 50,
    seed: int = 0,
) -> Floats:
    """DreamDiffusion's accuracy: is the right class among the top k of itself and n − 1 random other classes?

    scores: (B, K) a classifier's class scores of the generated pictures. classes (B,): the right ones (the paper
    takes the classifier's own verdict on the picture shown). positions (B,): the pictures' numbers in the test
    set; with `seed` they fix the drawn classes, so that batches and ranks do not matter.
    Returns, per picture, the fraction of `trials` won; chance is k / n. Ties are broken at random.
    `expected_n_way_top_k` is what this converges to.
    """
    _check(scores, classes, n_way, top_k)
    others = scores.shape[1] - 1
    result = np.empty(len(scores))
    for row, (score, right, position) in enumerate(zip(scores, classes, positions, strict=True)):
        rng = np.random.default_rng((seed, int(position)))
        draws = rng.random((trials, others)).argpartition(n_way - 2, axis=1)[:, : n_way - 1]
        drawn = np.delete(score, right)[draws]
        tied = (drawn == score[right]).sum(axis=1)
        rank = (drawn > score[right]).sum(axis=1) + rng.integers(0, tied + 1)
        result[row] = (rank < top_k).mean()
    return result


def expected_n_way_top_k(
    scores: NDArray[np.floating], classes: Integers, n_way: int = 50, top_k: int = 1
) -> Floats:
    """The limit of `n_way_top_k` for many trials, in closed form; (B,).

    If g of the K − 1 other classes score higher, the number of those among n − 1 drawn without replacement is
    hypergeometric, and the right class is in the top k when it is below k.
    """
    _check(scores, classes, n_way, top_k)
    own = np.take_along_axis(scores, classes[:, None], axis=1)
    higher = (scores > own).sum(axis=1)
    tied = (scores == own).sum(axis=1) - 1
    won = [
        # Breaking ties at random puts 0..t of the t tied classes before the right one, all equally likely.
        scipy.stats.hypergeom.cdf(top_k - 1, scores.shape[1] - 1, g + np.arange(t + 1), n_way - 1).mean()
        for g, t in zip(higher, tied, strict=True)
    ]
    return np.asarray(won)


def _check(scores: NDArray[np.floating], classes: Integers, n_way: int, top_k: int) -> None:
    if not np.isfinite(scores).all():
        raise ValueError("class scores are not finite: look at the pictures or the classifier's weights.")
    if not 2 <= n_way <= scores.shape[1]:
        raise ValueError(
            f"{n_way}-way accuracy among {scores.shape[1]} classes: choose n between 2 and that."
        )
    if not 1 <= top_k <= n_way:
        raise ValueError(f"top-{top_k} of {n_way}: choose k between 1 and n.")
    if len(classes) != len(scores):
        raise ValueError(f"{len(scores)} pictures' scores but {len(classes)} classes.")


def _centred_unit_rows(features: NDArray[np.floating]) -> NDArray[np.floating]:
    """Rows shifted to mean 0 and scaled to length 1, in their own precision; rows that do not vary become 0."""
    mean = features.mean(axis=1, keepdims=True, dtype=np.float64)
    rows = features - mean.astype(features.dtype)
    # What is left of a constant after subtracting its rounded mean is not variation.
    floor = 4 * np.finfo(rows.dtype).eps * np.abs(features).max(axis=1, keepdims=True)
    rows[np.broadcast_to(np.abs(rows).max(axis=1, keepdims=True) <= floor, rows.shape)] = 0
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, length, out=np.zeros_like(rows), where=length > 0)
