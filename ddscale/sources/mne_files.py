"""Recordings read through MNE, one known reader per format, lazily.

Shapes: C channels, T samples.
"""

from __future__ import annotations

import contextlib
import io
import math
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mne
import numpy as np

from ddscale.sources import companions
from ddscale.sources.marking import is_bad, is_break, is_skip
from ddscale.sources.recording import Mark, OpenRecording
from ddscale.sources.selection import Position, Statements, select

# MNE's channel types that may be of use; the others (MEG, NIRS, intracranial...) are left out by name.
_KINDS = {
    "eeg": "eeg",
    "eog": "eog",
    "ecg": "ecg",
    "emg": "emg",
    "stim": "stim",
    "misc": "misc",
    "bio": "misc",
}

# Formats whose files have no word on their unit, and whose writers are used to µV.
_UNIT_BY_CUSTOM = {"EEGLAB", "Nicolet", "BCI2000", "eXimia"}

_EXTRA_PACKAGE = {"ANT CNT": "antio", "Curry": "curryreader", "MEF3": "pymef"}


def open_with_mne(path: Path, format_name: str, statements: Statements) -> OpenRecording:
    """Open a file with the MNE reader of its format, without loading it.

    Raises ValueError naming the file, the cause and a remedy when it cannot be read.
    """
    companions.check(path, format_name)
    with quiet():
        raw = read_raw(path, format_name)
        units = _header_units(path, format_name, raw)
        reference = companions.brainvision_reference(path) if format_name == "BrainVision" else None
        recording = from_raw(raw, str(path), format_name, units, statements, reference)
        with explained(path, format_name):
            recording.read(
                recording.n_samples - 1, recording.n_samples
            )  # a header may promise what is not there
    return recording


