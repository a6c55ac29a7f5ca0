"""Stretches that the annotations of an EDF+ or BDF+ file mark as bad."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ddscale.sources.edf import EdfFile, record_onsets
from ddscale.sources.marking import is_bad, is_skip
from ddscale.sources.recording import Mark

_CHANNEL = "@@"
"""What MNE writes between a description and the channel it is meant for."""


def marks(file: EdfFile, samples: int) -> list[Mark]:
    """The marks for a signal of `samples` per record; times are those of the records, which may be interrupted."""
    found = list(_annotations(file))
    if not found:
        return []
    rate = samples / file.record_s
    onsets_R = _onsets(file)

    def sample_at(second: float) -> int:
        record = max(int(np.searchsorted(onsets_R, second + 0.5 / rate, side="right")) - 1, 0)
        # What lies in an interruption belongs to the end of the record before it.
        within = min(max(round((second - onsets_R[record]) * rate), 0), samples)
        return record * samples + within

    return [
        Mark(sample_at(onset), sample_at(onset + duration), (channel,) if channel else ())
        for onset, duration, channel in found
    ]


def _onsets(file: EdfFile) -> np.ndarray:
    """When each record begins, s from the file's start."""
    onsets_R = None if file.continuous else record_onsets(file)
    if onsets_R is not None:
        return onsets_R
    try:
        first = float(next(_blocks(file)).split(b"\x14")[0])
    except ValueError:
        first = 0.0
    return first + np.arange(file.n_records) * file.record_s


def _blocks(file: EdfFile) -> Iterator[bytes]:
    """What the annotation signals hold, record by record."""
    signals = [signal for signal in file.signals if signal.is_annotation]
    record_bytes = file.record_samples * file.sample_bytes
    with file.path.open("rb") as stream:
        for record in range(file.n_records if signals else 0):
            for signal in signals:
                stream.seek(file.header_bytes + record * record_bytes + signal.offset * file.sample_bytes)
                yield stream.read(signal.samples * file.sample_bytes)


def _annotations(file: EdfFile) -> Iterator[tuple[float, float, str]]:
    """(onset, duration, channel or nothing) of each that marks bad signal."""
    for block in _blocks(file):
        # Most records only say when they begin.
        for text in block.split(b"\x00") if b"bad" in block.lower() else ():
            yield from _of(text)


def _of(text: bytes) -> Iterator[tuple[float, float, str]]:
    """What one list of annotations with a common time says: `+onset[\\x15duration]\\x14description\\x14...`."""
    time, *descriptions = text.split(b"\x14")
    onset, _, duration = time.partition(b"\x15")
    for description in descriptions:
        said, _, channel = description.decode("utf-8", "replace").partition(_CHANNEL)
        if is_bad(said) or is_skip(said):
            try:
                yield float(onset), float(duration or 0), channel
            except ValueError:
                continue  # a time that is none marks nothing
