"""Streamed polyphase resampling against scipy.signal.resample_poly, at any cutting and any ratio."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
import scipy.signal
from hypothesis import given, settings
from hypothesis import strategies as st

from ddscale.signal.resampling import RATE_TOLERANCE, StreamingResampler, output_length, ratio


def streamed(signal_CT: np.ndarray, factor: Fraction, cuts: list[int]) -> np.ndarray:
    resampler = StreamingResampler(factor)
    edges = [0, *sorted(cuts), signal_CT.shape[1]]
    return np.concatenate(
        [
            resampler.push(signal_CT[:, a:b], last=i == len(edges) - 2)
            for i, (a, b) in enumerate(itertools.pairwise(edges))
        ],
        axis=1,
    )


@settings(max_examples=80, deadline=None)
@given(
    up=st.integers(1, 60),
    down=st.integers(1, 60),
    n_samples=st.integers(2, 2000),
    seed=st.integers(0, 2**32 - 1),
    data=st.data(),
)
def test_any_cutting_gives_scipys_result(
    up: int, down: int, n_samples: int, seed: int, data: st.DataObject
) -> None:
    factor = Fraction(up, down)
    signal = np.random.default_rng(seed).standard_normal((2, n_samples)) + 3
    cuts = data.draw(st.lists(st.integers(0, n_samples), max_size=6))
    found = streamed(signal, factor, cuts)
    expected = scipy.signal.resample_poly(
        signal, factor.numerator, factor.denominator, axis=1, padtype="reflect"
    )
    n = output_length(n_samples, factor)
    assert found.shape == (2, n)
    np.testing.assert_allclose(found, expected[:, :n], atol=1e-12)  # scipy rounds the length up


@pytest.mark.parametrize(
    "sfreq", [100.0, 128.0, 160.0, 200.0, 250.0, 256.0, 500.0, 512.0, 600.0, 1000.0, 1024.0, 2048.0, 5000.0]
)
@pytest.mark.parametrize("target", [100.0, 128.0, 200.0, 250.0, 256.0])
def test_whole_rates_have_exact_ratios(sfreq: float, target: float) -> None:
    assert ratio(sfreq, target) == Fraction(int(target), int(sfreq))


@pytest.mark.parametrize(
    "sfreq", [512.0295, 499.9, 1000 / 3, 250.00001, 511.99, 249.889, 173.61, 1000 / 7, 409.6, 4807.69]
)
@pytest.mark.parametrize("target", [200.0, 256.0])
def test_odd_rates_are_approximated_closely(sfreq: float, target: float) -> None:
    found = ratio(sfreq, target)
    assert abs(float(found) * sfreq / target - 1) <= RATE_TOLERANCE
    assert max(found.numerator, found.denominator) < 100_000


def test_a_tone_at_an_odd_rate_comes_out_where_it_belongs() -> None:
    sfreq, target, seconds = 512.0295, 256.0, 120
    signal = np.sin(2 * np.pi * 10 * np.arange(int(sfreq * seconds)) / sfreq)[None]
    found = streamed(signal, ratio(sfreq, target), [7, 5000, 40_000])
    expected = np.sin(2 * np.pi * 10 * np.arange(found.shape[1]) / target)
    np.testing.assert_allclose(
        found[0, 500:-500], expected[500:-500], atol=2e-3
    )  # the filter's pass-band ripple


@pytest.mark.parametrize("n_samples", [1, 2, 3, 10, 77])
@pytest.mark.parametrize(
    "factor", [Fraction(1), Fraction(1, 8), Fraction(25, 32), Fraction(64, 25), Fraction(8678, 17357)]
)
def test_very_short_signals(n_samples: int, factor: Fraction) -> None:
    found = streamed(np.full((1, n_samples), 5.0), factor, [])
    assert found.shape == (1, output_length(n_samples, factor))
    np.testing.assert_allclose(found, 5.0, rtol=5e-3)


def test_lengths_are_rounded_to_the_nearest() -> None:
    assert output_length(1000, Fraction(25, 32)) == 781
    assert output_length(3, Fraction(1, 2)) == 2
    assert output_length(0, Fraction(1, 2)) == 0


@pytest.mark.parametrize(("sfreq", "target"), [(0.0, 256.0), (-1.0, 256.0), (256.0, 0.0)])
def test_rates_must_be_positive(sfreq: float, target: float) -> None:
    with pytest.raises(ValueError, match="positive"):
        ratio(sfreq, target)
