"""Channels (signatures first)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["eeg", "eog", "emg", "ecg", "stim", "ref", "misc"]


@dataclass(frozen=True)
class Channel:
    """One channel of a recording."""

    name: str  # as the recording gives it
    standard: str | None  # 10-05 spelling ("Fp1"), EGI ("E12"), BioSemi ("A1"); None when unknown or bipolar
    kind: Kind
    position: tuple[float, float, float] | None = None  # metres, MNE head frame
    pair: tuple[str, str] | None = None  # (anode, cathode) standard names of a bipolar derivation


def standardise(
    names: Sequence[str],
    kinds: Sequence[str | None] | None = None,
    positions: Sequence[tuple[float, float, float] | None] | None = None,
    device: str | None = None,
) -> list[Channel]:
    raise NotImplementedError
