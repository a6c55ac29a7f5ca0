"""From a recording as it lies on disk to microvolts at one rate, band-limited: planned once, processed in pieces.

Shapes: C channels, T samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, model_validator

from ddscale.signal.channels import Channel
from ddscale.signal.filtering import Kernel, StreamingFIR, design, fft_length, low_pass_end, notch_stop_edge
from ddscale.signal.reference import rereference
from ddscale.signal.resampling import StreamingResampler, output_length, ratio

Read = Callable[[int, int], np.ndarray]
"""read(start, stop) -> (C, stop - start) float64 or float32, microvolts."""

# A low-pass this close to the recording's Nyquist frequency would need a filter of more than 6.6 s and would
# have nothing left to remove.
_LOW_PASS_ROOM_HZ = 0.5
_CHANNELS_AT_ONCE = 4  # their blocks of 32,768 samples and spectra stay in a 2 MB cache


class Preprocessing(BaseModel):
    """What is done to the signal before it is stored."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True, protected_namespaces=()
    )

    sfreq: float = 256.0
    """Sampling rate of the store, Hz. A window of 512 samples lasts 2 s at 256 Hz."""
    l_freq: float | None = 0.5
    """High-pass edge, Hz (null: none). Lower keeps slow waves and drift, and lengthens the filter: 3.3 / l_freq s."""
    h_freq: float | None = 100.0
    """Low-pass edge, Hz (null: only the resampler's), below sfreq / 2. Skipped where a recording ends below it."""
    notch: Literal["auto"] | list[float] | None = "auto"
    """Line frequencies to remove, Hz; "auto" looks for 50 or 60 Hz in each recording's spectrum and adds harmonics."""
    reference: Literal["as_recorded", "average"] | list[str] = "as_recorded"
    """as_recorded, average (of the good EEG channels), or names of the channels whose mean is subtracted."""

    @model_validator(mode="after")
    def _check(self) -> Preprocessing:
        if not 1 <= self.sfreq <= 100_000:
            raise ValueError(
                f"sfreq is {self.sfreq:g} Hz: give a sampling rate between 1 and 100000 Hz, such as 256"
            )
        if self.l_freq is not None and self.l_freq <= 0:
            raise ValueError(f"l_freq is {self.l_freq:g} Hz: give a positive edge, or null for no high-pass")
        if self.h_freq is not None and self.h_freq <= (self.l_freq or 0):
            raise ValueError(f"h_freq ({self.h_freq:g} Hz) must lie above l_freq ({self.l_freq or 0:g} Hz)")
        if self.h_freq is not None and self.h_freq >= self.sfreq / 2:
            raise ValueError(
                f"h_freq ({self.h_freq:g} Hz) must lie below half of sfreq ({self.sfreq / 2:g} Hz): "
                f"lower h_freq (a quarter of it is the filter's slope: {self.sfreq * 0.4:g} is safe), or raise sfreq"
            )
        if isinstance(self.notch, list) and (not self.notch or min(self.notch) <= 1):
            raise ValueError("notch needs frequencies above 1 Hz, such as [50.0], or auto, or null for none")
        if isinstance(self.reference, list) and not self.reference:
            raise ValueError("reference is an empty list: name channels, or write as_recorded or average")
        return self


class NonFinite(ValueError):
    """process met NaN or infinity; `split_at_nonfinite` finds the stretches without."""

    def __init__(self, sample: int) -> None:
        self.sample = sample
        super().__init__(
            f"Sample {sample} is not finite, and a filter would spread it over seconds: process the spans that "
            "split_at_nonfinite keeps."
        )


