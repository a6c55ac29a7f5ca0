"""EGI's simple binary format (.raw of NetStation), read directly.

MNE builds one float64 row per event code over the whole recording to open it, and takes the µV of the A/D range
for V. The format: a header, then one frame per sample with all channels and all event codes, big-endian.
Shapes: C channels, T samples.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from ddscale.sources.recording import OpenRecording
from ddscale.sources.selection import Statements, select

_TYPES = {2: ">i2", 4: ">f4", 6: ">f8"}  # by version; the odd versions are the same, segmented


def open_egi_raw(path: Path, statements: Statements) -> OpenRecording:
    """Open a continuous simple binary file.

    Raises ValueError when it is segmented, or shorter than its header says.
    """
    with path.open("rb") as file:
        fixed = file.read(36)
    version, *_, rate, n_channels, _gain, bits, value_range = struct.unpack(">i6hi5h", fixed[:30])
    if version not in _TYPES:
        raise ValueError(
            f"{path} is cut into segments (version {version}): export the continuous recording instead."
        )
    n_samples, n_events = struct.unpack(">ih", fixed[30:36])
    kind = np.dtype(_TYPES[version])
    row, offset = n_channels + n_events, 36 + 4 * n_events
    expected, found = offset + n_samples * row * kind.itemsize, path.stat().st_size
    if found < expected:
        raise ValueError(
            f"{path} is truncated: its header promises {n_samples} samples, {expected} bytes, and the file has "
            f"{found}. Copy it again from its origin."
        )
    selection = select(
        str(path),
        [f"E{i + 1}" for i in range(n_channels)],
        kinds=None,
        units=["uV"] * n_channels,
        statements=statements,
        device="egi",
    )
    # Integers come with the range of the converter in µV; floats are µV.
    step = value_range / 2**bits if bits and value_range else 1.0
    scale_C1 = step * selection.scale_C[:, None]

    def read(start: int, stop: int) -> np.ndarray:
        at = offset + start * row * kind.itemsize
        frames_TR = np.fromfile(path, kind, (stop - start) * row, offset=at).reshape(-1, row)
        return frames_TR[:, selection.index].T * scale_C1

    left_out = {} if not n_events else {f"{n_events} event codes": "stimulus channels"}
    return OpenRecording(
        path=str(path),
        sfreq=rate,
        n_samples=n_samples,
        channels=selection.channels,
        read=read,
        unit=selection.unit,
        unit_source=selection.unit_source,
        reference=statements.reference,
        meta={"format": "EGI raw", "dropped_channels": selection.dropped | left_out} | dict(statements.meta),
    )
