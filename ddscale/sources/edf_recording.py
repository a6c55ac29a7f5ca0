"""An EDF or BDF file as an open recording."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from ddscale.signal.channels import standardise
from ddscale.sources import edf, edf_annotations
from ddscale.sources.recording import OpenRecording
from ddscale.sources.selection import Statements, is_stated, microvolts_in, select


def open_edf(path: Path, statements: Statements) -> OpenRecording:
    """Open an EDF(+) or BDF(+) file at the rate of its EEG channels; channels of other rates are left out by name.

    Raises ValueError when the header is malformed, promises more than the file holds, or describes no EEG.
    """
    file = edf.read_header(path)
    signals = [signal for signal in file.signals if not signal.is_annotation]
    rate = _eeg_rate(file, signals)
    unusable = {}
    for signal in signals:
        if signal.samples == 0 or file.rate(signal) != rate:
            unusable[signal.label] = f"sampled at {file.rate(signal):g} Hz, the EEG at {rate:g} Hz"
        elif math.isnan(signal.gain):
            unusable[signal.label] = "its header leaves the scale undefined"
    device = "biosemi" if file.sample_bytes == 3 and _is_biosemi(signals) else None
    selection = select(
        str(path),
        [signal.label for signal in signals],
        kinds=None,
        units=[signal.unit for signal in signals],
        statements=statements,
        device=device,
        unusable=unusable,
    )
    chosen = [signals[i] for i in selection.index]
    gains_C = selection.scale_C * np.array([signal.gain for signal in chosen])
    biases_C = selection.scale_C * np.array([signal.bias for signal in chosen])

    def read(start: int, stop: int) -> np.ndarray:
        return edf.read_signals(file, chosen, start, stop, gains_C, biases_C)

    return OpenRecording(
        path=str(path),
        sfreq=rate,
        n_samples=file.n_records * chosen[0].samples,
        channels=selection.channels,
        read=read,
        unit=selection.unit,
        unit_source=selection.unit_source,
        reference=statements.reference or _common_reference([signal.label for signal in chosen]),
        spans=edf.continuous_spans(file, chosen[0].samples),
        marks=edf_annotations.marks(file, chosen[0].samples),
        meta=_meta(file, chosen, selection.dropped) | dict(statements.meta),
    )


def _eeg_rate(file: edf.EdfFile, signals: list[edf.Signal]) -> float:
    channels = standardise([signal.label for signal in signals])
    eeg = [
        file.rate(signal)
        for signal, channel in zip(signals, channels, strict=True)
        if channel.kind == "eeg" and (not is_stated(signal.unit) or microvolts_in(signal.unit) is not None)
    ]
    rates = eeg or [file.rate(signal) for signal in signals]
    if not rates:
        raise ValueError(f"{file.path} holds annotations only, no signals: exclude it.")
    return edf.choose_rate(rates)


def _is_biosemi(signals: list[edf.Signal]) -> bool:
    return any(
        signal.label == "Status" or "active electrode" in signal.transducer.lower() for signal in signals
    )


def _common_reference(labels: list[str]) -> str | None:
    """What all labels end in: `EEG Fp1-LE`, `EEG Cz-LE`... were recorded against LE."""
    ends = {match.group(1) for label in labels if (match := re.fullmatch(r"EEG .+-(\w+)", label))}
    return ends.pop() if len(ends) == 1 else None


def _meta(file: edf.EdfFile, chosen: list[edf.Signal], dropped: dict[str, str]) -> dict[str, Any]:
    meta: dict[str, Any] = {"format": "BDF" if file.sample_bytes == 3 else "EDF"}
    if prefilters := sorted({signal.prefilter for signal in chosen} - {""}):
        meta["prefilter"] = prefilters
    if transducers := sorted({signal.transducer for signal in chosen} - {""}):
        meta["electrodes"] = transducers
    if dropped:
        meta["dropped_channels"] = dropped
    return meta
