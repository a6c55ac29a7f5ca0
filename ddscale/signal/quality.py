"""Signal quality: which channels of a recording, and which stretches of it, are not worth learning from.

A recording is judged in cells of a few seconds. Every cell and channel is measured while the recording streams
by; a cell is rejected, by reason, when enough of its channels fail.
Shapes: C channels, K cells, T samples, B frequency bands, F frequencies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from ddscale.signal import rails, spectrum
from ddscale.signal.cells import CellCutter
from ddscale.signal.survey import FLAT_UV, Survey

REASONS = ("nan", "flat", "clipped", "amplitude", "line_noise", "spectral_outlier")
"""Why a cell or a channel is left out, in the order in which reasons are listed."""

# Fewer cells than this have no distribution to be an outlier of.
_MIN_CELLS = 20
# In log10 power. Stationary signals have a smaller spread in the wide bands, where three of it is no artefact.
_MIN_IQR = 0.15
_LINE_HALF_WIDTH_HZ = 1.0
_POWER_FLOOR = 1e-7  # µV²: keeps log10 within float16's useful range


class Quality(BaseModel):
    """Limits of what is kept."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True, protected_namespaces=()
    )

    cell_s: float = Field(2.0, ge=0.5, le=60.0)
    """Length of the stretches judged, s. Shorter ones lose less signal around an artefact and see it less clearly."""
    flat_uV: float = Field(FLAT_UV, ge=0)
    """Under this peak to peak in a cell a channel is flat, µV (MNE's tutorials say 1); so is 0.5 s of one value."""
    amplitude_uV: float = Field(200.0, gt=0)
    """Largest absolute value after filtering, µV. CBraMod rejects at 100 in any one channel; 200 keeps blinks."""
    line_noise: float = Field(0.5, gt=0, le=1)
    """Largest share of what is left of 50 or 60 Hz in the power of a filtered cell."""
    spectral_iqr: float = Field(3.0, gt=0)
    """A band's log power is an outlier this many interquartile ranges from the channel's median over the recording."""
    bad_channels: float = Field(0.25, ge=0, lt=1)
    """A cell is rejected when more than this fraction of its EEG channels fails for one reason; 0: any channel."""
    bad_cells: float = Field(0.5, ge=0, lt=1)
    """A channel is dropped from the recording when more than this fraction of its surveyed cells fails."""
    marked_bad: bool = True
    """Leave out what somebody marked as bad in the recording's own annotations or its BIDS events (MNE's custom: a
    description that begins with `bad`), to the sample. Marks of single channels count where they are more than
    `bad_channels` of the EEG's."""


@dataclass(frozen=True)
class Cell:
    """One judged cell of a span: output samples start..stop, counted from the span's start."""

    start: int
    stop: int
    reasons: tuple[str, ...]
    """Empty: keep it."""


def bad_channels(survey: Survey, settings: Quality) -> dict[int, str]:
    """Channels to drop from the whole recording: index -> reason (nan, flat, clipped or amplitude).

    Judged on the survey, so that process and the store need not see them. Check the unit first: numbers read in
    the wrong one are flat or far too large throughout.
    An EEG channel whose RMS is over half the amplitude limit would fail in nearly every cell, and is dropped.
    """
    found: dict[int, str] = {}
    for i in range(len(survey.rms_C)):
        if 1 - survey.finite_C[i] > settings.bad_cells or np.isnan(survey.rms_C[i]):
            found[i] = "nan"
        elif survey.flat_C[i] > settings.bad_cells:
            found[i] = "flat"
        elif survey.clipped_C[i] > settings.bad_cells:
            found[i] = "clipped"
        elif survey.eeg_C[i] and survey.rms_C[i] > settings.amplitude_uV / 2:
            found[i] = "amplitude"
    return found


