"""Stuck and clipped samples: what an amplifier leaves when it is off, or at the end of its range.

Shapes: C channels, K cells, T samples of a cell.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# A peak of clean EEG stays on its highest integer for a few milliseconds, a slow blink for about ten; an
# amplifier at its rail stays there until the signal returns.
_CLIP_S = 0.025
_CLIP_SAMPLES = 3
# Repeating one value this long is no EEG, whatever the amplifier's step (EEGLAB's clean_flatlines looks for 5 s).
_STUCK_S = 0.5


@dataclass(frozen=True)
class _Batch:
    """What is kept of some cells. `low`, `high`: (channels, cells, values) of those that rest on their extreme."""

    finite_CK: np.ndarray
    flat_CK: np.ndarray
    low: tuple[np.ndarray, np.ndarray, np.ndarray]
    high: tuple[np.ndarray, np.ndarray, np.ndarray]


class RawCells:
    """Judges cells of a raw signal, batch by batch; which of them are clipped is known once all have been added."""

    def __init__(self, sfreq: float, flat_uV: float) -> None:
        self._flat_uV = flat_uV
        self._clip = max(_CLIP_SAMPLES, int(np.ceil(_CLIP_S * sfreq)))
        self._stuck = max(_CLIP_SAMPLES, round(_STUCK_S * sfreq))
        self._batches: list[_Batch] = []
        self._lowest_C = self._highest_C = np.zeros(0)  # the recording's rails as far as it has been seen

    def add(self, raw_CKT: np.ndarray, may_be_flat: bool = True) -> None:
        """Add cells of one length, µV. Every batch has the same channels."""
        high_CK, low_CK = raw_CKT.max(axis=-1), raw_CKT.min(axis=-1)
        with np.errstate(invalid="ignore"):
            range_CK = high_CK - low_CK  # NaN when any sample is NaN, not finite when any is infinite
        finite_CK = np.isfinite(range_CK)
        if may_be_flat:
            flat_CK = finite_CK & ((range_CK < self._flat_uV) | self._is_stuck(raw_CKT))
        else:
            flat_CK = np.zeros(finite_CK.shape, bool)
        lowest_C = np.where(finite_CK, low_CK, np.inf).min(axis=1)
        highest_C = np.where(finite_CK, high_CK, -np.inf).max(axis=1)
        if self._batches:
            lowest_C, highest_C = np.minimum(lowest_C, self._lowest_C), np.maximum(highest_C, self._highest_C)
        self._lowest_C, self._highest_C = lowest_C, highest_C
        # Only a cell that reaches the extremes seen so far can turn out to be at the recording's.
        low = self._resting(raw_CKT, low_CK, finite_CK & (low_CK == lowest_C[:, None]))
        high = self._resting(raw_CKT, high_CK, finite_CK & (high_CK == highest_C[:, None]))
        self._batches.append(_Batch(finite_CK, flat_CK, low, high))

    def finite(self) -> list[np.ndarray]:
        """Per batch (C, K): all samples are finite."""
        return [batch.finite_CK for batch in self._batches]

    def flat(self) -> list[np.ndarray]:
        """Per batch (C, K): peak to peak under the limit, or one value repeated for half a second."""
        return [batch.flat_CK for batch in self._batches]

    def clipped(self) -> list[np.ndarray]:
        """Per batch (C, K): the signal rests for 25 ms on the lowest or highest value of all that was added."""
        # A dead channel rests on both of its extremes: it is flat, not clipped.
        alive_C = self._highest_C - self._lowest_C >= self._flat_uV
        found = []
        for batch in self._batches:
            clipped_CK = np.zeros(batch.finite_CK.shape, bool)
            for (channels, cells, values), rails_C in (
                (batch.low, self._lowest_C),
                (batch.high, self._highest_C),
            ):
                clipped_CK[channels, cells] |= (values == rails_C[channels]) & alive_C[channels]
            found.append(clipped_CK)
        return found

    def _is_stuck(self, raw_CKT: np.ndarray) -> np.ndarray:
        if raw_CKT.shape[-1] < self._stuck:
            return np.zeros(raw_CKT.shape[:-1], bool)
        # A run of n equal samples holds two neighbours of every n/2-th sample: a cheap look that misses none.
        sparse_CKT = raw_CKT[..., :: self._stuck // 2]
        stuck_CK = (sparse_CKT[..., 1:] == sparse_CKT[..., :-1]).any(axis=-1)
        if stuck_CK.any():
            suspects_NT = raw_CKT[stuck_CK]
            stuck_CK[stuck_CK] = _has_run(suspects_NT[:, 1:] == suspects_NT[:, :-1], self._stuck - 1)
        return stuck_CK

    def _resting(
        self, raw_CKT: np.ndarray, extreme_CK: np.ndarray, suspect_CK: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(channels, cells, values) of the suspects that stay on their extreme."""
        channels, cells = np.nonzero(suspect_CK)
        values = extreme_CK[channels, cells]
        rests = _has_run(raw_CKT[channels, cells] == values[:, None], self._clip)
        return channels[rests], cells[rests], values[rests]


def _has_run(mask_NT: np.ndarray, length: int) -> np.ndarray:
    """Whether `length` neighbours in a row are set, for each row."""
    if mask_NT.shape[1] < length:
        return np.zeros(len(mask_NT), bool)
    counts = np.cumsum(mask_NT, axis=1, dtype=np.int32)
    counts[:, length:] -= counts[:, :-length].copy()
    return np.asarray((counts[:, length - 1 :] == length).any(axis=1))
