"""The streamed filter against a plain convolution, and its kernel against MNE's own two-step filtering."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.signal
from hypothesis import given, settings
from hypothesis import strategies as st

from ddscale.signal.filtering import StreamingFIR, design, fft_length, notch_stop_edge


def plain(signal_CT: np.ndarray, taps: np.ndarray) -> np.ndarray:
    """Point reflection at both ends as far as the signal goes, zeros beyond, direct convolution."""
    half = len(taps) // 2
    mean_C1 = signal_CT[:, : half + 1].mean(axis=1, keepdims=True)
    x = signal_CT - mean_C1
    m = min(half, x.shape[1] - 1)
    zeros = np.zeros((x.shape[0], half - m))
    left = 2 * x[:, :1] - x[:, 1 : m + 1][:, ::-1]
    right = 2 * x[:, -1:] - x[:, x.shape[1] - 1 - m : x.shape[1] - 1][:, ::-1]
    padded = np.concatenate([zeros, left, x, right, zeros], axis=1)
    return np.stack([np.convolve(row, taps, mode="valid") for row in padded]) + mean_C1 * taps.sum()


def streamed(signal_CT: np.ndarray, kernel, n_fft: int, cuts: list[int]) -> np.ndarray:
    fir = StreamingFIR(kernel, n_fft)
    edges = [0, *sorted(cuts), signal_CT.shape[1]]
    pieces = [
        fir.push(signal_CT[:, a:b], last=i == len(edges) - 2)
        for i, (a, b) in enumerate(itertools.pairwise(edges))
    ]
    return np.concatenate(pieces, axis=1)


@settings(max_examples=60, deadline=None)
@given(
    n_samples=st.integers(1, 3000),
    seed=st.integers(0, 2**32 - 1),
    low=st.booleans(),
    notch=st.booleans(),
    data=st.data(),
)
def test_any_cutting_gives_the_plain_convolution(
    n_samples: int, seed: int, low: bool, notch: bool, data: st.DataObject
) -> None:
    rng = np.random.default_rng(seed)
    kernel = design(100.0, 2.0 if low else None, 30.0, (20.0,) if notch else ())
    signal = 20.0 * rng.standard_normal((2, n_samples)) + 40_000.0
    cuts = data.draw(st.lists(st.integers(0, n_samples), max_size=6))
    found = streamed(signal, kernel, fft_length(len(kernel.taps), 2), cuts)
    expected = plain(signal, kernel.taps)
    assert found.shape == signal.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-7)  # of ±20 µV on an offset of 40 mV


@pytest.mark.parametrize("sfreq", [100.0, 128.0, 250.0, 256.0, 512.0, 1000.0, 5000.0])
@pytest.mark.parametrize(("l_freq", "h_freq"), [(0.5, 45.0), (1.0, None), (None, 40.0)])
def test_the_fused_kernel_has_the_response_of_mnes_two_filters(
    sfreq: float, l_freq: float | None, h_freq: float | None
) -> None:
    import mne

    kernel = design(sfreq, l_freq, h_freq, (30.0,))
    assert len(kernel.taps) % 2 == 1
    np.testing.assert_allclose(kernel.taps, kernel.taps[::-1], atol=1e-16)
    impulse = np.zeros((1, 4 * len(kernel.taps) + 1))
    impulse[0, impulse.shape[1] // 2] = 1.0
    once = mne.filter.filter_data(impulse, sfreq, l_freq, h_freq, verbose="ERROR")
    twice = mne.filter.notch_filter(once, sfreq, 30.0, verbose="ERROR")[0]
    ours = np.zeros_like(twice)
    middle = impulse.shape[1] // 2
    ours[middle - kernel.half : middle + kernel.half + 1] = kernel.taps
    np.testing.assert_allclose(ours, twice, atol=1e-12)


def test_several_notches_are_one_stop_filter() -> None:
    kernel = design(512.0, None, None, (50.0, 100.0, 150.0))
    freqs, gain = scipy.signal.freqz(kernel.taps, worN=2**16, fs=512.0)
    for line in (50.0, 100.0, 150.0):
        assert np.abs(gain[np.argmin(np.abs(freqs - line))]) < 0.01
    for kept in (10.0, 47.0, 53.0, 75.0, 200.0):
        assert np.abs(gain[np.argmin(np.abs(freqs - kept))]) == pytest.approx(1.0, abs=0.01)


def test_a_high_pass_removes_an_offset_of_40_mV() -> None:
    kernel = design(256.0, 0.5, None, ())
    signal = np.full((1, 5000), 40_000.0)
    found = streamed(signal, kernel, fft_length(len(kernel.taps), 1), [1000])
    assert np.abs(found).max() < 1e-6


def test_a_low_pass_keeps_the_offset() -> None:
    kernel = design(256.0, None, 40.0, ())
    found = streamed(np.full((1, 500), 40_000.0), kernel, 4096, [])
    np.testing.assert_allclose(found, 40_000.0, rtol=1e-9)


def test_no_filter_is_the_signal() -> None:
    kernel = design(256.0, None, None, ())
    signal = np.random.default_rng(0).standard_normal((3, 100)) + 7
    np.testing.assert_allclose(streamed(signal, kernel, 4096, [10, 50]), signal, atol=1e-14)


@pytest.mark.parametrize("n_taps", [1, 500, 3381, 20_001, 66_001])
@pytest.mark.parametrize("n_channels", [1, 32, 128, 256])
def test_block_length_leaves_room_for_new_samples(n_taps: int, n_channels: int) -> None:
    n_fft = fft_length(n_taps, n_channels)
    assert n_fft >= 2 * n_taps
    assert n_channels * (n_fft - n_taps) * 8 <= 1.05 * max(2**26, n_channels * 8 * n_taps)


def test_stop_edge_of_a_notch() -> None:
    assert notch_stop_edge(50.0) == 50.625
