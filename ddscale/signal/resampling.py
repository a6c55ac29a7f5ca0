"""Polyphase resampling of arbitrarily long signals by a rational factor.

The filter is SciPy's and MNE's default (`resample_poly`, `Raw.resample(method="polyphase")`): a Kaiser window of
beta 5 over ten zero crossings on either side, -6 dB at the lower of the two Nyquist frequencies. Here each
group of output samples is one matrix product with its stretch of input, which is several times faster.
Shapes: C channels, T samples, M periods.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.lib.stride_tricks import as_strided

# Rates such as 512.0295 Hz have no small ratio to the target. The simplest ratio within this relative error is
# taken: 1e-7 is 0.4 ms in an hour, less than a sample of what any clock of an EEG amplifier keeps (1e-5).
RATE_TOLERANCE = 1e-7
_GROUP = 24  # output samples per matrix product: fewer is slow BLAS, more multiplies zeros


def ratio(sfreq: float, target_sfreq: float) -> Fraction:
    """up / down from sfreq to target_sfreq, Hz: the simplest fraction within RATE_TOLERANCE of the true ratio."""
    if not (sfreq > 0 and target_sfreq > 0):
        raise ValueError(f"Sampling rates must be positive, got {sfreq} and {target_sfreq} Hz.")
    exact = Fraction(target_sfreq) / Fraction(sfreq)
    # Convergents of the continued fraction: each is the best approximation with so small a denominator.
    before, now, rest = (0, 1), (1, 0), exact
    while True:
        whole = rest.numerator // rest.denominator
        before, now = now, (whole * now[0] + before[0], whole * now[1] + before[1])
        found = Fraction(*now)
        if found and abs(found / exact - 1) <= RATE_TOLERANCE:
            return found
        rest = 1 / (rest - whole)


def output_length(n_samples: int, factor: Fraction) -> int:
    """round(n_samples * up / down), halves up."""
    return (2 * n_samples * factor.numerator + factor.denominator) // (2 * factor.denominator)


@dataclass(frozen=True)
class _Group:
    """Output samples first..first+n of a period, made from the inputs low..low+len(weights) counted from its start."""

    first: int
    low: int
    weights: np.ndarray  # (inputs, outputs)


@functools.lru_cache(maxsize=4)  # up to 30 MB each for the oddest rates
def _groups(up: int, down: int) -> tuple[int, int, int, tuple[_Group, ...]]:
    """(outputs per period, inputs per period, reach of the filter in inputs, the period's groups)."""
    import scipy.signal

    if up == down == 1:
        return 1, 1, 0, ()
    half = 10 * max(up, down)
    taps = up * scipy.signal.firwin(2 * half + 1, 1 / max(up, down), window=("kaiser", 5.0))
    repeats = max(1, round(_GROUP / up))
    period, inputs = up * repeats, down * repeats
    groups = []
    for outputs in np.array_split(np.arange(period), max(1, round(period / _GROUP))):
        low = -((half - int(outputs[0]) * down) // up)
        high = (int(outputs[-1]) * down + half) // up
        tap_IO = outputs[None, :] * down - np.arange(low, high + 1)[:, None] * up + half
        inside = (tap_IO >= 0) & (tap_IO < len(taps))
        groups.append(_Group(int(outputs[0]), low, np.where(inside, taps[np.where(inside, tap_IO, 0)], 0.0)))
    return period, inputs, half // up, tuple(groups)


class StreamingResampler:
    """Polyphase resampling fed piece by piece; the output is that of resampling the whole signal at once.

    Edges are those of MNE's default for this method: the signal is continued by mirroring.
    """

    def __init__(self, factor: Fraction) -> None:
        self._factor = factor
        self._held: np.ndarray | None = None  # (C, .) input from sample _held_from on
        self._held_from = 0
        self._started = False
        self._n_in = 0
        self._n_out = 0
        self._period, self._inputs, self._reach, self._groups = _groups(factor.numerator, factor.denominator)

    def push(self, x_CT: np.ndarray, last: bool = False) -> np.ndarray:
        """Resample the next piece. Returns (C, T') float64: as much as can be known, all of it when `last`."""
        if self._factor == 1:
            return x_CT
        self._n_in += x_CT.shape[1]
        if self._held is not None:
            x_CT = np.concatenate([self._held, x_CT], axis=1)
        reach, inputs = self._reach + 1, self._inputs
        if not self._started and (x_CT.shape[1] > reach or last):
            self._started = True
            x_CT = np.pad(x_CT, ((0, 0), (reach, 0)), mode="reflect")
            self._held_from = -reach
        if not self._started:
            self._held = x_CT
            return np.empty((x_CT.shape[0], 0))
        end = self._n_in  # input is known up to here
        if last:
            n_left = output_length(self._n_in, self._factor) - self._n_out
            n_periods = -(-n_left // self._period)
            x_CT = np.pad(x_CT, ((0, 0), (0, reach)), mode="reflect")
            # Only the zeros of the weights, or samples cut off below, see what lies beyond.
            end = (self._n_out // self._period + n_periods) * inputs + reach
            missing = end - (self._held_from + x_CT.shape[1])
            x_CT = np.pad(x_CT, ((0, 0), (0, max(missing, 0))))
        else:
            n_left = None
            n_periods = max(0, (end - reach) // inputs - self._n_out // self._period)
        y_CT = self._periods(x_CT, n_periods)[:, :n_left]
        self._n_out += y_CT.shape[1]
        # Twice the reach: the mirror at the end looks back as far as the filter looks ahead.
        drop = max(0, self._n_out // self._period * inputs - 2 * reach - self._held_from)
        self._held = x_CT[:, drop:].copy()
        self._held_from += drop
        return y_CT

    def _periods(self, x_CT: np.ndarray, n_periods: int) -> np.ndarray:
        """The next n_periods periods of output: (C, n_periods * period)."""
        n_channels = x_CT.shape[0]
        y_CMO = np.empty((n_channels, n_periods, self._period))
        first_input = self._n_out // self._period * self._inputs - self._held_from
        for group in self._groups if n_periods else ():
            n_taps, n_outputs = group.weights.shape
            start = first_input + group.low
            window_CMI = as_strided(
                x_CT[:, start:],
                (n_channels, n_periods, n_taps),
                (x_CT.strides[0], self._inputs * x_CT.strides[1], x_CT.strides[1]),
                writeable=False,
            )
            # BLAS takes no overlapping rows; one copy is cheaper than what NumPy does without BLAS.
            rows = np.ascontiguousarray(window_CMI).reshape(-1, n_taps) @ group.weights
            y_CMO[:, :, group.first : group.first + n_outputs] = rows.reshape(
                n_channels, n_periods, n_outputs
            )
        return y_CMO.reshape(n_channels, -1)
