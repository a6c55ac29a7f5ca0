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
        self._sfreq_raw, self._sfreq = sfreq_raw, sfreq
        self._lines = (50.0, 60.0) if line_freq is None else (line_freq,)
        self._counted_C = (
            None if eeg_C is None or np.all(eeg_C) or not np.any(eeg_C) else np.asarray(eeg_C, bool)
        )
        self._lowest_C = self._highest_C = np.zeros(
            0
        )  # the recording's rails; one value per channel once known
        self._closed: list[_Span] = []
        self._open = self._new_span()

    def add_raw(self, start: int, raw_CT: np.ndarray) -> None:
        """The next raw samples of the open span, µV, from sample `start` of it (process's on_raw)."""
        for cells_CKT in self._open.raw_cutter.push(start, self._counted(raw_CT)):
            self._measure_raw(cells_CKT)

    def add_processed(self, start: int, block_CT: np.ndarray) -> None:
        """The next processed samples of the open span, µV, from output sample `start` of it."""
        for cells_CKT in self._open.cutter.push(start, self._counted(block_CT)):
            self._measure(cells_CKT)

    def close_span(self) -> None:
        """The open span has ended; its last cell, when under half of one, is too short to be flat or an outlier."""
        for cells_CKT in self._open.raw_cutter.rest():
            self._measure_raw(
                cells_CKT, whole=cells_CKT.shape[-1] >= self._settings.cell_s * self._sfreq_raw / 2
            )
        for cells_CKT in self._open.cutter.rest():
            self._measure(cells_CKT, whole=cells_CKT.shape[-1] >= self._settings.cell_s * self._sfreq / 2)
        self._closed.append(self._open)
        self._open = self._new_span()

    def judge(self) -> list[list[Cell]]:
        """The cells of every closed span, in order, each with the reasons to leave it out."""
        outlier_CK = self._spectral_outliers([p.bands_BCK for span in self._closed for p in span.processed])
        judged, first = [], 0
        for span in self._closed:
            n_cells = sum(p.loud_CK.shape[1] for p in span.processed)
            # Filters and references carry NaN on into other channels: one is enough.
            nonfinite_CK = _joined([raw.nonfinite_CK for raw in span.raw], n_cells)
            rejected_K = {"nan": nonfinite_CK.sum(axis=0) > 0}
            for reason, failing_CK in {
                "flat": _joined([raw.flat_CK for raw in span.raw], n_cells),
                "clipped": _joined([self._clipped(raw) for raw in span.raw], n_cells),
                "amplitude": _joined([p.loud_CK for p in span.processed], n_cells),
                "line_noise": _joined([p.humming_CK for p in span.processed], n_cells),
                "spectral_outlier": outlier_CK[:, first : first + n_cells],
            }.items():
                n_channels = max(len(failing_CK), 1)
                rejected_K[reason] = failing_CK.sum(axis=0) > self._settings.bad_channels * n_channels
            edges = span.cutter.edges(n_cells)
            judged.append(
                [
                    Cell(edges[k], edges[k + 1], tuple(reason for reason in REASONS if rejected_K[reason][k]))
                    for k in range(n_cells)
                ]
            )
            first += n_cells
        return judged

    def _new_span(self) -> _Span:
        cell_s = self._settings.cell_s
        return _Span(CellCutter(cell_s * self._sfreq_raw), CellCutter(cell_s * self._sfreq), [], [])

    def _counted(self, signal_CT: np.ndarray) -> np.ndarray:
        return signal_CT if self._counted_C is None else signal_CT[self._counted_C]

    def _measure_raw(self, cells_CKT: np.ndarray, whole: bool = True) -> None:
        cells = rails.measure(cells_CKT, self._sfreq_raw, self._settings.flat_uV)
        lowest_C = np.where(cells.finite_CK, cells.low_CK, np.inf).min(axis=1)
        highest_C = np.where(cells.finite_CK, cells.high_CK, -np.inf).max(axis=1)
        if len(self._lowest_C):
            lowest_C, highest_C = np.minimum(lowest_C, self._lowest_C), np.maximum(highest_C, self._highest_C)
        self._lowest_C, self._highest_C = lowest_C, highest_C
        # Which extremes are the recording's is known at its end; until then only resting cells keep theirs.
        at_low, at_high = np.nonzero(cells.at_low_CK), np.nonzero(cells.at_high_CK)
        self._open.raw.append(
            _RawCells(
                ~cells.finite_CK,
                cells.flat_CK & whole,
                at_low,
                cells.low_CK[at_low],
                at_high,
                cells.high_CK[at_high],
            )
        )

    def _clipped(self, raw: _RawCells) -> np.ndarray:
        # A dead channel rests on both of its extremes: it is flat, not clipped.
        alive_C = self._highest_C - self._lowest_C >= self._settings.flat_uV
        clipped_CK = np.zeros(raw.flat_CK.shape, bool)
        clipped_CK[raw.at_low] = (raw.low == self._lowest_C[raw.at_low[0]]) & alive_C[raw.at_low[0]]
        clipped_CK[raw.at_high] |= (raw.high == self._highest_C[raw.at_high[0]]) & alive_C[raw.at_high[0]]
        return clipped_CK

    def _measure(self, cells_CKT: np.ndarray, whole: bool = True) -> None:
        loud_CK = np.maximum(cells_CKT.max(axis=-1), -cells_CKT.min(axis=-1)) > self._settings.amplitude_uV
        n_bands = len(spectrum.BANDS_HZ)
        bands_BCK = np.full((n_bands, *loud_CK.shape), np.nan, np.float16)
        humming_CK = np.zeros(loud_CK.shape, bool)
        if whole:
            freqs = spectrum.frequencies(cells_CKT.shape[-1], self._sfreq)
            members_FS = np.stack(
                [(freqs >= low) & (freqs < high) for low, high in spectrum.BANDS_HZ]
                + [np.abs(freqs - line) <= _LINE_HALF_WIDTH_HZ for line in self._lines],
                axis=1,
            )
            # One matrix product sums the bins of all bands and lines.
            sums_CKS = spectrum.power(cells_CKT, self._sfreq) @ (members_FS * freqs[1]).astype(
                cells_CKT.dtype
            )
            bands_CKB, lines_CKL = sums_CKS[..., :n_bands], sums_CKS[..., n_bands:]
            bands_BCK[...] = np.log10(np.maximum(bands_CKB, _POWER_FLOOR)).transpose(2, 0, 1)
            total_CK1 = np.maximum(bands_CKB.sum(axis=-1, keepdims=True), _POWER_FLOOR)
            humming_CK = (lines_CKL > self._settings.line_noise * total_CK1).any(axis=-1)
        self._open.processed.append(_ProcessedCells(loud_CK, humming_CK, bands_BCK))

    def _spectral_outliers(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """(C, K) over all spans: whether any band lies far from the channel's median."""
        if not parts:
            return np.zeros((0, 0), bool)
        bands_BCK = np.concatenate(parts, axis=2)
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


@dataclass(frozen=True)
class _RawCells:
    nonfinite_CK: np.ndarray
    flat_CK: np.ndarray
    at_low: tuple[np.ndarray, ...]  # (channels, cells) that rest on their lowest value, and that value
    low: np.ndarray
    at_high: tuple[np.ndarray, ...]
    high: np.ndarray


@dataclass(frozen=True)
class _ProcessedCells:
    loud_CK: np.ndarray
    humming_CK: np.ndarray
    bands_BCK: np.ndarray  # log10 µV², float16; NaN where the cell is too short


@dataclass
class _Span:
    raw_cutter: CellCutter
    cutter: CellCutter
    raw: list[_RawCells]
    processed: list[_ProcessedCells]


def _joined(parts: Sequence[np.ndarray], n_cells: int) -> np.ndarray:
    """(C, n_cells) of parts of cells. Rounding can make a raw cell more or fewer than there are processed ones."""
    if not parts:
        return np.zeros((0, n_cells), bool)
    joined_CK = np.concatenate(parts, axis=1)[:, :n_cells]
    return np.pad(joined_CK, ((0, 0), (0, n_cells - joined_CK.shape[1])))


def runs(cells: Sequence[Cell]) -> list[Cell]:
    """Neighbouring cells of one span with the same reasons, joined."""
    joined: list[Cell] = []
    for cell in cells:
        if joined and joined[-1].reasons == cell.reasons and joined[-1].stop == cell.start:
            joined[-1] = Cell(joined[-1].start, cell.stop, cell.reasons)
        else:
            joined.append(cell)
    return joined