@dataclass(frozen=True)
class Plan:
    """What `settings` come to for recordings of one rate."""

    sfreq: float
    target_sfreq: float
    factor: Fraction
    l_freq: float | None
    h_freq: float | None
    notches: tuple[float, ...]
    kernel: Kernel
    skipped: tuple[str, ...]
    """What the settings ask for and this rate has no room for, in words."""

    @property
    def rate_error(self) -> float:
        """Relative difference between the ratio used and the ratio of the stated rates: at most 1e-7."""
        return float(self.factor / (Fraction(self.target_sfreq) / Fraction(self.sfreq)) - 1)

    def output_samples(self, n_samples: int) -> int:
        """How many samples `process` yields for a span of n_samples."""
        return output_length(n_samples, self.factor)

    def description(self) -> dict[str, Any]:
        """The plan in words and numbers, for a store's metadata; JSON-able."""
        n_taps = len(self.kernel.taps)
        return {
            "sfreq": self.sfreq,
            "target_sfreq": self.target_sfreq,
            "resampling": f"polyphase {self.factor.numerator}/{self.factor.denominator}, Kaiser 5.0",
            "rate_error": self.rate_error,
            "filter": f"zero-phase FIR, {n_taps} taps ({n_taps / self.sfreq:.2f} s), Hamming",
            "l_freq": self.l_freq,
            "h_freq": self.h_freq,
            "notch": list(self.notches),
            "skipped": list(self.skipped),
        }


def plan(settings: Preprocessing, sfreq: float, line_freq: float | None = None) -> Plan:
    """Fit the settings to a recording's rate.

    sfreq: the recording's, Hz. line_freq: what its survey found; used when `notch` is "auto".
    Raises ValueError when the recording cannot be brought to these settings.
    """
    factor = ratio(sfreq, settings.sfreq)
    nyquist = sfreq / 2
    skipped = []
    l_freq, h_freq = settings.l_freq, settings.h_freq
    if l_freq is not None and l_freq >= nyquist:
        raise ValueError(
            f"The recording is sampled at {sfreq:g} Hz, so nothing of it is above l_freq = {l_freq:g} Hz: "
            "check its sampling rate, or lower preprocessing.l_freq."
        )
    if h_freq is not None and h_freq > nyquist - _LOW_PASS_ROOM_HZ:
        skipped.append(f"low-pass at {h_freq:g} Hz: the recording ends at {nyquist:g} Hz")
        h_freq = None
    if settings.notch == "auto":
        top = nyquist if h_freq is None else low_pass_end(h_freq, nyquist)
        wanted = [] if line_freq is None else [k * line_freq for k in range(1, int(top / line_freq) + 1)]
    else:
        wanted = sorted(settings.notch or [])
    notches = tuple(freq for freq in wanted if notch_stop_edge(freq) < nyquist)
    skipped += [
        f"notch at {freq:g} Hz: the recording ends at {nyquist:g} Hz"
        for freq in wanted
        if freq not in notches
    ]
    kernel = design(sfreq, l_freq, h_freq, notches)
    return Plan(sfreq, settings.sfreq, factor, l_freq, h_freq, notches, kernel, tuple(skipped))


