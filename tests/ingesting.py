"""What the tests of ingest share: small recordings of known content, recipes for them, fingerprints of folders."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import hashlib
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import edfio
import numpy as np
import scipy.signal

from ddscale import recipes
from ddscale.ingest import IngestRecipe
from ddscale.sources.recording import OpenRecording, Recording

SFREQ = 128
NAMES = ("Fp1", "Cz", "O2", "P3")


def eeg(seconds: float, seed: int, channels: int = 4, sfreq: float = SFREQ) -> np.ndarray:
    """(C, T) µV, 15 µV RMS, redder than white and stationary: nothing that quality control objects to."""
    white = np.random.default_rng(seed).normal(size=(channels, round(seconds * sfreq) + 200))
    red = scipy.signal.lfilter([1.0], [1.0, -0.9], white)[:, 200:]
    return 15 * red / red.std()


def write_edf(
    path: Path, signal_CT: np.ndarray, sfreq: float = SFREQ, names: Sequence[str] = NAMES, unit: str = "uV"
) -> Path:
    """An EDF file of whole seconds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    reach = float(np.ceil(np.abs(signal_CT).max() + 1))
    edfio.Edf(
        [
            edfio.EdfSignal(row, sfreq, label=name, physical_dimension=unit, physical_range=(-reach, reach))
            for row, name in zip(signal_CT, names, strict=True)
        ]
    ).write(path)
    return path


def cohort(folder: Path, subjects: int = 3, recordings: int = 2, seconds: float = 20) -> Path:
    """folder/sub1/run1.edf ... : every recording different."""
    for subject in range(1, subjects + 1):
        for run in range(1, recordings + 1):
            write_edf(folder / f"sub{subject}" / f"run{run}.edf", eeg(seconds, 100 * subject + run))
    return folder


def tree(folder: Path, out: Path, **changes: Any) -> dict[str, Any]:
    """A recipe for the recordings in `folder`, as YAML would give it; quick, in this process."""
    return {
        "stage": "ingest",
        "out": str(out),
        "sources": [{"kind": "files", "dataset": "tests", "folder": str(folder)}],
        "preprocessing": {"sfreq": 100.0, "l_freq": 1.0, "h_freq": 40.0},
        "storage": {"record_s": 8.0, "shard_mb": 0.02},
        "workers": 0,
    } | changes


def recipe(folder: Path, out: Path, **changes: Any) -> IngestRecipe:
    return recipes.check(tree(folder, out, **changes), IngestRecipe, "test recipe")


def contents(folder: Path, without: Sequence[str] = ()) -> dict[str, str]:
    """SHA-256 of every file below a folder, by relative path."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in without
    }


def times(folder: Path) -> dict[str, int]:
    """Time of change of every file below a folder, by relative path."""
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()
    }


def crashing(dataset: str = "tests") -> Recording:
    """A recording that takes its reader's process down, as a faulty C library would."""
    return Recording(dataset, "nobody", "a_crash", "crash.cnt", 1, _crash)


def _crash() -> OpenRecording:
    ctypes.string_at(0)
    raise AssertionError("still alive")


def hanging(dataset: str = "tests") -> Recording:
    """A recording whose reader never comes back and holds the interpreter meanwhile: its process answers nobody."""
    return Recording(dataset, "nobody", "a_hang", "hang.cnt", 1, _hang)


def _hang() -> OpenRecording:
    ctypes.PyDLL(None).pause()
    raise AssertionError("woken up")


def killed_once(recording: Recording, marker: Path) -> Recording:
    """The recording, whose reader is killed as by a host that fails, in the middle and the first time only."""
    return dataclasses.replace(
        recording, opener=functools.partial(_open_killed_once, recording.opener, marker)
    )


def _open_killed_once(opener: Callable[[], OpenRecording], marker: Path) -> OpenRecording:
    opened = opener()
    read, calls = opened.read, 0

    def killed(*arguments: Any, **named: Any) -> np.ndarray:
        nonlocal calls
        calls += 1
        if calls == 2 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return read(*arguments, **named)

    opened.read = killed  # type: ignore[method-assign]
    return opened


def until_told(folder: Path, recording: Recording) -> None:
    """Takes the place of reading a recording: notes that it has begun, and waits for the file `go`."""
    (folder / f"{recording.id}.begun").touch()
    while not (folder / "go").exists():
        time.sleep(0.05)
