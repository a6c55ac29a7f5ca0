"""Power spectra of short stretches. Shapes: C channels, N stretches, T samples, F frequencies."""

from __future__ import annotations

import functools

import numpy as np
import scipy.fft

BANDS_HZ = ((1.0, 4.0), (4.0, 8.0), (8.0, 13.0), (13.0, 30.0), (30.0, np.inf))
"""Delta, theta, alpha, beta, gamma: from the lower edge up to, and without, the upper one."""


def frequencies(n_samples: int, sfreq: float) -> np.ndarray:
    """Frequencies, Hz, of `power` for stretches of n_samples."""
    return scipy.fft.rfftfreq(n_samples, 1 / sfreq)


def power(signal_T: np.ndarray, sfreq: float) -> np.ndarray:
    """Power density of stretches, each without its mean and under a Hann window.

    signal_T: (..., samples). Returns (..., frequencies), unit² / Hz, in the signal's precision.
    """
    window = _hann(signal_T.shape[-1], signal_T.dtype.str)
    centred_T = signal_T - signal_T.mean(axis=-1, keepdims=True)
    centred_T *= window
    spectrum_F = scipy.fft.rfft(centred_T, axis=-1)
    power_F = spectrum_F.real**2
    power_F += spectrum_F.imag**2
    power_F *= 2 / (sfreq * float(np.sum(window.astype(np.float64) ** 2)))
    return power_F


@functools.lru_cache(maxsize=16)
def _hann(n_samples: int, dtype: str) -> np.ndarray:
    window = 0.5 - 0.5 * np.cos(2 * np.pi * (np.arange(n_samples) + 0.5) / n_samples)
    window = window.astype(dtype)
    window.setflags(write=False)
    return window