class Meter:
    """Measures a recording while it streams by, then judges its cells.

        meter = Meter(settings, sfreq_raw, sfreq, line_freq)
        for span in spans:
            for start, block in process(..., span=span, on_raw=meter.add_raw):
                meter.add_processed(start, block)
            meter.close_span()
        cells = meter.judge()  # per span a list of Cell

    Cells start at each span's start. Flat and clipped are measured on the raw signal, since a filter hides both;
    amplitude, line noise and spectrum on the processed one. Nothing depends on how the signal is cut into
    blocks. Memory: 14 bytes per cell and channel, 13 MB for four hours of 128 channels.
    """

    def __init__(
        self,
        settings: Quality,
        sfreq_raw: float,
        sfreq: float,
        line_freq: float | None = None,
        eeg_C: np.ndarray | None = None,
    ) -> None:
        """sfreq_raw, sfreq: before and after processing, Hz. line_freq: the survey's; without it 50 and 60 Hz are
        both looked at. eeg_C: mask of the channels that count, by default all (also where none is EEG)."""
        self._settings = settings
        self._samples_per_cell = settings.cell_s * sfreq_raw, settings.cell_s * sfreq
        every = eeg_C is None or np.all(eeg_C) or not np.any(eeg_C)
        self._counted_C = None if every else np.asarray(eeg_C, bool)
        self._raw = rails.RawCells(sfreq_raw, settings.flat_uV)
        self._processed = _ProcessedCells(
            settings, sfreq, (50.0, 60.0) if line_freq is None else (line_freq,)
        )
        self._closed: list[_Span] = []
        self._open = self._new_span()

    def add_raw(self, start: int, raw_CT: np.ndarray) -> None:
        """The next raw samples of the open span, µV, from sample `start` of it (process's on_raw)."""
        for cells_CKT in self._open.raw_cutter.push(start, self._counted(raw_CT)):
            self._raw.add(cells_CKT)

    def add_processed(self, start: int, block_CT: np.ndarray) -> None:
        """The next processed samples of the open span, µV, from output sample `start` of it."""
        for cells_CKT in self._open.cutter.push(start, self._counted(block_CT)):
            self._processed.add(cells_CKT)

    def close_span(self) -> None:
        """The open span has ended; its last cell, when under half of one, is too short to be flat or an outlier."""
        whole_raw, whole = self._samples_per_cell
        for cells_CKT in self._open.raw_cutter.rest():
            self._raw.add(cells_CKT, may_be_flat=cells_CKT.shape[-1] >= whole_raw / 2)
        for cells_CKT in self._open.cutter.rest():
            self._processed.add(cells_CKT, spectra=cells_CKT.shape[-1] >= whole / 2)
        self._closed.append(self._open)
        self._open = self._new_span()

    def judge(self) -> list[list[Cell]]:
        """The cells of every closed span, in order, each with the reasons to leave it out."""
        raw = {
            "nan": [~finite_CK for finite_CK in self._raw.finite()],
            "flat": self._raw.flat(),
            "clipped": self._raw.clipped(),
        }
        processed = {
            "amplitude": self._processed.loud,
            "line_noise": self._processed.humming,
            "spectral_outlier": [self._processed.outliers()],
        }
        # Filters and references carry NaN on into other channels: one is enough.
        limit = dict.fromkeys(REASONS, self._settings.bad_channels) | {"nan": 0.0}
        rejected_raw = {reason: _too_many(parts, limit[reason]) for reason, parts in raw.items()}
        rejected = {reason: _too_many(parts, limit[reason]) for reason, parts in processed.items()}
        judged, first_raw, first = [], 0, 0
        for span in self._closed:
            n_raw, n_cells = span.raw_cutter.n_cells, span.cutter.n_cells
            # Rounding can make a span's last cell exist on one side only.
            n_both = min(n_raw, n_cells)
            of_span = {reason: cells_K[first : first + n_cells] for reason, cells_K in rejected.items()}
            for reason, cells_K in rejected_raw.items():
                of_span[reason] = np.zeros(n_cells, bool)
                of_span[reason][:n_both] = cells_K[first_raw : first_raw + n_both]
            edges = span.cutter.edges()
            judged.append(
                [
                    Cell(edges[k], edges[k + 1], tuple(reason for reason in REASONS if of_span[reason][k]))
                    for k in range(n_cells)
                ]
            )
            first_raw, first = first_raw + n_raw, first + n_cells
        return judged

    def _new_span(self) -> _Span:
        raw, processed = self._samples_per_cell
        return _Span(CellCutter(raw), CellCutter(processed))

    def _counted(self, signal_CT: np.ndarray) -> np.ndarray:
        return signal_CT if self._counted_C is None else signal_CT[self._counted_C]


