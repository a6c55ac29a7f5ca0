"""EGI .mff through mffpy alone, for those whose events or auxiliary files MNE stumbles over.

Shapes: C channels, T samples.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np

from ddscale.sources.mne_files import explained, quiet
from ddscale.sources.recording import OpenRecording
from ddscale.sources.selection import Statements, select


def open_mff(path: Path, statements: Statements) -> OpenRecording:
    """The EEG of an .mff folder; its recording epochs are stretches with interruptions between them.

    Raises ValueError when mffpy cannot read it either.
    """
    import mffpy

    with quiet(), explained(path, "EGI MFF"):
        reader = mffpy.Reader(str(path))
        sfreq = float(reader.sampling_rates["EEG"])
        n_channels = int(reader.num_channels["EEG"])
        reader.set_unit("EEG", "uV")
        blocks = np.asarray(reader.block_sample_counts["EEG"])
        epochs = list(reader.epochs)
    # Blocks, not epoch times, say how many samples there are: times are rounded to microseconds.
    lengths = [int(blocks[epoch.firstBlock - 1 : epoch.lastBlock].sum()) for epoch in epochs]
    edges = np.concatenate([[0], np.cumsum(lengths)]).tolist()
    selection = select(
        str(path),
        [f"E{i + 1}" for i in range(n_channels)],
        kinds=None,
        units=["uV"] * n_channels,
        statements=statements,
        device="egi",
    )
    scale_C1 = selection.scale_C[:, None]

    def read(start: int, stop: int) -> np.ndarray:
        pieces: list[np.ndarray] = []
        for epoch, first, last in zip(epochs, edges[:-1], edges[1:], strict=True):
            begin, end = max(start, first), min(stop, last)
            if begin < end:
                found = reader.get_physical_samples_from_epoch(
                    epoch, t0=(begin - first) / sfreq, dt=(end - begin) / sfreq, channels=["EEG"]
                )
                pieces.append(found["EEG"][0])
        return np.concatenate(pieces, axis=1)[selection.index] * scale_C1

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
        meta={"format": "EGI MFF"}
        | ({"dropped_channels": selection.dropped} if selection.dropped else {})
        | dict(statements.meta),
    )
