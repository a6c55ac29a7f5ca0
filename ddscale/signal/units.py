"""Units (signatures first)."""

from __future__ import annotations

import numpy as np


def microvolts_per(unit: str) -> float:
    raise NotImplementedError


def implausible_unit(rms_C: np.ndarray, assumed: str | None = None) -> str | None:
    """assumed: the unit the numbers were read in (V, mV, uV, nV), when known: makes the sentence exact."""
    raise NotImplementedError