def from_raw(
    raw: mne.io.BaseRaw,
    path: str,
    format_name: str,
    header_units: list[tuple[str | None, float]],
    statements: Statements,
    reference: str | None = None,
    close: Callable[[], None] | None = None,
) -> OpenRecording:
    """An open recording from an MNE Raw.

    header_units: per channel, the unit that the file states for its numbers (None: it is silent) and how many
    volts MNE made of one such number; so that numbers can be read in another unit than MNE's guess.
    close: what else is to be released with the recording.
    """
    types = raw.get_channel_types()
    selection = select(
        path,
        raw.ch_names,
        kinds=[_KINDS.get(kind) for kind in types],
        units=[unit for unit, _ in header_units],
        statements=replace(statements, bad_channels=statements.bad_channels | frozenset(raw.info["bads"])),
        assumed="V" if format_name == "FIF" else "uV",
        positions=_positions(raw),
        unusable={
            name: f"MNE type {kind}, not scalp EEG"
            for name, kind in zip(raw.ch_names, types, strict=True)
            if kind not in _KINDS and name not in statements.kinds
        },
    )
    volts_C = np.array([header_units[i][1] for i in selection.index])
    scale_C1 = (selection.scale_C / volts_C)[:, None]
    index = np.array(selection.index)

    def read(start: int, stop: int) -> np.ndarray:
        with quiet():
            return raw.get_data(picks=index, start=start, stop=stop) * scale_C1

    def release() -> None:
        raw.close()
        if close is not None:
            close()

    return OpenRecording(
        path=path,
        sfreq=raw.info["sfreq"],
        n_samples=raw.n_times,
        channels=selection.channels,
        read=read,
        unit=selection.unit,
        unit_source=selection.unit_source,
        reference=statements.reference or reference,
        spans=_spans(raw),
        marks=_marks(raw),
        meta=_meta(raw, format_name, selection.dropped) | dict(statements.meta),
        close=release,
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence what MNE (and mffpy, in print) says about headers: what a user could act on is checked here."""
    with (
        warnings.catch_warnings(),
        mne.utils.use_log_level("ERROR"),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def explained(path: Path, format_name: str) -> Iterator[None]:
    """Whatever a reader stumbles over becomes one sentence about the file."""
    try:
        yield
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:
        package = _EXTRA_PACKAGE.get(format_name)
        if package is not None and package in str(error):
            raise ValueError(
                f"{path}: reading {format_name} needs `{package}`: pip install {package}."
            ) from error
        cause = " ".join(str(error).split())[:300].rstrip(".")
        if not isinstance(error, ValueError | RuntimeError | OSError | NotImplementedError):
            cause = f"{type(error).__name__} {cause}".strip()
        raise ValueError(f"{path} cannot be read as {format_name}: {cause}. {_remedy(cause)}") from error


def _remedy(cause: str) -> str:
    """What to do about a file that MNE refuses, by its words or the kind of its failure."""
    if "No raw data in" in cause:
        return "It may hold epochs or averages: give the continuous recording, or exclude it."
    misnamed = re.match(r"Only (\w+) files are supported, got", cause)
    if misnamed:
        return f"Rename it: its content is {misnamed[1]}, so its name must end in .{misnamed[1].lower()}."
    if cause.startswith(("IndexError", "EOFError", "error unpack")):
        return "It may be cut short: copy it again from its origin, or exclude it."
    return (
        "If it opens in the software that recorded it, export it from there as EDF+ or BrainVision; otherwise copy it "
        "again, or exclude it."
    )


def read_raw(path: Path, format_name: str) -> mne.io.BaseRaw:
    """The file as MNE's reader of its format gives it, not loaded. Raises ValueError naming file, cause and remedy."""
    with explained(path, format_name):
        if format_name == "Neuroscan CNT":
            return _read_neuroscan(path)
        if format_name == "GDF":
            return _read_gdf(path)
        return _READERS[format_name](path)


_READERS: dict[str, Callable[[Path], mne.io.BaseRaw]] = {
    "BrainVision": lambda path: mne.io.read_raw_brainvision(path),
    "FIF": lambda path: mne.io.read_raw_fif(path, allow_maxshield="yes", on_split_missing="raise"),
    "ANT CNT": lambda path: mne.io.read_raw_ant(path),
    "Curry": lambda path: mne.io.read_raw_curry(path),
    "Nihon Kohden": lambda path: mne.io.read_raw_nihon(path),
    "Nicolet": lambda path: mne.io.read_raw_nicolet(path, ch_type="eeg"),
    "Persyst": lambda path: mne.io.read_raw_persyst(path),
    "BCI2000": lambda path: mne.io.read_raw_bci2k(path),
    "eXimia": lambda path: mne.io.read_raw_eximia(path),
    "NEDF": lambda path: mne.io.read_raw_nedf(path),
    "Blackrock NSx": lambda path: mne.io.read_raw_nsx(path),
    "MEF3": lambda path: mne.io.read_raw_mef(path),
    "CTF": lambda path: mne.io.read_raw_ctf(path),
}


def _read_neuroscan(path: Path) -> mne.io.BaseRaw:
    """Neuroscan headers miscount their samples often enough, and 16 and 32 bit cannot be told apart then."""
    try:
        return mne.io.read_raw_cnt(path)
    except RuntimeError as error:
        if "data_format" not in str(error) and "data format" not in str(error):
            raise
    with path.open("rb") as file:
        file.seek(370)
        n_channels = int.from_bytes(file.read(2), "little")
        file.seek(900 + 75 * n_channels)
        start = file.read(1 << 16)
    words = np.frombuffer(start[: len(start) // 4 * 4], "<i2")
    # The upper halves of 32-bit EEG are all but always the sign alone; as 16-bit samples they would be flat.
    wide = np.isin(words[1::2], (0, -1)).mean() > 0.9 > np.isin(words[::2], (0, -1)).mean()
    size_is_known = path.stat().st_size < 2e9  # beyond, the position of the event table has overflowed
    return mne.io.read_raw_cnt(
        path, data_format="int32" if wide else "int16", recompute_n_samples=size_is_known
    )


def _read_gdf(path: Path) -> mne.io.BaseRaw:
    """At the rate of most channels: MNE would resample the others anew in every block that is read."""
    raw = mne.io.read_raw_gdf(path)
    extras = raw._raw_extras[0]
    samples = extras["n_samps"][extras["sel"]]
    values, counts = np.unique(samples, return_counts=True)
    if len(values) == 1:
        return raw
    main = values[np.lexsort((values, counts))[-1]]
    return mne.io.read_raw_gdf(path, exclude=[raw.ch_names[i] for i in np.flatnonzero(samples != main)])


def _header_units(path: Path, format_name: str, raw: mne.io.BaseRaw) -> list[tuple[str | None, float]]:
    """Per channel: the unit the file states (None: silent), and the volts that MNE made of one number."""
    n = len(raw.ch_names)
    if format_name == "GDF":
        extras = raw._raw_extras[0]
        texts = companions.gdf_units(path)
        return [(texts[s], float(factor)) for s, factor in zip(extras["sel"], extras["units"], strict=True)]
    if format_name == "FIF":
        return [(None, 1.0)] * n
    if format_name == "BrainVision":
        stated = companions.brainvision_units(path)
        return [(stated.get(name), _volts(raw._orig_units.get(name))) for name in raw.ch_names]
    return [(None if format_name in _UNIT_BY_CUSTOM else "uV", 1e-6)] * n


def _volts(unit: str | None) -> float:
    return {"V": 1.0, "mV": 1e-3, "µV": 1e-6, "uV": 1e-6, "nV": 1e-9, None: 1e-6}.get(unit, 1.0)


def _positions(raw: mne.io.BaseRaw) -> list[Position | None]:
    """Electrode positions in metres, head frame; None where there is none that could be on a head."""
    positions: list[Position | None] = []
    for channel in raw.info["chs"]:
        x, y, z = (float(value) for value in channel["loc"][:3])
        on_a_head = 0.03 < math.sqrt(x * x + y * y + z * z) < 0.25  # NaN compares as not
        positions.append((x, y, z) if on_a_head else None)
    return positions


def _spans(raw: mne.io.BaseRaw) -> list[tuple[int, int]]:
    """[start, stop) stretches between interruptions."""
    sfreq, first, n_times = raw.info["sfreq"], raw.first_time, int(raw.n_times)
    cuts: list[tuple[int, int]] = []
    for annotation in raw.annotations:
        description = annotation["description"]
        if not is_break(description):
            continue
        # EEGLAB's boundaries and NetStation's skips lie half a sample before the one they precede.
        begin = (annotation["onset"] - first) * sfreq
        end = begin + (annotation["duration"] * sfreq if is_skip(description) else 0)
        begin, end = (min(max(math.ceil(value - 1e-3), 0), n_times) for value in (begin, end))
        cuts.append((begin, end))
    spans, position = [], 0
    for begin, end in sorted(cuts):
        if begin > position:
            spans.append((position, begin))
        position = max(position, end, begin)
    if position < n_times:
        spans.append((position, n_times))
    return spans


def _marks(raw: mne.io.BaseRaw) -> list[Mark]:
    """What is annotated as bad."""
    return [
        Mark.at(
            annotation["onset"] - raw.first_time,
            annotation["duration"],
            raw.info["sfreq"],
            int(raw.n_times),
            annotation.get("ch_names") or (),
        )
        for annotation in raw.annotations
        if is_bad(annotation["description"])
    ]


def _meta(raw: mne.io.BaseRaw, format_name: str, dropped: dict[str, str]) -> dict[str, Any]:
    info = raw.info
    meta: dict[str, Any] = {"format": format_name}
    if info["highpass"]:
        meta["highpass_hz"] = float(info["highpass"])
    if info["lowpass"] and info["lowpass"] < 0.5 * info["sfreq"]:
        meta["lowpass_hz"] = float(info["lowpass"])
    if info["line_freq"]:
        meta["line_freq"] = float(info["line_freq"])
    device = info.get("device_info") or {}
    if names := [str(device[key]) for key in ("type", "model") if device.get(key)]:
        meta["device"] = " ".join(names)
    if dropped:
        meta["dropped_channels"] = dropped
    return meta
