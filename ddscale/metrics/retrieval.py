"""EEG → image retrieval: is the picture that was seen among the k nearest to the EEG's embedding?

Legend: Q queries (EEG trials or their averages), N gallery pictures, D embedding width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ddscale.metrics.controls import Estimate, estimate

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
_QUERIES_AT_ONCE = 1024


@dataclass(frozen=True)
class Retrieval:
    """Ranks of the right pictures among `gallery` of them.

    higher (Q,): pictures more similar than the right one; tied (Q,): pictures just as similar.
    """

    higher: Integers
    tied: Integers
    gallery: int

    def hits(self, k: int) -> Floats:
        """Per query, 1 where the right picture is among the k nearest; a tie counts its chance under random order.

        So embeddings that are all alike score k/N, not 0 and not 1.
        """
        if not 1 <= k <= self.gallery:
            raise ValueError(f"top-{k} among {self.gallery} pictures: choose k between 1 and that.")
        return np.clip((k - self.higher) / (self.tied + 1), 0.0, 1.0)

    def accuracy(self, k: int, groups: NDArray[np.generic] | None = None, seed: int = 0) -> Estimate:
        """Top-k accuracy with its 95 % interval; groups (Q,): trials of one picture or subject."""
        return estimate(self.hits(k), groups, seed=seed, proportion=True)

    def chance(self, k: int) -> float:
        return k / self.gallery

    @property
    def median_rank(self) -> float:
        """Median position of the right picture, 1 the best."""
        return float(np.median(self.higher + self.tied / 2 + 1))


def retrieve(queries: NDArray[np.floating], gallery: NDArray[np.floating], right: Integers) -> Retrieval:
    """Rank gallery pictures by cosine similarity to each query.

    queries (Q, D), gallery (N, D), right (Q,): row of the gallery that each query should find.
    Raises ValueError on shapes that do not fit, values that are not finite, or rows out of range.
    """
    queries, gallery, right = np.asarray(queries), np.asarray(gallery), np.asarray(right)
    if queries.ndim != 2 or gallery.ndim != 2 or queries.shape[1] != gallery.shape[1]:
        raise ValueError(f"queries {queries.shape} and gallery {gallery.shape} must be (Q, D) and (N, D).")
    if right.shape != queries.shape[:1] or right.min(initial=0) < 0 or right.max(initial=0) >= len(gallery):
        raise ValueError(f"`right` must give one row of the gallery (0..{len(gallery) - 1}) for each query.")
    unit_gallery = _unit_rows(gallery, "gallery")
    higher, tied = np.empty(len(queries), np.int64), np.empty(len(queries), np.int64)
    for start in range(0, len(queries), _QUERIES_AT_ONCE):
        part = slice(start, start + _QUERIES_AT_ONCE)
        # Rounded, for matrix products give equal rows results that differ in the last bits.
        similarity = np.round(_unit_rows(queries[part], "queries") @ unit_gallery.T, 9)
        own = np.take_along_axis(similarity, right[part, None], axis=1)
        higher[part] = (similarity > own).sum(axis=1)
        tied[part] = (similarity == own).sum(axis=1) - 1
    return Retrieval(higher, tied, len(gallery))


def _unit_rows(rows: NDArray[np.floating], what: str) -> Floats:
    rows = rows.astype(np.float64)
    if not np.isfinite(rows).all():
        raise ValueError(f"{what} hold NaN or infinite values: the encoder that made them went wrong.")
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, length, out=np.zeros_like(rows), where=length > 0)
