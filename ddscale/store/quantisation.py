"""Microvolts to the integers a store keeps. C channels, T samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Dtype = Literal["int16", "float32"]

INT16_LIMIT = 32767
"""Largest magnitude written; values of this magnitude are counted as clipped. -32768 is never written."""


@dataclass
class Quantiser:
    """Turns (C, T) float µV into the store's (T, C) values, keeping count of what is lost.

    step: µV per least significant bit (ignored for float32, whose values are µV).
    clipped: values beyond the range, or not finite, so far; they are written at the limit, or as 0 when NaN.
    largest_error: µV, of all values within the range so far; at most half a step.
    """

    dtype: Dtype
    step: float
    clipped: int = 0
    largest_error: float = 0.0

    def __call__(self, block_CT: np.ndarray) -> np.ndarray:
        """(T, C), C-contiguous, little-endian, in the store's dtype."""
        block_TC = np.ascontiguousarray(block_CT.T, dtype=np.float32)
        finite_TC = np.isfinite(block_TC)
        if not finite_TC.all():
            self.clipped += int(finite_TC.size - np.count_nonzero(finite_TC))
            block_TC = np.nan_to_num(block_TC, nan=0.0)
        if self.dtype == "float32":
            return block_TC.astype("<f4", copy=False)
        scaled_TC = block_TC * np.float32(1.0 / self.step)
        rounded_TC = np.rint(scaled_TC)
        beyond_TC = np.abs(rounded_TC) > INT16_LIMIT
        if beyond_TC.any():
            self.clipped += int(np.count_nonzero(beyond_TC))
            np.clip(rounded_TC, -INT16_LIMIT, INT16_LIMIT, out=rounded_TC)
            scaled_TC[beyond_TC] = rounded_TC[beyond_TC]
        if scaled_TC.size:
            scaled_TC -= rounded_TC
            error = float(np.abs(scaled_TC, out=scaled_TC).max()) * self.step
            self.largest_error = max(self.largest_error, error)
        return rounded_TC.astype("<i2")


def count_clipped(values: np.ndarray) -> int:
    """How many stored integers lie at the limit of their range; 0 for float32."""
    if values.dtype.kind != "i":
        return 0
    return int(np.count_nonzero(np.abs(values) == INT16_LIMIT))
