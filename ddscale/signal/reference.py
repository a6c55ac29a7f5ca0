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
    """Which rows change, and the mean of which rows is taken off them; rows are those picked, then `unpicked`."""

    rows: tuple[int, ...]
    reference_rows: tuple[int, ...]
    unpicked: tuple[int, ...] = ()
    """Channels of the recording that are only needed for the reference."""

    def apply(self, signal_CT: np.ndarray) -> None:
        """Re-reference (channels, samples) in place."""
        mean_T = signal_CT[list(self.reference_rows)].mean(axis=0)
        signal_CT[list(self.rows)] -= mean_T


def rereference(
    reference: Reference, channels: Sequence[Channel], picks: Sequence[int] | None = None
) -> Rereference | None:
    """Find the rows that `reference` means in a recording; None for "as_recorded".

    channels: all of the recording. picks: those that are kept (leave bad ones out), by default all.
    "average": over the picked EEG electrodes. A list: picked channels, ears and mastoids by their own or their
    standard name, e.g. ["M1", "M2"]. EOG, ECG and bipolar channels, whose reference is their own, stay as they are.
    Raises ValueError when the recording has no such channels or only bipolar ones.
    """
    if reference == "as_recorded":
        return None
    picked = list(range(len(channels))) if picks is None else list(picks)
    rows = [row for row, i in enumerate(picked) if _has_own_electrode(channels[i])]
    eeg = [row for row in rows if channels[picked[row]].kind == "eeg"]
    if not eeg:
        raise ValueError(
            "A reference can only be changed for electrodes, and this recording has no EEG channel that is not "
            "bipolar: set `reference: as_recorded` for it."
        )
    if reference == "average":
        return Rereference(tuple(eeg), tuple(eeg))
    spare = [i for i, channel in enumerate(channels) if channel.kind == "ref" and i not in picked]
    usable = [picked[row] for row in rows] + spare
    found, missing = [], []
    for name in reference:
        wanted = name.casefold()
        matches = [
            i
            for i in usable
            if wanted in (channels[i].name.casefold(), (channels[i].standard or "").casefold())
        ]
        found.extend(matches[:1])
        if not matches:
            missing.append(name)
    if missing:
        raise ValueError(
            f"Reference {', '.join(missing)} is not among the usable channels "
            f"({', '.join(channels[i].name for i in usable)}): name channels of this recording, or set "
            "`reference: average` or `as_recorded`."
        )
    unpicked = tuple(i for i in found if i not in picked)
    order = [*picked, *unpicked]
    return Rereference(tuple(rows), tuple(order.index(i) for i in found), unpicked)


def _has_own_electrode(channel: Channel) -> bool:
    return channel.kind in ("eeg", "ref") and not (channel.pair and channel.standard is None)
