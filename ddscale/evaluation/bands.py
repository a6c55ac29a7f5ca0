"""The classical frequency bands, as far as a window and a store's filters hold them. T samples, C channels."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy import signal

Floats = NDArray[np.float64]

CLASSICAL: dict[str, tuple[float, float]] = {
    "delta": (0.5, 4.0),
    "theta": (4.0, 8.0),
    "alpha": (8.0, 13.0),
    "beta": (13.0, 30.0),
    "gamma": (30.0, 100.0),
}
_ORDER = 4


def usable_bands(
    sfreq: float, window_s: float, l_freq: float | None, h_freq: float | None
) -> dict[str, tuple[float, float]]:
    """Name -> (low, high) Hz of the bands that are there to be looked at.

    sfreq: Hz; window_s: seconds of a window, which holds nothing slower than one cycle; l_freq, h_freq: the store's
    pass band, None where it is open. A band that sticks out is cut; one of which less than half is left is dropped.
    """
    lowest = max(l_freq or 0.0, 1 / window_s)
    highest = min(h_freq or np.inf, 0.9 * sfreq / 2)
    bands = {}
    for name, (low, high) in CLASSICAL.items():
        cut = (max(low, lowest), min(high, highest))
        # A part of gamma is gamma still: 30 to 45 Hz is what many stores have of it.
        needed = 10.0 if name == "gamma" else (high - low) / 2
        if cut[1] - cut[0] >= needed:
            bands[name] = cut
    return bands


class BandFilters:
    """Zero-phase Butterworth band-passes of short windows (4th order, forwards and backwards)."""

    def __init__(self, bands: Mapping[str, tuple[float, float]], sfreq: float) -> None:
        """bands: name -> (low, high), Hz."""
        self.names = list(bands)
        self._filters = [
            # Padded by two cycles of the slowest frequency, evenly mirrored: in windows of 2 s at most a tenth of
            # a tone's amplitude then strays into another band, with SciPy's short odd padding almost half of it.
            (signal.butter(_ORDER, edges, "bandpass", fs=sfreq, output="sos"), round(2 * sfreq / edges[0]))
            for edges in bands.values()
        ]

    def __call__(self, x_TC: NDArray[np.floating]) -> list[Floats]:
        """(T, C) to one (T, C) array per band."""
        return [
            signal.sosfiltfilt(sos, x_TC, axis=0, padtype="even", padlen=min(len(x_TC) - 1, padding))
            for sos, padding in self._filters
        ]
