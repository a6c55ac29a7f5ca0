"""A bounded first look at a recording: its level, its bad channels, its line frequency.

Shapes: C channels, K cells, T samples, F frequencies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.signal

from ddscale.signal import rails, spectrum

_STRETCHES = 16
_STRETCH_S = 20.0
_CELL_S = 2.0
_SEGMENT_S = 4.0
FLAT_UV = 1.0
_BAND_HZ = (0.5, 100.0)

# A line frequency is worth a notch when it stands 10 dB out of its neighbourhood and makes up a hundredth of the
# amplitude (1e-4 of the power), in at least a quarter of the channels. In EEG of 10 µV that is 0.1 µV, the step
# at which signals are stored. The spectrum of a few seconds is ragged, so with few segments it must stand out more.
_LINE_CANDIDATES_HZ = (50.0, 60.0)
_LINE_PROMINENCE = 10.0
_LINE_SHARE = 1e-4
_LINE_CHANNELS = 0.25
_RAGGED_SEGMENTS = 4


@dataclass(frozen=True)
class Survey:
    """What at most 16 evenly spaced stretches of 20 s say about a recording; arrays have one value per channel."""

    rms_C: np.ndarray
    """RMS between 0.5 and 100 Hz without line noise, µV, median of the stretches; NaN where nothing was finite."""
    finite_C: np.ndarray
    """Fraction of samples that are finite."""
    flat_C: np.ndarray
    """Fraction of 2 s cells without a signal: under 1 µV peak to peak, or one value for half a second."""
    clipped_C: np.ndarray
    """Fraction of 2 s cells that rest on the channel's extremes."""
    line_C: np.ndarray
    """Share of line noise in the power above 0.5 Hz; 0 where there is no line_freq."""
    line_freq: float | None
    """50.0 or 60.0 Hz where it stands out of the spectrum, otherwise None."""
    eeg_C: np.ndarray
    """Which channels are EEG: they alone decide on line_freq."""


def survey(
    read: Callable[[int, int], np.ndarray],
    n_samples: int,
    sfreq: float,
    spans: Sequence[tuple[int, int]] | None = None,
    eeg_C: np.ndarray | None = None,
    flat_uV: float = FLAT_UV,
) -> Survey:
    """Look at a recording.

    read(start, stop) -> (C, T), µV; called for at most 320 s of signal, 20 s at a time, in order.
    spans: continuous stretches (start, stop), by default the whole. eeg_C: bool mask, by default all.
    flat_uV: peak-to-peak limit of a flat cell.
    Raises ValueError when there is not a single sample.
    """
    stretches = _stretches([(0, n_samples)] if spans is None else spans, round(_STRETCH_S * sfreq))
    if not stretches:
        raise ValueError("The recording has no samples.")
    raw_cells = rails.RawCells(sfreq, flat_uV)
    looks = [_look(read(start, stop), sfreq, raw_cells) for start, stop in stretches]
    n_finite_C = np.sum([look.n_finite_C for look in looks], axis=0)
    n_seen = sum(stop - start for start, stop in stretches)
    n_cells_C = np.maximum(np.concatenate(raw_cells.finite(), axis=1).sum(axis=1), 1)
    flat_C, clipped_C = (
        np.concatenate(batches, axis=1).sum(axis=1) / n_cells_C
        for batches in (raw_cells.flat(), raw_cells.clipped())
    )
    eeg_C = np.ones(len(n_finite_C), bool) if eeg_C is None else np.asarray(eeg_C, bool)
    by_length: dict[int, list[np.ndarray]] = {}
    for look in looks:
        by_length.setdefault(look.n_segment, []).append(look.power_CF)
    # Spans shorter than a segment have coarser spectra: the line is looked for in the finest there is.
    n_segment = max(by_length)
    freqs = _kept_frequencies(n_segment, sfreq)
    mean_CF = _nanmean(np.stack(by_length[n_segment]))
    n_averaged = sum(look.n_averaged for look in looks if look.n_segment == n_segment)
    line_freq = _line_frequency(mean_CF[eeg_C], freqs, sfreq, n_averaged)
    rms_C = np.sqrt(_nanmedian(np.stack([_band_power(look, sfreq, line_freq) for look in looks])))
    line_C = np.zeros(len(rms_C)) if line_freq is None else _line_share(mean_CF, freqs, line_freq)
    return Survey(
        rms_C,
        n_finite_C / n_seen,
        flat_C,
        clipped_C,
        line_C,
        line_freq,
        eeg_C,
    )


@dataclass(frozen=True)
class _Look:
    """One stretch."""

    n_finite_C: np.ndarray
    n_segment: int
    n_averaged: int
    power_CF: (
        np.ndarray
    )  # µV² / Hz up to 130 Hz, mean of the segments; NaN in channels with none that is finite