def process(
    read: Read,
    n_samples: int,
    sfreq: float,
    settings: Preprocessing,
    line_freq: float | None = None,
    *,
    span: tuple[int, int] | None = None,
    channels: Sequence[Channel] | None = None,
    picks: Sequence[int] | None = None,
    on_raw: Callable[[int, np.ndarray], None] | None = None,
    chunk_samples: int | None = None,
) -> Iterator[tuple[int, np.ndarray]]:
    """Re-reference, filter and resample one continuous stretch of a recording, piece by piece.

    n_samples, sfreq: the recording's length and rate, Hz. line_freq: its survey's, for `notch: auto`.
    span: the stretch (start, stop) to process, by default all; its ends are treated as the signal's ends.
    picks: rows of `read` to keep, by default all. channels: one per row of `read`; needed to change the reference,
        for which named ears and mastoids are read even when they are not kept.
    on_raw: called with (start within the span, (C, T) µV of the picked rows as read) once for every stretch, in
        order, before its output; it must not change the array.
    chunk_samples: input samples per step; by default a few FFT blocks' worth. The result does not depend on it.
    Returns an iterator over (start, block): block (C, T) float32 µV at settings.sfreq, start counted in output
    samples from the span's start, in order and without gaps; `Plan.output_samples` says how many in all.
    Raises ValueError at once for settings that cannot serve, NonFinite while iterating.
    Memory: about four chunks, whatever n_samples is.
    """
    begin, end = span or (0, n_samples)
    if not 0 <= begin <= end <= n_samples:
        raise ValueError(f"Span {begin}..{end} is not inside the recording's {n_samples} samples.")
    planned = plan(settings, sfreq, line_freq)
    if settings.reference != "as_recorded" and channels is None:
        raise ValueError(
            "A reference other than as_recorded needs the recording's channels: pass `channels`."
        )
    change = None if channels is None else rereference(settings.reference, channels, picks)
    if picks is not None:
        n_channels = len(picks)
    elif channels is not None:
        n_channels = len(channels)
    else:
        n_channels = read(begin, min(begin + 1, end)).shape[0]
    if n_channels == 0:
        raise ValueError("No channels are left to process: every one was dropped or is of a kind not kept.")
    asked = picks if change is None else [*(range(n_channels) if picks is None else picks), *change.unpicked]
    n_fft = fft_length(len(planned.kernel.taps), n_channels)
    step = chunk_samples or n_fft - 2 * planned.kernel.half

    def pieces() -> Iterator[tuple[int, np.ndarray]]:
        chains = [
            (
                slice(row, row + _CHANNELS_AT_ONCE),
                StreamingFIR(planned.kernel, n_fft),
                StreamingResampler(planned.factor),
            )
            for row in range(0, n_channels, _CHANNELS_AT_ONCE)
        ]
        written = 0
        for start in range(begin, end, step):
            stop = min(start + step, end)
            x_CT = _read(read, start, stop, asked)
            if on_raw is not None:
                on_raw(start - begin, x_CT[:n_channels])
            if change is not None:
                x_CT = np.array(x_CT, dtype=np.float64)
                change.apply(x_CT)
                x_CT = x_CT[:n_channels]
            last = stop == end
            parts = [
                resampler.push(fir.push(x_CT[rows], last), last).astype(np.float32)
                for rows, fir, resampler in chains
            ]
            if parts and parts[0].shape[1]:
                block_CT = np.concatenate(parts)
                yield written, block_CT
                written += block_CT.shape[1]

    return pieces()


def split_at_nonfinite(
    read: Read,
    span: tuple[int, int],
    min_samples: int,
    picks: Sequence[int] | None = None,
    chunk_samples: int = 65536,
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Cut a span where any picked channel is NaN or infinite.

    Returns (kept, rejected), both in order and together the whole span: kept ones are finite throughout and at
    least min_samples long, rejected ones are the rest. Reads the span once, chunk by chunk.
    """
    kept: list[tuple[int, int]] = []
    begin, end = span
    run_start: int | None = None
    for start in range(begin, end, chunk_samples):
        x_CT = read(start, min(start + chunk_samples, end))
        finite_T = np.isfinite(x_CT if picks is None else x_CT[list(picks)]).all(axis=0)
        edges = np.flatnonzero(np.diff(finite_T, prepend=run_start is not None)) + start
        for edge in edges.tolist():
            if run_start is None:
                run_start = edge
            else:
                if edge - run_start >= min_samples:
                    kept.append((run_start, edge))
                run_start = None
    if run_start is not None and end - run_start >= min_samples:
        kept.append((run_start, end))
    borders = [begin, *(border for stretch in kept for border in stretch), end]
    rejected = [(a, b) for a, b in zip(borders[::2], borders[1::2], strict=True) if b > a]
    return kept, rejected


def _read(read: Read, start: int, stop: int, picks: Sequence[int] | None) -> np.ndarray:
    """Rows `picks` of samples start..stop. Raises NonFinite, and ValueError when the reader returns another shape."""
    x_CT = read(start, stop)
    if x_CT.ndim != 2 or x_CT.shape[1] != stop - start:
        raise ValueError(
            f"Samples {start}..{stop} were asked for and an array of shape {x_CT.shape} came back: the file is "
            "shorter than its header says; re-export it, or exclude it."
        )
    if picks is not None and list(picks) != list(range(x_CT.shape[0])):
        x_CT = x_CT[list(picks)]
    # One sum sees every NaN and infinity, at a tenth of the cost of testing each sample.
    if not np.isfinite(x_CT.sum()) and not (finite_T := np.isfinite(x_CT).all(axis=0)).all():
        raise NonFinite(start + int(np.argmin(finite_T)))
    return x_CT
