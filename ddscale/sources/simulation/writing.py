"""Simulated recordings as real files, written with other people's writers, published whole.

Shapes: C channels, T samples.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ddscale.sources.simulation.devices import Device

EXTENSIONS = {"EDF": ".edf", "BDF": ".bdf", "BrainVision": ".vhdr", "FIF": "_raw.fif"}
_BYTES = {"EDF": 2, "BDF": 3, "BrainVision": 2, "FIF": 4}
_PER_UV = {"uV": 1.0, "mV": 1e-3, "V": 1e-6}
# µV: the range of 16 bits at 0.1 µV, and of BioSemi's 24.
_EDF_RANGE, _BDF_RANGE = 3276.7, 262144.0


def path_of(folder: Path, name: str, device: Device) -> Path:
    """The file that leads to a recording."""
    return folder / f"{name}{EXTENSIONS[device.format]}"


def size_of(device: Device, seconds: int) -> int:
    """Bytes of a recording, before it is written."""
    channels = len(device.electrodes) + len(device.extras)
    return channels * device.sfreq * seconds * _BYTES[device.format]


def write(folder: Path, name: str, device: Device, names: list[str], signal_CT: np.ndarray) -> Path:
    """Write one recording of µV into `folder`, in the device's format; returns its path.

    Written aside, then moved; a BrainVision header last, so that it never names files that are not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    writer = {"EDF": _write_edf, "BDF": _write_edf, "BrainVision": _write_brainvision, "FIF": _write_fif}
    aside = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=folder))
    try:
        write_format: Callable[..., None] = writer[device.format]
        target = path_of(folder, name, device)
        write_format(aside / target.name, device, names, signal_CT)
        for written in sorted(aside.iterdir(), key=lambda path: path.suffix == ".vhdr"):
            with written.open("rb") as file:
                os.fsync(file.fileno())
            written.replace(folder / written.name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return target


def _write_edf(path: Path, device: Device, names: list[str], signal_CT: np.ndarray) -> None:
    import edfio

    bdf = device.format == "BDF"
    file_type, signal_type = (edfio.Bdf, edfio.BdfSignal) if bdf else (edfio.Edf, edfio.EdfSignal)
    limit = _BDF_RANGE if bdf else _EDF_RANGE
    scale = _PER_UV[device.unit]
    signals: list[Any] = []
    for name, signal_T in zip(names, signal_CT, strict=True):
        if name == "Status":
            whole = (-8388608, 8388607)
            signal = signal_type(
                signal_T.astype(np.float64), device.sfreq, physical_range=whole, digital_range=whole
            )
            signal.physical_dimension = "Boolean"
        else:
            physical_T = np.clip(signal_T, -limit, limit).astype(np.float64) * scale
            signal = signal_type(physical_T, device.sfreq, physical_range=(-limit * scale, limit * scale))
            signal.physical_dimension = device.unit
            signal.transducer_type = "simulated"
        signal.label = name
        signals.append(signal)
    file_type(signals, data_record_duration=1).write(path)


def _write_brainvision(path: Path, device: Device, names: list[str], signal_CT: np.ndarray) -> None:
    import pybv

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pybv.write_brainvision(
            data=np.clip(signal_CT, -_EDF_RANGE, _EDF_RANGE).astype(np.float64) * 1e-6,
            sfreq=device.sfreq,
            ch_names=names,
            ref_ch_names="+".join(device.reference) or None,
            fname_base=path.stem,
            folder_out=path.parent,
            resolution=0.1,
            unit="µV",
            fmt="binary_int16",
        )


def _write_fif(path: Path, device: Device, names: list[str], signal_CT: np.ndarray) -> None:
    import mne

    info = mne.create_info(names, device.sfreq, "eeg", verbose="ERROR")
    raw = mne.io.RawArray(signal_CT.astype(np.float64) * 1e-6, info, verbose="ERROR")
    raw.save(path, fmt="single", verbose="ERROR")
