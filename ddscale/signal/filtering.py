"""Zero-phase FIR filtering of arbitrarily long signals: MNE's designs, fused, applied block by block.

Shapes: C channels, T samples.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import scipy.fft

# MNE's notch (mne.filter.notch_filter): stop band of freq / 200 around each frequency, and 1 Hz of transition,
# half of it on either side.
NOTCH_HALF_TRANSITION_HZ = 0.5


def notch_stop_edge(freq: float) -> float:
    """Highest frequency, Hz, that a notch at `freq` touches; it must be under the Nyquist frequency."""
    return freq + freq / 400 + NOTCH_HALF_TRANSITION_HZ


@dataclass(frozen=True, eq=False)
class Kernel:
    """A symmetric FIR filter of odd length; compared and hashed by identity, `design` makes one per setting."""

    taps: np.ndarray

    @property
    def half(self) -> int:
        """Samples on either side of the centre."""
        return len(self.taps) // 2

    @property
    def gain_dc(self) -> float:
        """What is left of a constant."""
        return float(self.taps.sum())


@functools.lru_cache(maxsize=32)
def design(sfreq: float, l_freq: float | None, h_freq: float | None, notches: tuple[float, ...]) -> Kernel:
    """One kernel for the band-pass and all notches.

    l_freq, h_freq: pass-band edges, Hz; None leaves that side open. notches: Hz.
    Each part is MNE's default design (Hamming window, transition widths by its rules), and the parts are
    convolved, so that one pass does what filter() followed by notch_filter() does.
    """
    import mne.filter

    taps = np.ones(1)
    if l_freq is not None or h_freq is not None:
        taps = mne.filter.create_filter(None, sfreq, l_freq, h_freq, verbose="ERROR")
    if notches:
        freqs = np.array(notches)
        reach = freqs / 400 + NOTCH_HALF_TRANSITION_HZ
        stop = mne.filter.create_filter(
            None,
            sfreq,
            freqs + reach,
            freqs - reach,
            l_trans_bandwidth=NOTCH_HALF_TRANSITION_HZ,
            h_trans_bandwidth=NOTCH_HALF_TRANSITION_HZ,
            verbose="ERROR",
        )
        taps = np.convolve(taps, stop)
    taps.setflags(write=False)
    return Kernel(taps)


def low_pass_end(h_freq: float, nyquist: float) -> float:
    """Frequency, Hz, at which MNE's low-pass has fallen to -6 dB."""
    return h_freq + min(max(h_freq * 0.25, 2.0), nyquist - h_freq) / 2


