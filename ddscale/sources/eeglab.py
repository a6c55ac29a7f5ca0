"""EEGLAB .set files: samples beside them (.fdt) or inside, MATLAB before 7.3 or HDF5.

MNE holds samples that are inside in memory. From HDF5 they can be read in parts; older MATLAB files compress a
variable as a whole (2 GB at most), so they are unpacked into a temporary file once.
Shapes: C channels, T samples.
"""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mne
import numpy as np

from ddscale.sources.formats import format_of
from ddscale.sources.mne_files import explained, from_raw, quiet
from ddscale.sources.recording import OpenRecording
from ddscale.sources.selection import Statements, select

# Large, and not needed to read the signal.
_IGNORED = (
    "data", "icaact", "icawinv", "icasphere", "icaweights", "times", "history", "specdata", "reject", "stats",
    "urevent", "urchanlocs", "dipfit", "etc", "epoch",
)  # fmt: skip


def open_eeglab(path: Path, statements: Statements) -> OpenRecording:
    """Open a .set file of continuous EEG.

    Raises ValueError when it is damaged, epoched, or its .fdt is missing or shorter than it says.
    """
    with path.open("rb") as file:
        content = format_of(file.read(2048))
    return _open_hdf5(path, statements) if content == "HDF5" else _open_matlab(path, statements)


def _open_matlab(path: Path, statements: Statements) -> OpenRecording:
    scratch = tempfile.TemporaryDirectory(prefix="ddscale-")
    try:
        with quiet():
            with explained(path, "EEGLAB"):
                raw = mne.io.read_raw_eeglab(path)
            inside = raw.preload or raw._raw_extras[0].get("is_embedded", False)
            if inside:
                raw.save(unpacked := Path(scratch.name) / "unpacked_raw.fif", fmt="single")
                raw.close()
                raw = mne.io.read_raw_fif(unpacked)
            else:
                data = Path(str(raw.filenames[0]))
                _check_samples(path, data, len(raw.ch_names), raw.n_times)
            units: list[tuple[str | None, float]] = [(None, 1e-6)] * len(raw.ch_names)
            return from_raw(raw, str(path), "EEGLAB", units, statements, close=scratch.cleanup)
    except BaseException:
        scratch.cleanup()
        raise


def _open_hdf5(path: Path, statements: Statements) -> OpenRecording:
    import pymatreader

    with quiet(), explained(path, "EEGLAB"):
        content = pymatreader.read_mat(path, ignore_fields=_IGNORED)
    eeg = content.get("EEG", content)
    missing = [key for key in ("srate", "nbchan", "pnts") if key not in eeg]
    if missing:
        raise ValueError(f"{path} is a MATLAB file, but no EEGLAB dataset (it has no {', '.join(missing)}).")
    n_channels, n_samples, sfreq = int(eeg["nbchan"]), int(eeg["pnts"]), float(eeg["srate"])
    if int(eeg.get("trials", 1)) != 1:
        raise ValueError(
            f"{path} is cut into {int(eeg['trials'])} epochs: give the continuous recording instead."
        )
    read_samples = _hdf5_samples(path, n_channels, n_samples)
    places = eeg.get("chanlocs") or {}
    names = _listed(places.get("labels"), n_channels) if isinstance(places, dict) else []
    kinds = _listed(places.get("type"), n_channels) if isinstance(places, dict) else []
    selection = select(
        str(path),
        [str(name) for name in names] or [f"EEG {i:03d}" for i in range(n_channels)],
        kinds=[
            str(kind).lower() if kind in ("EEG", "EOG", "EMG", "ECG", "eeg", "eog") else None
            for kind in kinds
        ]
        or None,
        units=[None] * n_channels,
        statements=statements,
    )
    scale_C1 = selection.scale_C[:, None]
    reference = eeg.get("ref")
    return OpenRecording(
        path=str(path),
        sfreq=sfreq,
        n_samples=n_samples,
        channels=selection.channels,
        read=lambda start, stop: read_samples(start, stop)[selection.index] * scale_C1,
        unit=selection.unit,
        unit_source=selection.unit_source,
        reference=statements.reference or (reference if isinstance(reference, str) and reference else None),
        spans=_spans(eeg.get("event"), n_samples),
        meta={"format": "EEGLAB"}
        | ({"dropped_channels": selection.dropped} if selection.dropped else {})
        | dict(statements.meta),
    )


def _hdf5_samples(path: Path, n_channels: int, n_samples: int) -> Callable[[int, int], np.ndarray]:
    """A function (start, stop) -> (C, T) on the samples that a MATLAB 7.3 .set holds or points to."""
    import h5py

    with h5py.File(path) as file:
        key = "EEG/data" if "EEG" in file else "data"
        data = file[key]
        if data.attrs.get("MATLAB_class") == b"char":
            named = path.with_name("".join(map(chr, np.asarray(data).ravel())))
            beside = named if named.exists() else path.with_suffix(".fdt")
            if not beside.exists():
                raise ValueError(
                    f"{path} keeps its samples in {named.name}, which is not beside it: copy it there too."
                )
            _check_samples(path, beside, n_channels, n_samples)
            shape = (n_samples, n_channels)
            return lambda start, stop: np.array(np.memmap(beside, "<f4", "r", shape=shape)[start:stop]).T
        if data.shape != (n_samples, n_channels):
            raise ValueError(
                f"{path} states {n_channels} channels of {n_samples} samples, and holds {data.shape[::-1]}."
            )

    def read(start: int, stop: int) -> np.ndarray:
        with h5py.File(path) as file:
            return np.asarray(file[key][start:stop]).T

    return read


def _check_samples(path: Path, data: Path, n_channels: int, n_samples: int) -> None:
    expected, found = 4 * n_channels * n_samples, data.stat().st_size
    if found < expected:
        raise ValueError(
            f"{data} is truncated: {path.name} promises {expected} bytes, and the file has {found}. Copy it again "
            "from its origin."
        )


def _listed(values: Any, n: int) -> list[Any]:
    """One value per channel: MATLAB does not tell a list of one from a value."""
    if isinstance(values, Sequence) and not isinstance(values, str) and len(values) == n:
        return list(values)
    return [values] if n == 1 and values is not None else []


def _spans(events: Any, n_samples: int) -> list[tuple[int, int]]:
    """Stretches between `boundary` events, where EEGLAB cut something out."""
    if not isinstance(events, dict) or "type" not in events or "latency" not in events:
        return [(0, n_samples)]
    types = events["type"] if isinstance(events["type"], list) else [events["type"]]
    latencies = np.atleast_1d(np.asarray(events["latency"], dtype=float)).ravel()
    # Latencies count from 1, and a boundary lies half a sample before the one that follows it.
    cuts = {
        math.ceil(latency - 1 - 1e-3)
        for kind, latency in zip(types, latencies, strict=False)
        if kind == "boundary"
    }
    edges = sorted({0, n_samples, *(cut for cut in cuts if 0 < cut < n_samples)})
    return list(itertools.pairwise(edges))
