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
class RawCells:
    """Raw features of some cells; rows are channels, columns cells."""

    finite_CK: np.ndarray
    """All samples are finite."""
    flat_CK: np.ndarray
    """Peak to peak under the limit, or one value repeated for half a second."""
    low_CK: np.ndarray
    high_CK: np.ndarray
    """Extremes, µV; NaN where not finite."""
    at_low_CK: np.ndarray
    at_high_CK: np.ndarray
    """The signal rests on that extreme for 25 ms: clipped, if the extreme is the whole recording's."""


def measure(raw_CKT: np.ndarray, sfreq: float, flat_uV: float) -> RawCells:
    """Measure cells of a raw signal, µV."""
    n_samples = raw_CKT.shape[-1]
    high_CK, low_CK = raw_CKT.max(axis=-1), raw_CKT.min(axis=-1)
    with np.errstate(invalid="ignore"):
        range_CK = high_CK - low_CK  # NaN when any sample is NaN or both ends are infinite
    finite_CK = np.isfinite(range_CK)
    clip = max(_CLIP_SAMPLES, int(np.ceil(_CLIP_S * sfreq)))
    stuck = max(_CLIP_SAMPLES, round(_STUCK_S * sfreq))
    flat_CK = range_CK < flat_uV
    if n_samples > stuck:
        flat_CK |= _has_run(raw_CKT[..., 1:] == raw_CKT[..., :-1], stuck - 1)
    return RawCells(
        finite_CK,
        flat_CK & finite_CK,
        low_CK,
        high_CK,
        _has_run(raw_CKT == low_CK[..., None], clip),
        _has_run(raw_CKT == high_CK[..., None], clip),
    )


def _has_run(mask_CKT: np.ndarray, length: int) -> np.ndarray:
    """Whether `length` neighbours in a row are set, for each (channel, cell)."""
    found_CK = np.count_nonzero(mask_CKT, axis=-1) >= length
    if found_CK.any():  # rare: only these cells are worth looking at in order
        counts = np.cumsum(mask_CKT[found_CK], axis=-1, dtype=np.int32)
        counts[:, length:] -= counts[:, :-length].copy()
        found_CK[found_CK] = (counts[:, length - 1 :] == length).any(axis=-1)
    return found_CK
