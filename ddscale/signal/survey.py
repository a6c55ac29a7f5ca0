"""Survey."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Survey:
    """What up to 16 evenly spaced stretches of 20 s say about a recording; arrays have one value per channel."""

    rms_C: np.ndarray  # µV above 0.5 Hz, median over stretches; NaN where nothing finite was seen
    finite_C: np.ndarray  # fraction of samples that are finite
    flat_C: np.ndarray  # fraction of 2 s cells without signal
    clipped_C: np.ndarray  # fraction of samples in runs at the channel's extremes
    line_C: np.ndarray  # line_freq's share of the power above 0.5 Hz; 0 without line_freq
    line_freq: float | None  # 50.0, 60.0, or None when neither stands out of the spectrum


def survey(
    read: Callable[[int, int], np.ndarray],
    n_samples: int,
    sfreq: float,
    spans: Sequence[tuple[int, int]] | None = None,
    eeg_C: np.ndarray | None = None,
) -> Survey:
    """read(start, stop) -> (C, T) µV. spans: continuous stretches (default: the whole); eeg_C: mask of the channels that vote on line_freq."""
    raise NotImplementedError
