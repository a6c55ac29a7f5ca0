"""Which format a file has: by its first bytes where the format can be told from them, by its extension elsewhere.

A file whose extension lies is read as what it is when the content leaves no doubt, and refused by name otherwise.
No reader is ever tried blindly: MNE's ANT reader, for one, crashes the whole process on a Neuroscan .cnt.
"""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import numpy as np

# What an extension promises. Formats that keep one recording in several files are listed by the file that
# leads to the others (.vhdr, .lay, .data); an extension with two formats is settled by content.
EXTENSIONS: dict[str, tuple[str, ...]] = {
    ".edf": ("EDF",),
    ".rec": ("EDF",),
    ".bdf": ("BDF",),
    ".gdf": ("GDF",),
    ".vhdr": ("BrainVision",),
    ".ahdr": ("BrainVision",),
    ".set": ("EEGLAB",),
    ".fif": ("FIF",),
    ".fif.gz": ("FIF",),
    ".raw": ("EGI raw",),
    ".mff": ("EGI MFF",),
    ".cnt": ("Neuroscan CNT", "ANT CNT"),
    ".cdt": ("Curry",),
    ".eeg": ("Nihon Kohden",),
    ".data": ("Nicolet",),
    ".lay": ("Persyst",),
    ".dat": ("Curry", "BCI2000"),
    ".nxe": ("eXimia",),
    ".nedf": ("NEDF",),
    ".ns3": ("Blackrock NSx",),
    ".mefd": ("MEF3",),
    ".ds": ("CTF",),
}
FOLDER_EXTENSIONS = (".mff", ".mefd", ".ds")

# Formats whose content has no signature of its own: the extension has to be believed, within what companion
# files and sizes confirm when the file is opened.
_WITHOUT_SIGNATURE = {"Curry", "Nicolet", "eXimia", "MEF3", "CTF"}

_NIHON_KOHDEN = re.compile(rb"(EEG-1100[ABC]|QI-403A|EEG-2100|DAE-2100D|EEG-1200A) +V0")


def extension(name: str) -> str:
    """The part of a file name that promises a format, in lower case: `.fif.gz`, or the last suffix."""
    lower = name.lower()
    return ".fif.gz" if lower.endswith(".fif.gz") else Path(lower).suffix