def fft_length(n_taps: int, n_channels: int) -> int:
    """FFT length for overlap-save with a kernel of n_taps.

    Longer blocks waste less on the overlap, but past 32,768 samples they leave the cache and run slower, and the
    new samples of all channels together should stay near 64 MB. Whatever these say, half of a block must be new.
    """
    longest = min(32768, 2**26 // (8 * n_channels))
    return int(scipy.fft.next_fast_len(max(2 * n_taps, min(8 * n_taps, longest), 4096), real=True))


class StreamingFIR:
    """A zero-phase FIR filter fed piece by piece; its output is that of filtering the whole signal at once.

    Edges are those of MNE's `reflect_limited` padding: the signal is continued by point reflection as far as it
    goes, then by zeros. The mean of the first half kernel is taken off before (amplifiers add tens of mV of
    offset, which would cost accuracy and, in signals shorter than the filter, step down to those zeros) and what
    the kernel makes of it is put back, so the filter stays linear.

    float64: single-precision transforms would save a third of the filter's time, but one step of 10 mV (an electrode
    that slips) would leave errors of 4e-3 µV, 7e-5 of the signal, in its whole block of two minutes.
    """

    def __init__(self, kernel: Kernel, n_fft: int) -> None:
        """n_fft: usual transform length, at least twice the kernel's."""
        self._kernel = kernel
        self._n_fft = n_fft
        self._mean_C1: np.ndarray | None = None  # None until the left edge has been continued
        self._held: list[np.ndarray] = []  # (C, .) samples that later output needs; offset removed once known

    def push(self, x_CT: np.ndarray, last: bool = False) -> np.ndarray:
        """Filter the next piece. Returns (C, T') float64; output lags half a kernel behind until `last`."""
        half = self._kernel.half
        if self._mean_C1 is None:
            self._held.append(x_CT)
            n_held = sum(piece.shape[1] for piece in self._held)
            if n_held <= half and not last:
                return np.empty((x_CT.shape[0], 0))
            x_CT = np.concatenate(self._held, axis=1) if len(self._held) > 1 else x_CT
            self._mean_C1 = x_CT[:, : half + 1].mean(axis=1, keepdims=True)
            before_CT = _continued(x_CT[:, : half + 1] - self._mean_C1, half)[:, ::-1]
            edge_CT = x_CT[:, -(half + 1) :] - self._mean_C1
        else:
            before_CT = self._held[0]
            edge_CT = before_CT[:, :0]
        n_before, n = before_CT.shape[1], x_CT.shape[1]
        signal_CT = np.empty((x_CT.shape[0], n_before + n + (half if last else 0)))
        signal_CT[:, :n_before] = before_CT
        np.subtract(x_CT, self._mean_C1, out=signal_CT[:, n_before : n_before + n])
        if last and half:
            if edge_CT.shape[1] == 0:  # everything in reach is signal: the first piece was longer than half
                edge_CT = signal_CT[:, n_before + n - half - 1 : n_before + n]
            signal_CT[:, n_before + n :] = _continued(edge_CT[:, ::-1], half)
        self._held = [signal_CT[:, signal_CT.shape[1] - 2 * half :].copy()]
        y_CT = self._overlap_save(signal_CT)
        if abs(self._kernel.gain_dc) > 1e-12:  # rounding of a high-pass is not worth a pass over the data
            y_CT += self._kernel.gain_dc * self._mean_C1
        return y_CT

    def _overlap_save(self, signal_CT: np.ndarray) -> np.ndarray:
        """The samples of the convolution that need nothing outside of signal_CT: (C, T - 2 * half)."""
        half = self._kernel.half
        if half == 0:
            return signal_CT * self._kernel.taps[0]
        n_out = signal_CT.shape[1] - 2 * half
        y_CT = np.empty((signal_CT.shape[0], max(n_out, 0)))
        step = self._n_fft - 2 * half
        for start in range(0, n_out, step):
            n_new = min(step, n_out - start)
            # The last block is often short; a transform of its own length then saves most of the work.
            n_fft = self._n_fft if n_new == step else scipy.fft.next_fast_len(n_new + 2 * half, real=True)
            spectrum_CF = scipy.fft.rfft(signal_CT[:, start : start + n_new + 2 * half], n_fft)
            spectrum_CF.view(np.float64)[...] *= _zero_phase_gain(self._kernel, n_fft)
            block_CT = scipy.fft.irfft(spectrum_CF, n_fft, overwrite_x=True)
            y_CT[:, start : start + n_new] = block_CT[:, half : half + n_new]
        return y_CT


def _continued(inward_CT: np.ndarray, n: int) -> np.ndarray:
    """n samples beyond an edge, going outward: point reflection, then zeros. inward_CT starts at the edge."""
    outward_CT = np.zeros((inward_CT.shape[0], n))
    m = min(n, inward_CT.shape[1] - 1)
    outward_CT[:, :m] = 2 * inward_CT[:, :1] - inward_CT[:, 1 : m + 1]
    return outward_CT


@functools.lru_cache(maxsize=8)
def _zero_phase_gain(kernel: Kernel, n_fft: int) -> np.ndarray:
    """The kernel's real spectrum, each value twice: it scales the interleaved real and imaginary parts."""
    centred = np.zeros(n_fft)
    centred[: kernel.half + 1] = kernel.taps[kernel.half :]
    centred[n_fft - kernel.half :] = kernel.taps[: kernel.half]
    gain = np.repeat(scipy.fft.rfft(centred).real, 2)
    gain.setflags(write=False)
    return gain
