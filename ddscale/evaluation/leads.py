"""How much better the EEG does than each control, pair by pair: both drew for the same trials from the same noise.

Shape letters: G pictures.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddscale.evaluation.results import number
from ddscale.metrics.controls import difference

Floats = NDArray[np.float64]


def leads(
    values: Mapping[str, Mapping[str, Floats]], proportions: Collection[str], shown: NDArray[np.int64]
) -> dict[str, dict[str, Any]]:
    """Control -> metric -> mean of EEG minus control, with its interval over the pictures shown; for JSON.

    values: condition -> metric -> (G,), NaN where a picture was not judged. proportions: metrics from 0 to 1.
    shown (G,): which picture each was drawn for.
    """
    own = values["eeg"]
    found: dict[str, dict[str, Any]] = {}
    for control, of_control in values.items():
        if control == "eeg":
            continue
        found[control] = {}
        for name in own.keys() & of_control.keys():
            if not np.isfinite(own[name] - of_control[name]).any():
                continue
            lead = asdict(difference(own[name], of_control[name], shown, proportion=name in proportions))
            found[control][name] = lead | {"low": number(lead["low"]), "high": number(lead["high"])}
    return found
