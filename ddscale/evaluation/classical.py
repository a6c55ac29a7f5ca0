"""Features that learn nothing: band power, power at the stimulus frequencies, canonical correlation with them.

Legend: N trials, T samples, C channels, B bands, H harmonics, F frequencies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import signal

Floats = NDArray[np.float64]


def band_power(x_NTC: NDArray[np.floating], sfreq: float, bands: Mapping[str, Sequence[float]]) -> Floats:
    """Logarithm of each channel's mean power density in each band, by Welch's method; (N, C · B).

    bands: name -> (low, high) Hz. Raises ValueError naming a band that no frequency of the spectrum falls into.
    """
    T = x_NTC.shape[1]
    freqs, power_NFC = signal.welch(
        np.asarray(x_NTC, np.float64), sfreq, nperseg=min(T, round(2 * sfreq)), axis=1
    )
    features = []
    for name, (low, high) in bands.items():
        inside = (freqs >= low) & (freqs < high)
        if not inside.any():
            raise ValueError(
                f"band {name} ({low:g} to {high:g} Hz): the spectrum of {T / sfreq:g} s at {sfreq:g} Hz has steps of "
                f"{freqs[1]:.3g} Hz up to {freqs[-1]:g} Hz; widen the band or leave it out."
            )
        features.append(_log(power_NFC[:, inside].mean(axis=1)))
    return np.concatenate(features, axis=1)


def stimulus_power(
    x_NTC: NDArray[np.floating], sfreq: float, frequencies: Sequence[float], harmonics: int
) -> Floats:
    """Logarithm of the power at each frequency and harmonic over that of its neighbours; (N, C · F · H).

    The neighbours lie up to 1.5 Hz away, in steps that a trial's length tells apart, the nearest on either side left
    out: the Hann window spreads a quarter of the power there.
    """
    T = x_NTC.shape[1]
    x = np.asarray(x_NTC, np.float64) - x_NTC.mean(axis=1, keepdims=True, dtype=np.float64)
    step = sfreq / T
    away = np.arange(2, max(3, int(1.5 / step) + 1)) * step
    features = []
    for frequency in multiples(frequencies, harmonics, sfreq):
        at = _power(x, sfreq, np.array([frequency]))[:, 0]
        around = np.concatenate([frequency - away, frequency + away])
        features.append(_log(at) - _log(_power(x, sfreq, around[around > 0]).mean(axis=1)))
    return np.concatenate(features, axis=1)


def canonical_correlations(
    x_NTC: NDArray[np.floating], sfreq: float, frequencies: Sequence[float], harmonics: int
) -> Floats:
    """Largest canonical correlation of each trial with sines and cosines at each frequency and its harmonics; (N, F).

    Lin et al. 2007, 'Frequency recognition based on canonical correlation analysis for SSVEP-based BCIs'.
    """
    time_T = np.arange(x_NTC.shape[1]) / sfreq
    references = []
    for frequency in frequencies:
        phase_TH = 2 * np.pi * time_T[:, None] * np.array(multiples([frequency], harmonics, sfreq))
        waves = np.concatenate([np.sin(phase_TH), np.cos(phase_TH)], axis=1)
        references.append(_basis(waves))
    found = np.empty((len(x_NTC), len(references)))
    for n, trial_TC in enumerate(np.asarray(x_NTC, np.float64)):
        own = _basis(trial_TC)
        for f, reference in enumerate(references):
            # A trial in which nothing varies correlates with nothing.
            found[n, f] = np.linalg.norm(own.T @ reference, ord=2) if own.shape[1] else 0.0
    return found


def multiples(frequencies: Sequence[float], harmonics: int, sfreq: float) -> list[float]:
    """Each frequency and its harmonics below the Nyquist frequency.

    Raises ValueError for a frequency that the sampling rate cannot hold.
    """
    wrong = [f"{f:g}" for f in frequencies if not 0 < f < sfreq / 2]
    if wrong:
        raise ValueError(
            f"stimulus frequencies {', '.join(wrong)} Hz: signals of {sfreq:g} Hz hold those between 0 and "
            f"{sfreq / 2:g}."
        )
    return [f * h for f in frequencies for h in range(1, harmonics + 1) if f * h < sfreq / 2]


def _basis(values_TK: Floats) -> Floats:
    """Orthonormal columns that span the centred values; as many as their rank."""
    centred = values_TK - values_TK.mean(axis=0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    basis: Floats = left[:, sizes > 1e-10 * max(sizes[0], 1e-300)] if len(sizes) else left
    return basis if sizes[0] > 1e-12 else left[:, :0]


def _power(x_NTC: Floats, sfreq: float, freqs_F: Floats) -> Floats:
    """Power at single frequencies, under a Hann window; (N, F, C)."""
    T = x_NTC.shape[1]
    waves_FT = np.exp(-2j * np.pi * freqs_F[:, None] * np.arange(T) / sfreq) * signal.windows.hann(
        T, sym=False
    )
    power: Floats = np.abs(np.einsum("ft,ntc->nfc", waves_FT, x_NTC)) ** 2
    return power


def _log(power: Floats) -> Floats:
    return np.log(np.maximum(power, 1e-12))