def identify(path: Path) -> str:
    """The format's name as in EXTENSIONS.

    Raises FileNotFoundError, or ValueError when the file is empty or its content is nothing we can read.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is not there any more (a broken link, or removed since it was listed)."
        )
    promised = EXTENSIONS.get(extension(path.name), ())
    if path.is_dir():
        if len(promised) == 1 and extension(path.name) in FOLDER_EXTENSIONS:
            return promised[0]
        raise ValueError(
            f"{path} is a folder, and not of a kind that holds one recording (.mff, .mefd, .ds)."
        )
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty (0 bytes): copy it again from its origin, or exclude it.")
    head = _head(path)
    found = format_of(head)
    if found in KNOWN or (found in ("MATLAB", "HDF5") and promised == ("EEGLAB",)):
        return found if found in KNOWN else "EEGLAB"
    if found is None and len(candidates := [name for name in promised if name in _WITHOUT_SIGNATURE]) == 1:
        return candidates[0]
    seen = f"its content is {_CONTENT[found]}" if found else f"it begins with {head[:16]!r}"
    if promised:
        raise ValueError(
            f"{path} is not {' or '.join(promised)}, though its extension says so: {seen}. Exclude it, or replace "
            f"it by the recording it should be.{_HINTS.get(found or '', '')}"
        )
    raise ValueError(f"{path} is of no format known here: {seen}.{_HINTS.get(found or '', '')}")


def format_of(head: bytes) -> str | None:
    """The format that the first bytes of a file prove (a name of EXTENSIONS or of _CONTENT), or None."""
    for signature, name in _SIGNATURES:
        if head.startswith(signature):
            return name
    if len(head) >= 8 and head[:1] == b"0" and not head[1:8].strip(b" \x00"):
        return "EDF"
    if head.lstrip(b"\xef\xbb\xbf \r\n").lower().startswith((b"brain vision", b"brainvision")):
        first = head.lstrip(b"\xef\xbb\xbf \r\n").split(b"\n")[0].lower()
        return "BrainVision" if b"header" in first else "a BrainVision marker file"
    if _NIHON_KOHDEN.match(head):
        return "Nihon Kohden"
    if re.match(rb"(BCI2000V *=|HeaderLen *=)", head):
        return "BCI2000"
    if re.search(rb"(?i)^\s*\[FileInfo\]", head):
        return "Persyst"
    if head.startswith(b"RIFF") or head.startswith(b"RF64") or head.startswith(b"RIF64"):
        return "ANT CNT" if re.search(rb"(?i)(cnt |eeph|raw3)", head[:64]) else "sound or video"
    if b"<?xml" in head[:64] and b"NEDF" in head:
        return "NEDF"
    if _is_egi_simple_binary(head):
        return "EGI raw"
    if head[512:520] == b"\x89HDF\r\n\x1a\n":
        return "HDF5"
    if head and not re.search(rb"[^\t\n\r\x20-\x7e\x80-\xff]", head[:512]):
        return "text"
    return None


_SIGNATURES = [
    (b"\xffBIOSEMI", "BDF"),
    (b"GDF ", "GDF"),
    (
        b"\x00\x00\x00\x64\x00\x00\x00\x1f\x00\x00\x00\x14",
        "FIF",
    ),  # tag 100 (file id), an id struct of 20 bytes
    (b"Version 3.0", "Neuroscan CNT"),
    (b"NEURALCD", "Blackrock NSx"),
    (b"BRSMPGRP", "Blackrock NSx"),
    (b"MATLAB 7.3 MAT-file", "HDF5"),
    (b"MATLAB 5.0 MAT-file", "MATLAB"),
    (b"\x89HDF\r\n\x1a\n", "HDF5"),
    (b"\x93NUMPY", "NumPy"),
    (b"XDF:", "XDF"),
    (b"PK\x03\x04", "zip"),
    (b"\x1f\x8b", "gzip"),
]
KNOWN = {name for names in EXTENSIONS.values() for name in names}
_CONTENT = {
    "HDF5": "HDF5 (perhaps MATLAB 7.3)",
    "MATLAB": "a MATLAB file",
    "NumPy": "a NumPy array",
    "XDF": "XDF",
    "zip": "a zip archive",
    "gzip": "compressed with gzip",
    "text": "plain text",
    "sound or video": "RIFF, but not ANT's EEG kind",
    "a BrainVision marker file": "a BrainVision marker file",
}
_HINTS = {
    "HDF5": " Numbers in HDF5 are read by a source of kind `arrays`.",
    "MATLAB": " Numbers in MATLAB files are read by a source of kind `arrays`.",
    "NumPy": " NumPy files are read by a source of kind `arrays`.",
    "XDF": " Convert XDF to FIF or EDF first: it may hold streams of several clocks.",
    "zip": " Unpack it first.",
    "gzip": " Unpack it first.",
    "text": " Tables of numbers are read by a source of kind `arrays`.",
}


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        head = file.read(2048)
    if head.startswith(b"\x1f\x8b") and path.name.lower().endswith(".gz"):
        try:
            with gzip.open(path) as file:
                return file.read(2048)
        except (OSError, EOFError):
            return head
    return head


def _is_egi_simple_binary(head: bytes) -> bool:
    """NetStation's header: version 2 to 7 (big-endian), then a date that can be one, a rate and a channel count."""
    if len(head) < 36 or int.from_bytes(head[:4], "big") not in range(2, 8):
        return False
    year, month, day, hour, minute, second = np.frombuffer(head[4:16], ">i2")
    rate, n_channels = np.frombuffer(head[20:24], ">i2")
    return bool(
        1980 <= year < 2200 and 1 <= month <= 12 and 1 <= day <= 31 and 0 <= hour < 24 and 0 <= minute < 60
        and 0 <= second < 60 and rate > 0 and n_channels > 0
    )  # fmt: skip
