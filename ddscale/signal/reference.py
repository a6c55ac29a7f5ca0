"""Re-referencing: subtracting the mean of all scalp electrodes, or of named ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ddscale.signal.channels import Channel

Reference = Literal["as_recorded", "average"] | list[str]


@dataclass(frozen=True)
class Rereference:
    """Which rows change, and the mean of which rows is taken off them."""

    rows: tuple[int, ...]
    reference_rows: tuple[int, ...]

    def apply(self, signal_CT: np.ndarray) -> None:
        """Re-reference (channels, samples) in place."""
        mean_T = signal_CT[list(self.reference_rows)].mean(axis=0)
        signal_CT[list(self.rows)] -= mean_T


def rereference(reference: Reference, channels: Sequence[Channel]) -> Rereference | None:
    """Find the rows that `reference` means in a recording; None for "as_recorded".

    "average": over the EEG electrodes in `channels` (so leave bad ones out). A list: channels by their own or
    their standard name, e.g. ["M1", "M2"]. EOG, ECG and bipolar channels, whose reference is their own, stay.
    Raises ValueError when the recording has no such channels or only bipolar ones.
    """
    if reference == "as_recorded":
        return None
    monopolar = [
        i for i, c in enumerate(channels) if c.kind in ("eeg", "ref") and not (c.pair and c.standard is None)
    ]
    eeg = [i for i in monopolar if channels[i].kind == "eeg"]
    if not eeg:
        raise ValueError(
            "A reference can only be changed for electrodes, and this recording has no EEG channel that is not "
            "bipolar: set `reference: as_recorded` for it."
        )
    if reference == "average":
        return Rereference(tuple(eeg), tuple(eeg))
    rows, missing = [], []
    for name in reference:
        wanted = name.casefold()
        matches = [
            i
            for i in monopolar
            if wanted in (channels[i].name.casefold(), (channels[i].standard or "").casefold())
        ]
        rows.extend(matches[:1])
        if not matches:
            missing.append(name)
    if missing:
        raise ValueError(
            f"Reference {', '.join(missing)} is not among the usable channels ({', '.join(c.name for c in channels)}): "
            "name channels of this recording, or set `reference: average` or `as_recorded`."
        )
    return Rereference(tuple(monopolar), tuple(rows))
