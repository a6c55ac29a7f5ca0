"""Intervals that cover what they claim to, and pairs that are really shuffled."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from ddscale.metrics.controls import difference, estimate, shuffled_pairs, wilson_interval


def test_interval_of_independent_values_is_the_textbook_one():
    values = np.random.default_rng(0).normal(3, 2, 400)
    got = estimate(values)
    half = 1.96 * values.std(ddof=1) / np.sqrt(400)
    assert got.value == pytest.approx(values.mean())
    assert got.low == pytest.approx(values.mean() - half, abs=0.02)
    assert got.high == pytest.approx(values.mean() + half, abs=0.02)
    assert (got.values, got.groups) == (400, 400)


def test_intervals_cover_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(1)
    covered = [
        got.low <= 0.3 <= got.high
        for got in (estimate(rng.random(150) < 0.3, resamples=500, seed=i) for i in range(400))
    ]
    assert 0.91 < np.mean(covered) < 0.98


def test_samples_of_one_picture_do_not_narrow_the_interval():
    rng = np.random.default_rng(2)
    of_pictures = rng.normal(size=50)
    values, groups = np.repeat(of_pictures, 20), np.repeat(np.arange(50), 20)
    grouped, singly, pictures = estimate(values, groups), estimate(values), estimate(of_pictures)
    assert grouped.value == pytest.approx(pictures.value)
    assert grouped.high - grouped.low == pytest.approx(pictures.high - pictures.low, rel=0.05)
    assert singly.high - singly.low < 0.3 * (grouped.high - grouped.low)
    assert (grouped.values, grouped.groups) == (1000, 50)


def test_groups_of_unequal_size_weigh_by_their_values():
    got = estimate(np.array([1.0, 1, 1, 0]), np.array(["a", "a", "a", "b"]))
    assert got.value == 0.75
    assert (got.low, got.high) == (0.0, 1.0)


def test_intervals_are_repeatable_and_follow_the_seed():
    values = np.random.default_rng(3).random(30)
    assert estimate(values, seed=1) == estimate(values, seed=1)
    assert estimate(values, seed=1) != estimate(values, seed=2)


def test_what_has_no_mean_or_no_interval():
    with pytest.raises(ValueError, match="at least one"):
        estimate(np.array([]))
    with pytest.raises(ValueError, match="1 of 2 values are not finite"):
        estimate(np.array([1.0, np.inf]))
    with pytest.raises(ValueError, match="2 values but 1 groups"):
        estimate(np.array([1.0, 2.0]), np.array([0]))
    alone = estimate(np.array([1.0, 2.0]), np.array([0, 0]))
    assert alone.value == 1.5
    assert np.isnan(alone.low)
    assert np.isnan(alone.high)


@pytest.mark.parametrize("right", [0.0, 1.0, 0.5])
def test_groups_that_all_agree_leave_a_proportion_uncertain(right):
    """8 pictures of 3 samples each, none of them right, are 8 observations."""
    values, groups = np.full(24, right), np.repeat(np.arange(8), 3)
    got = estimate(values, groups, proportion=True)
    assert (got.low, got.high) == pytest.approx(wilson_interval(8 * right, 8))
    assert got.high - got.low > 0.3
    # Not the bootstrap's zero width; where groups differ it stays as it is.
    assert estimate(values, groups).low == estimate(values, groups).high
    values[:3] = 1 - right if right != 0.5 else 1
    assert estimate(values, groups, proportion=True) == estimate(values, groups)


def test_what_is_no_proportion_is_refused():
    with pytest.raises(ValueError, match="between 0 and 1"):
        estimate(np.array([0.5, 2.0]), proportion=True)


def test_a_paired_difference_is_narrower_than_its_sides():
    rng = np.random.default_rng(5)
    of_pictures = rng.normal(size=100)
    ours, theirs = of_pictures + 0.1 + rng.normal(scale=0.1, size=100), of_pictures
    got = difference(ours, theirs, np.arange(100))
    assert 0 < got.low < 0.1 < got.high
    assert got.high - got.low < 0.2 * (estimate(ours).high - estimate(ours).low)
    assert difference(ours, np.where(np.arange(100) < 40, np.nan, theirs), np.arange(100)).values == 60


def test_a_difference_that_all_groups_share_is_not_certain():
    same = difference(np.ones(10), np.ones(10), np.arange(10), proportion=True)
    assert same.value == 0
    assert same.low == -same.high
    assert same.high == pytest.approx(wilson_interval(0, 10)[1])
    full = difference(np.ones(10), np.zeros(10), np.arange(10), proportion=True)
    assert (full.value, full.high) == (1, 1)
    assert full.low == pytest.approx(1 - 2 * wilson_interval(0, 10)[1])


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (10, 10), (3, 200), (98, 200)])
def test_wilson_interval_against_its_formula(successes, trials):
    z, p = scipy.stats.norm.ppf(0.975), successes / trials
    centre = (p + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z / (1 + z**2 / trials) * np.sqrt(p * (1 - p) / trials + z**2 / (4 * trials**2))
    assert wilson_interval(successes, trials) == pytest.approx((centre - half, centre + half), abs=1e-12)
    theirs = scipy.stats.binomtest(successes, trials).proportion_ci(method="wilson")
    assert wilson_interval(successes, trials) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_wilson_interval_of_no_proportion():
    with pytest.raises(ValueError, match="3 successes in 2 trials"):
        wilson_interval(3, 2)
    with pytest.raises(ValueError, match="0 trials"):
        wilson_interval(0, 0)


def test_shuffled_pairs_keep_none_and_use_all():
    for n in (2, 3, 10, 500):
        pairs = shuffled_pairs(n, seed=n)
        assert sorted(pairs) == list(range(n))
        assert not (pairs == np.arange(n)).any()
    assert (shuffled_pairs(50, 1) != shuffled_pairs(50, 2)).any()
    np.testing.assert_array_equal(shuffled_pairs(50, 1), shuffled_pairs(50, 1))
    with pytest.raises(ValueError, match="two pictures"):
        shuffled_pairs(1)


def test_no_pair_is_of_one_group():
    rng = np.random.default_rng(0)
    for seed, groups in enumerate([rng.integers(0, 5, 40), np.repeat([3, 8], 6), np.arange(9), [1, 1, 2, 3]]):
        groups = np.array(groups)
        pairs = shuffled_pairs(len(groups), seed, groups)
        assert sorted(pairs) == list(range(len(groups)))
        assert (groups[pairs] != groups).all()
        np.testing.assert_array_equal(pairs, shuffled_pairs(len(groups), seed, groups))
    groups = np.repeat(np.arange(20), 2)
    assert (shuffled_pairs(40, 1, groups) != shuffled_pairs(40, 2, groups)).any()
    # Plain shuffling pairs trials of one picture with each other.
    assert any((groups[shuffled_pairs(40, seed)] == groups).any() for seed in range(10))
    with pytest.raises(ValueError, match="3 of 5 trials show one picture"):
        shuffled_pairs(5, 0, np.array([1, 1, 1, 2, 3]))
