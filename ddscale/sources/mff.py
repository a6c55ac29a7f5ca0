"""EGI's .mff folders, through mffpy.

MNE reads them too, but builds one float64 row per event code over the whole recording, fills pauses with zeros, and
gives up on those whose layout or auxiliary files disagree with the EEG.
Shapes: C channels, T samples.
"""

from __future__ import annotations

import contextlib
import itertools
from pathlib import Path
from typing import Any

import numpy as np

from ddscale.sources.mne_files import explained, quiet
from ddscale.sources.recording import OpenRecording
from ddscale.sources.selection import Statements, select

_REFERENCE = 1  # a sensor's type in sensorLayout.xml; 0 is an electrode


def open_mff(path: Path, statements: Statements) -> OpenRecording:
    """The EEG of an .mff folder; its recording epochs are stretches with interruptions between them.

    Raises ValueError when it cannot be read.
    """
    import mffpy

    with quiet(), explained(path, "EGI MFF"):
        reader = mffpy.Reader(str(path))
        sfreq = float(reader.sampling_rates["EEG"])
        n_channels = int(reader.num_channels["EEG"])
        reader.set_unit("EEG", "uV")
        blocks = np.asarray(reader.block_sample_counts["EEG"])
        epochs = list(reader.epochs)
        auxiliary = sorted(set(reader.num_channels) - {"EEG"})
    # Blocks, not epoch times, say how many samples there are: times are rounded to microseconds.
    lengths = [int(blocks[epoch.firstBlock - 1 : epoch.lastBlock].sum()) for epoch in epochs]
    edges = np.concatenate([[0], np.cumsum(lengths)]).tolist()
    device, references = _layout(path)
    selection = select(
        str(path),
        [f"E{i + 1}" for i in range(n_channels)],
        kinds=["ref" if i + 1 in references else None for i in range(n_channels)],
        units=["uV"] * n_channels,
        statements=statements,
        device=device or "egi",
    )
    scale_C1 = selection.scale_C[:, None]

    def read(start: int, stop: int) -> np.ndarray:
        pieces: list[np.ndarray] = []
        for epoch, (first, last) in zip(epochs, itertools.pairwise(edges), strict=True):
            begin, end = max(start, first), min(stop, last)
            if begin < end:
                found = reader.get_physical_samples_from_epoch(
                    epoch, t0=(begin - first) / sfreq, dt=(end - begin) / sfreq, channels=["EEG"]
                )
                pieces.append(found["EEG"][0])
        return np.concatenate(pieces, axis=1)[selection.index] * scale_C1

    dropped = selection.dropped | dict.fromkeys(auxiliary, "auxiliary channels")
    meta: dict[str, Any] = {"format": "EGI MFF"}
    if device:
        meta["device"] = device
    if dropped:
        meta["dropped_channels"] = dropped
    return OpenRecording(
        path=str(path),
        sfreq=sfreq,
        n_samples=edges[-1],
        channels=selection.channels,
        read=read,
        unit=selection.unit,
        unit_source=selection.unit_source,
        reference=statements.reference,
        spans=list(itertools.pairwise(edges)),
        meta=meta | dict(statements.meta),
    )


def _layout(path: Path) -> tuple[str | None, set[int]]:
    """The net's name and the numbers of its reference electrodes; nothing where the folder does not say."""
    from mffpy.xml_files import XML

    # Positions come from the net's template and names from the numbers: the layout is welcome, not needed.
    with contextlib.suppress(Exception), quiet():
        layout: Any = XML.from_file(str(path / "sensorLayout.xml"))
        references = {
            int(s["number"]) for s in layout.sensors.values() if int(s.get("type", -1)) == _REFERENCE
        }
        return str(layout.name), references
    return None, set()