@dataclass(frozen=True)
class _Span:
    raw_cutter: CellCutter
    cutter: CellCutter


class _ProcessedCells:
    """Judges cells of the processed signal, batch by batch."""

    def __init__(self, settings: Quality, sfreq: float, lines: tuple[float, ...]) -> None:
        self._settings = settings
        self._sfreq = sfreq
        self._lines = lines
        self.loud: list[np.ndarray] = []
        """Per batch (C, K): over the amplitude limit."""
        self.humming: list[np.ndarray] = []
        """Per batch (C, K): line noise over its limit."""
        self._bands: list[
            np.ndarray
        ] = []  # per batch (B, C, K) log10 µV², float16; NaN where a cell is too short

    def add(self, cells_CKT: np.ndarray, spectra: bool = True) -> None:
        """Add cells of one length, µV; `spectra` is False for cells too short to have comparable ones."""
        loud_CK = np.maximum(cells_CKT.max(axis=-1), -cells_CKT.min(axis=-1)) > self._settings.amplitude_uV
        n_bands = len(spectrum.BANDS_HZ)
        bands_BCK = np.full((n_bands, *loud_CK.shape), np.nan, np.float16)
        humming_CK = np.zeros(loud_CK.shape, bool)
        if spectra:
            freqs = spectrum.frequencies(cells_CKT.shape[-1], self._sfreq)
            members_SF = [(freqs >= low) & (freqs < high) for low, high in spectrum.BANDS_HZ]
            members_SF += [np.abs(freqs - line) <= _LINE_HALF_WIDTH_HZ for line in self._lines]
            weights_FS = (np.stack(members_SF, axis=1) * freqs[1]).astype(cells_CKT.dtype)
            # One matrix product sums the bins of all bands and lines.
            sums_CKS = spectrum.power(cells_CKT, self._sfreq) @ weights_FS
            bands_CKB, lines_CKL = sums_CKS[..., :n_bands], sums_CKS[..., n_bands:]
            bands_BCK[...] = np.log10(np.maximum(bands_CKB, _POWER_FLOOR)).transpose(2, 0, 1)
            total_CK1 = np.maximum(bands_CKB.sum(axis=-1, keepdims=True), _POWER_FLOOR)
            humming_CK = (lines_CKL > self._settings.line_noise * total_CK1).any(axis=-1)
        self.loud.append(loud_CK)
        self.humming.append(humming_CK)
        self._bands.append(bands_BCK)

    def outliers(self) -> np.ndarray:
        """(C, K) of all batches: any band far from the channel's median over the recording."""
        if not self._bands:
            return np.zeros((0, 0), bool)
        bands_BCK = np.concatenate(self._bands, axis=2)
        outlier_CK = np.zeros(bands_BCK.shape[1:], bool)
        known_K = ~np.isnan(bands_BCK).any(axis=(0, 1))
        if known_K.sum() < _MIN_CELLS:
            return outlier_CK
        for band_CK in bands_BCK[:, :, known_K]:
            power_CK = band_CK.astype(np.float32)
            low_C1, median_C1, high_C1 = np.quantile(power_CK, (0.25, 0.5, 0.75), axis=1, keepdims=True)
            reach_C1 = self._settings.spectral_iqr * np.maximum(high_C1 - low_C1, _MIN_IQR)
            outlier_CK[:, known_K] |= np.abs(power_CK - median_C1) > reach_C1
        return outlier_CK


def _too_many(batches_CK: Sequence[np.ndarray], fraction: float) -> np.ndarray:
    """(K,) of all batches: more than `fraction` of the channels fail."""
    if not batches_CK:
        return np.zeros(0, bool)
    return np.concatenate([batch_CK.sum(axis=0) > fraction * len(batch_CK) for batch_CK in batches_CK])


def runs(cells: Sequence[Cell]) -> list[Cell]:
    """Neighbouring cells of one span with the same reasons, joined."""
    joined: list[Cell] = []
    for cell in cells:
        if joined and joined[-1].reasons == cell.reasons and joined[-1].stop == cell.start:
            joined[-1] = Cell(joined[-1].start, cell.stop, cell.reasons)
        else:
            joined.append(cell)
    return joined
