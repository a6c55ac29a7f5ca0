"""The first look at a recording: bounded reading, levels, bad channels, line frequency."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.signal

from ddscale.signal.survey import Survey, survey


def background(
    n_channels: int, n_samples: int, sfreq: float, rms_uV: float = 20.0, seed: int = 0
) -> np.ndarray:
    """1/f noise of known RMS between 1 and 45 Hz, µV."""
    rng = np.random.default_rng(seed)
    freqs = np.fft.rfftfreq(n_samples, 1 / sfreq)
    shape = np.where((freqs >= 1) & (freqs <= 45), 1 / np.sqrt(np.maximum(freqs, 1)), 0.001)
    signal = np.fft.irfft(np.fft.rfft(rng.standard_normal((n_channels, n_samples))) * shape, n_samples)
    return signal / signal.std(axis=1, keepdims=True) * rms_uV


def look(signal: np.ndarray, sfreq: float, **options: object) -> Survey:
    return survey(lambda a, b: signal[:, a:b], signal.shape[1], sfreq, **options)  # type: ignore[arg-type]


def test_reading_is_bounded_spread_and_in_order() -> None:
    asked: list[tuple[int, int]] = []

    def read(start: int, stop: int) -> np.ndarray:
        asked.append((start, stop))
        return np.random.default_rng(start).standard_normal((2, stop - start))

    n_samples = 24 * 3600 * 100
    survey(read, n_samples, 100.0)
    assert len(asked) == 16
    assert all(stop - start == 2000 for start, stop in asked)
    assert asked == sorted(asked)
    assert asked[0][0] == 0
    assert asked[-1][1] == n_samples
    gaps = np.diff([start for start, _ in asked])
    assert gaps.max() - gaps.min() <= 2000


@pytest.mark.parametrize(
    "spans", [[(0, 500), (700, 900), (900, 901)], [(100, 30_000), (40_000, 99_000)], [(5, 5), (10, 20)]]
)
def test_spans_are_respected(spans: list[tuple[int, int]]) -> None:
    asked: list[tuple[int, int]] = []

    def read(start: int, stop: int) -> np.ndarray:
        asked.append((start, stop))
        return np.random.default_rng(start).standard_normal((2, stop - start))

    survey(read, 100_000, 100.0, spans=spans)
    assert asked
    assert all(any(a <= start < stop <= b for a, b in spans) for start, stop in asked)


@pytest.mark.parametrize("seconds", [1.0, 3.0, 30.0, 400.0])
@pytest.mark.parametrize("sfreq", [100.0, 256.0, 1000.0])
def test_rms_is_that_of_the_eeg_without_offset_drift_and_line(seconds: float, sfreq: float) -> None:
    n = int(seconds * sfreq)
    times = np.arange(n) / sfreq
    signal = background(4, n, sfreq, 20.0)
    clean = look(signal, sfreq).rms_C
    dirty = look(signal + 30_000 + 5 * times + 100 * np.sin(2 * np.pi * 60 * times) * (sfreq > 120), sfreq)
    assert 20 / 1.6 < np.median(clean) < 20 * 1.6
    if seconds > 3 and sfreq > 120:
        np.testing.assert_allclose(dirty.rms_C, clean, rtol=0.1)
        assert np.all(dirty.line_C > 0.8)


def test_bad_channels_are_measured() -> None:
    sfreq, n = 250.0, 250 * 120
    signal = background(6, n, sfreq, 30.0)
    signal[0] = 5.0
    signal[1] = np.clip(signal[1] * 10, -200, 200)
    signal[2, : n // 2] = np.nan
    signal[3] = np.nan
    signal[4, n // 2 :] = signal[4, n // 2]
    seen = look(signal, sfreq)
    assert seen.flat_C[0] == 1
    assert seen.clipped_C[0] == 0
    assert seen.clipped_C[1] > 0.9
    assert seen.finite_C[2] == pytest.approx(0.5, abs=0.05)
    assert seen.flat_C[2] == 0
    assert seen.rms_C[2] == pytest.approx(30, rel=0.2)
    assert seen.finite_C[3] == 0
    assert np.isnan(seen.rms_C[3])
    assert seen.flat_C[4] == pytest.approx(0.5, abs=0.1)
    assert (seen.flat_C[5], seen.clipped_C[5], seen.finite_C[5]) == (0, 0, 1)


@pytest.mark.parametrize("line", [50.0, 60.0])
@pytest.mark.parametrize("sfreq", [128.0, 250.0, 256.0, 512.0295, 2048.0])
@pytest.mark.parametrize("seconds", [2.0, 60.0])
def test_line_frequency_is_found(line: float, sfreq: float, seconds: float) -> None:
    n = int(seconds * sfreq)
    signal = background(8, n, sfreq) + 5 * np.sin(2 * np.pi * line * np.arange(n) / sfreq)
    assert look(signal, sfreq).line_freq == line


@pytest.mark.parametrize(("fifty", "sixty", "line"), [(8, 3, 50.0), (3, 8, 60.0)])
def test_of_two_lines_the_stronger_is_the_mains(fifty: float, sixty: float, line: float) -> None:
    time = np.arange(60 * 250) / 250
    signal = background(8, len(time), 250.0)
    signal += fifty * np.sin(2 * np.pi * 50 * time) + sixty * np.sin(2 * np.pi * 60 * time)
    assert look(signal, 250.0).line_freq == line


@pytest.mark.parametrize("sfreq", [100.0, 128.0, 250.0, 512.0, 2048.0])
@pytest.mark.parametrize("seconds", [0.3, 1.0, 2.0, 10.0, 60.0])
@pytest.mark.parametrize("seed", range(3))
def test_clean_signals_have_no_line_frequency(sfreq: float, seconds: float, seed: int) -> None:
    n = int(seconds * sfreq)
    white = np.random.default_rng(seed).standard_normal((8, n))
    assert look(background(8, n, sfreq, seed=seed), sfreq).line_freq is None
    assert look(background(8, n, sfreq, seed=seed) + 3 * white, sfreq).line_freq is None


def test_a_line_far_below_the_stored_step_is_not_worth_a_notch() -> None:
    n = 250 * 60
    signal = background(8, n, 250.0) + 0.01 * np.sin(2 * np.pi * 50 * np.arange(n) / 250)
    assert look(signal, 250.0).line_freq is None


def test_only_eeg_channels_decide_on_the_line() -> None:
    n = 250 * 60
    signal = background(8, n, 250.0)
    signal[6:] += 200 * np.sin(2 * np.pi * 50 * np.arange(n) / 250)
    eeg = np.arange(8) < 6
    assert look(signal, 250.0).line_freq == 50.0
    assert look(signal, 250.0, eeg_C=eeg).line_freq is None


def test_a_recording_of_nothing() -> None:
    with pytest.raises(ValueError, match="no samples"):
        look(np.empty((2, 0)), 250.0)
    assert look(np.ones((2, 1)), 250.0).line_freq is None
    dead = look(np.full((2, 5000), 3.0), 250.0)
    assert dead.line_freq is None
    np.testing.assert_allclose(dead.rms_C, 0, atol=1e-9)


@pytest.mark.real
def test_the_openbci_recording_hums_at_60_hz(shared: Path) -> None:
    (path,) = (shared / "eeg" / "openbci8").glob("*.txt")
    signal = np.loadtxt(path, delimiter=",", comments="%", skiprows=5, usecols=range(1, 9)).T
    seen = look(signal, 250.0)
    assert seen.line_freq == 60.0
    assert np.median(seen.line_C) > 0.5
    b, a = scipy.signal.iirnotch(60.0, 20.0, 250.0)
    assert look(scipy.signal.filtfilt(b, a, scipy.signal.filtfilt(b, a, signal)), 250.0).line_freq is None


@pytest.mark.real
def test_a_low_passed_recording_has_no_line(shared: Path) -> None:
    signal = np.load(shared / "eeg" / "meegkit8" / "eeg_raw.npy")
    seen = look(signal, 250.0)
    assert seen.line_freq is None
    np.testing.assert_array_equal(seen.line_C, 0)
