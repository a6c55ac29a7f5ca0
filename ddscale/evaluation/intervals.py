"""Intervals of ratios of sums: R², mean errors and mean correlations, drawn over what is independent.

Legend: G groups (people, records), S statistics.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

RESAMPLES = 2_000


@dataclass(frozen=True)
class Ratios:
    """Statistics of the form sum of a / sum of b over groups, and their bootstrap draws.

    value (S,); draws (resamples, S): the same draws of groups for every statistic, so differences between two of
    them are paired. With one group there are no draws (resamples is 0).
    """

    value: Floats
    draws: Floats

    def interval(self, level: float = 0.95) -> tuple[Floats, Floats]:
        """Percentile interval of each statistic, two (S,) arrays; NaN where nothing could be drawn."""
        if not len(self.draws):
            unknown = np.full(self.value.shape, np.nan)
            return unknown, unknown
        tail = 100 * (1 - level) / 2
        low, high = np.nanpercentile(self.draws, [tail, 100 - tail], axis=0)
        return low, high

    def minus(self, other: Ratios) -> Ratios:
        """Paired differences."""
        return Ratios(self.value - other.value, self.draws - other.draws)


def ratios(a_GS: Floats, b_GS: Floats, resamples: int = RESAMPLES, seed: int = 0) -> Ratios:
    """Sum of a over sum of b, both (G, S), with bootstrap draws of whole groups with replacement.

    A statistic whose b sums to 0 is NaN. The draws depend on G and seed alone.
    """
    G = len(a_GS)
    if G < 2:
        return Ratios(_divide(a_GS.sum(axis=0), b_GS.sum(axis=0)), np.empty((0, a_GS.shape[1])))
    rng = np.random.default_rng(seed)
    draws = np.empty((resamples, a_GS.shape[1]))
    at_once = max(1, 4_000_000 // G)  # bounded memory: at most about 4 million counts at once
    for first in range(0, resamples, at_once):
        size = min(at_once, resamples - first)
        counts = rng.multinomial(G, np.full(G, 1 / G), size=size).astype(np.float64)
        draws[first : first + size] = _divide(counts @ a_GS, counts @ b_GS)
    return Ratios(_divide(a_GS.sum(axis=0), b_GS.sum(axis=0)), draws)


def _divide(a: Floats, b: Floats) -> Floats:
    return np.divide(a, b, out=np.full(np.shape(a), np.nan), where=b != 0)
