"""What a result is held against: chance, shuffled pairs, and the interval that the number of pictures allows.

Legend: Q values, one per trial or generated picture; N pictures; G groups of values that belong together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.stats
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval.

    value; low, high: 95 % interval; values: how many went in; groups: how many independent ones these are.
    """

    value: float
    low: float
    high: float
    values: int
    groups: int


def estimate(
    values: NDArray[np.floating],
    groups: NDArray[np.generic] | None = None,
    resamples: int = 5_000,
    seed: int = 0,
    level: float = 0.95,
    proportion: bool = False,
) -> Estimate:
    """Mean of values (Q,) with its percentile bootstrap interval.

    groups (Q,): what the values share: the picture that several samples were made for, or the subject. Whole
    groups are drawn, for samples of one picture tell little more than one sample does; drawing them singly
    gives intervals that are too narrow. None: each value stands for itself.
    proportion: the values lie between 0 and 1. Where all groups agree, drawing them again tells nothing, and the
    interval is Wilson's on the number of groups.
    Raises ValueError on no values or values that are not finite. One group alone has no interval (NaN).
    """
    sums = np.asarray(values, np.float64)
    if sums.ndim != 1 or not len(sums):
        raise ValueError(f"a mean needs a list of at least one value, got shape {sums.shape}.")
    if not np.isfinite(sums).all():
        raise ValueError(
            f"{(~np.isfinite(sums)).sum()} of {len(sums)} values are not finite: they have no mean."
        )
    mean, counts = float(sums.mean()), np.ones(len(sums))
    if groups is not None:
        if len(groups) != len(sums):
            raise ValueError(f"{len(sums)} values but {len(groups)} groups.")
        members = np.unique(groups, return_inverse=True)[1]
        sums, counts = _sums_by(members, sums), _sums_by(members, counts)
    low, high = float("nan"), float("nan")
    if proportion and (sums.min() < 0 or (sums > counts + 1e-9).any()):
        raise ValueError("proportions lie between 0 and 1, not all of these values do.")
    if proportion and len(sums) > 1 and np.ptp(sums / counts) < 1e-12:
        low, high = wilson_interval(min(mean * len(sums), len(sums)), len(sums), level)
    elif len(sums) > 1:
        means = _bootstrap_means(sums, counts, resamples, seed)
        tail = 100 * (1 - level) / 2
        low, high = (float(bound) for bound in np.percentile(means, [tail, 100 - tail]))
    return Estimate(mean, low, high, len(values), len(sums))


def difference(
    values: NDArray[np.floating],
    others: NDArray[np.floating],
    groups: NDArray[np.generic],
    seed: int = 0,
    proportion: bool = False,
) -> Estimate:
    """Mean of values - others (Q,), taken pair by pair, with its interval over groups; pairs without both are left out.

    The interval of a difference is narrower than those of its two sides suggest, for what is hard in one is hard in
    the other. proportion: both lie between 0 and 1; where all groups agree, the interval is Wilson's of how often
    they might not have.
    """
    both = np.isfinite(values) & np.isfinite(others)
    found = estimate((values - others)[both], groups[both], seed=seed)
    if proportion and found.groups > 1 and found.low == found.high:
        # Nothing is known of the groups that were not drawn but that at most this part of them is another.
        unlike = wilson_interval(0, found.groups)[1]
        low, high = found.value - unlike * (1 + found.value), found.value + unlike * (1 - found.value)
        return Estimate(found.value, low, high, found.values, found.groups)
    return found


def wilson_interval(successes: float, trials: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion: for counts of right answers, and sound near 0 and 1.

    successes may be a fraction, where several answers of one trial are counted together.
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(
            f"{successes} successes in {trials} trials: a proportion needs 0 ≤ successes ≤ trials ≥ 1."
        )
    z, part = scipy.stats.norm.ppf(0.5 + level / 2), successes / trials
    centre = part + z**2 / (2 * trials)
    half = z * np.sqrt(part * (1 - part) / trials + z**2 / (4 * trials**2))
    low, high = ((centre + side) / (1 + z**2 / trials) for side in (-half, half))
    # Of none and of all, rounding would leave a bound just beside 0 or 1.
    return (0.0 if successes == 0 else float(low)), (1.0 if successes == trials else float(high))


def shuffled_pairs(n: int, seed: int = 0, groups: NDArray[np.generic] | None = None) -> NDArray[np.int64]:
    """A random pairing of n pictures in which none keeps its own: for the shuffled-pairs control; (n,).

    Scores of generated pictures against these pictures instead of their own are what a generator gets that
    knows the data set and nothing of the trial. Without groups every such pairing is equally likely.
    groups (n,): what must differ between the two of a pair, as the pictures that trials saw.
    Raises ValueError when there is no such pairing.
    """
    if n < 2:
        raise ValueError(f"shuffling pairs needs at least two pictures, got {n}.")
    rng = np.random.default_rng(seed)
    if groups is not None:
        return _between_groups(groups, rng)
    own = np.arange(n)
    # One permutation in e leaves none at its place; rejection draws among those uniformly.
    while True:
        order = rng.permutation(n)
        if not (order == own).any():
            return order


def _between_groups(groups: NDArray[np.generic], rng: np.random.Generator) -> NDArray[np.int64]:
    _, members, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    largest = int(sizes.max())
    if 2 * largest > len(members):
        raise ValueError(
            f"{largest} of {len(members)} trials show one picture: they cannot all be given a trial of another. "
            "Evaluate more trials."
        )
    # Groups in random order, their members beside each other in random order; a step as long as the largest group
    # leaves every group.
    mixed = rng.permutation(len(members))
    in_a_row = mixed[np.argsort(rng.permutation(len(sizes))[members[mixed]], kind="stable")]
    order = np.empty(len(members), np.int64)
    order[in_a_row] = np.roll(in_a_row, -largest)
    return order


def _sums_by(members: NDArray[np.int64], values: Floats) -> Floats:
    return np.bincount(members, values).astype(np.float64)


def _bootstrap_means(sums: Floats, counts: Floats, resamples: int, seed: int) -> Floats:
    """Means of `resamples` draws of whole groups, with replacement."""
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    # Bounded memory: at most about 4 million drawn numbers at once.
    at_once = max(1, 4_000_000 // len(sums))
    for start in range(0, resamples, at_once):
        drawn = rng.integers(0, len(sums), (min(at_once, resamples - start), len(sums)))
        means[start : start + len(drawn)] = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    return means