def _stretches(spans: Sequence[tuple[int, int]], length: int) -> list[tuple[int, int]]:
    """At most _STRETCHES stretches of at most `length` samples, evenly spaced over the spans."""
    counts = np.array(
        [max(1, (stop - start) // length) if stop > start else 0 for start, stop in spans], np.int64
    )
    total = int(counts.sum())
    if total == 0:
        return []
    ends = np.cumsum(counts)
    found = []
    for k in np.unique(np.linspace(0, total - 1, min(_STRETCHES, total)).round().astype(np.int64)).tolist():
        i = int(np.searchsorted(ends, k, side="right"))
        start, stop = spans[i]
        count = int(counts[i])
        # Spread over the span rather than packed at its start: the last stretch ends where the span ends.
        room = max(0, stop - start - length)
        first = start + (round((k - int(ends[i]) + count) * room / (count - 1)) if count > 1 else room // 2)
        found.append((first, min(first + length, stop)))
    return found


def _look(raw_CT: np.ndarray, sfreq: float, raw_cells: rails.RawCells) -> _Look:
    n_channels, n_samples = raw_CT.shape
    n_cell = min(n_samples, round(_CELL_S * sfreq))
    n_cells = n_samples // n_cell
    raw_cells.add(raw_CT[:, : n_cells * n_cell].reshape(n_channels, n_cells, n_cell))
    n_segment = min(n_samples, round(_SEGMENT_S * sfreq))
    n_kept = len(_kept_frequencies(n_segment, sfreq))
    total_CF = np.zeros((n_channels, n_kept))
    n_good_C1 = np.zeros((n_channels, 1))
    n_finite_C = np.count_nonzero(np.isfinite(raw_CT), axis=1)
    for start in range(0, n_samples - n_segment + 1, max(1, n_segment // 2)):
        segment_CT = np.array(raw_CT[:, start : start + n_segment], np.float64)
        good_C = np.isfinite(segment_CT).all(axis=1)
        if not good_C.any():
            continue
        straight_CT = scipy.signal.detrend(segment_CT[good_C], axis=1, overwrite_data=True)
        total_CF[good_C] += spectrum.power(straight_CT, sfreq)[:, :n_kept]
        n_good_C1[good_C] += 1
    with np.errstate(invalid="ignore"):
        return _Look(n_finite_C, n_segment, int(n_good_C1.max()), total_CF / n_good_C1)


def _kept_frequencies(n_segment: int, sfreq: float) -> np.ndarray:
    freqs = spectrum.frequencies(n_segment, sfreq)
    return freqs[freqs <= 130.0]


def _line_bins(freqs: np.ndarray, line_freq: float) -> tuple[np.ndarray, np.ndarray]:
    """Masks of the bins that hold the line, and of its neighbourhood on both sides."""
    step = freqs[1] if len(freqs) > 1 else np.inf
    distance = np.abs(freqs - line_freq)
    guard = max(1.0, 2.5 * step)
    return distance <= max(0.5, step), (distance > guard) & (distance <= guard + max(3.0, 6 * step))


def _line_frequency(power_CF: np.ndarray, freqs: np.ndarray, sfreq: float, n_averaged: int) -> float | None:
    """The candidate that stands out most of the spectra of enough channels, or None."""
    power_CF = power_CF[np.isfinite(power_CF).all(axis=1) & (power_CF.sum(axis=1) > 0)]
    if len(power_CF) == 0:
        return None
    needed = _LINE_PROMINENCE * (1 + _RAGGED_SEGMENTS / n_averaged)
    found: dict[float, float] = {}
    for candidate in _LINE_CANDIDATES_HZ:
        line_F, around_F = _line_bins(freqs, candidate)
        if candidate + 1 > sfreq / 2 or not around_F.any():
            continue
        floor_C = np.maximum(np.median(power_CF[:, around_F], axis=1), 1e-30)
        prominence_C = power_CF[:, line_F].max(axis=1) / floor_C
        stands_out_C = (prominence_C >= needed) & (_line_share(power_CF, freqs, candidate) >= _LINE_SHARE)
        if stands_out_C.mean() >= _LINE_CHANNELS:
            found[candidate] = float(np.quantile(prominence_C, 1 - _LINE_CHANNELS))
    return max(found, key=found.__getitem__) if found else None


def _line_share(power_CF: np.ndarray, freqs: np.ndarray, line_freq: float) -> np.ndarray:
    line_F, around_F = _line_bins(freqs, line_freq)
    floor_C1 = np.median(power_CF[:, around_F], axis=1, keepdims=True) if around_F.any() else 0.0
    excess_C = np.maximum(power_CF[:, line_F] - floor_C1, 0).sum(axis=1)
    with np.errstate(invalid="ignore"):
        return np.nan_to_num(excess_C / power_CF[:, freqs >= _BAND_HZ[0]].sum(axis=1))


def _band_power(look: _Look, sfreq: float, line_freq: float | None) -> np.ndarray:
    """Power of one stretch in the EEG band without the line and its harmonics, µV²."""
    freqs = _kept_frequencies(look.n_segment, sfreq)
    kept_F = (freqs >= _BAND_HZ[0]) & (freqs <= _BAND_HZ[1])
    if line_freq is not None:
        for harmonic in (line_freq, 2 * line_freq):
            kept_F &= np.abs(freqs - harmonic) > 1.0
    return look.power_CF[:, kept_F].sum(axis=1) * sfreq / look.n_segment


def _nanmean(values_NCF: np.ndarray) -> np.ndarray:
    known = np.isfinite(values_NCF)
    with np.errstate(invalid="ignore"):
        return np.where(known, values_NCF, 0).sum(axis=0) / known.sum(axis=0)


def _nanmedian(values_NC: np.ndarray) -> np.ndarray:
    """Median over the first axis without NaN, and without NumPy's warning where nothing is left."""
    return np.array(
        [
            np.median(column[np.isfinite(column)]) if np.isfinite(column).any() else np.nan
            for column in values_NC.T
        ]
    )
