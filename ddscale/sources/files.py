"""The `files` source: a folder of recordings in any format known here."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

from ddscale.sources.folder import FolderSource, list_folder
from ddscale.sources.formats import EXTENSIONS, extension, identify
from ddscale.sources.provenance import Unit
from ddscale.sources.recording import Listing, OpenRecording
from ddscale.sources.selection import Statements


class FilesSource(FolderSource):
    """A folder of EDF, BDF, GDF, BrainVision, EEGLAB, FIF, EGI, Neuroscan, Curry, Persyst... recordings."""

    kind: Literal["files"]

    unit: Unit | None = None
    """Unit of the numbers in the files, whatever their headers say; leave out to believe the headers."""


def list_files(source: FilesSource) -> Listing:
    """The recordings of a folder, without opening them.

    Raises FileNotFoundError when the folder is missing or holds no recording.
    """
    statements = Statements(
        unit=source.unit, kinds=source.kinds, kinds_must_match=True, reference=source.reference
    )
    return list_folder(
        source, EXTENSIONS, _screen(), size_of, lambda path: partial(open_file, path, statements)
    )


def open_file(path: str, statements: Statements) -> OpenRecording:
    """Open one file with the reader of what it is.

    Raises ValueError or OSError naming the file, the cause and the remedy.
    """
    # Imported on opening: a recipe can be checked without the second that MNE takes to load.
    from ddscale.sources.edf_recording import open_edf
    from ddscale.sources.eeglab import open_eeglab
    from ddscale.sources.egi_raw import open_egi_raw
    from ddscale.sources.mff import open_mff
    from ddscale.sources.mne_files import open_with_mne

    format_name = identify(Path(path))
    if format_name in ("EDF", "BDF"):
        return open_edf(Path(path), statements)
    if format_name == "EGI raw":
        return open_egi_raw(Path(path), statements)
    if format_name == "EEGLAB":
        return open_eeglab(Path(path), statements)
    if format_name == "EGI MFF":
        return open_mff(Path(path), statements)
    return open_with_mne(Path(path), format_name, statements)


def _screen() -> Callable[[Path], str | None]:
    """A function that says of a path why it is no recording of its own; it remembers what lies beside it."""

    @functools.cache
    def names_in(folder: Path) -> frozenset[str]:
        return frozenset(name.lower() for name in os.listdir(folder))

    return lambda path: _not_a_recording(path, names_in)


def _not_a_recording(path: Path, names_in: Callable[[Path], frozenset[str]]) -> str | None:
    """None for a recording; otherwise why it is none of its own, empty when it belongs to one that is listed."""
    kind, stem = extension(path.name), path.name[: -len(path.suffix)]
    if kind in (".eeg", ".dat"):
        beside = names_in(path.parent)
        headers = (".vhdr", ".ahdr") if kind == ".eeg" else (".vhdr", ".ahdr", ".lay", ".cdt")
        if any(stem.lower() + suffix in beside for suffix in headers):
            return ""
        if (
            kind == ".dat"
            and stem.lower() + ".dap" not in beside
            and not _begins(path, b"BCI2000V", b"HeaderLen")
        ):
            return "no .vhdr, .lay or .dap header beside it, and not BCI2000"
        if kind == ".eeg" and not _begins(path, b"EEG-", b"QI-", b"DAE-"):
            return "its header is missing (.vhdr for BrainVision), and it is not Nihon Kohden"
    if kind == ".fif":
        # MNE follows the parts of a split recording from the first.
        numbered = re.fullmatch(r"(.+)-([1-9]\d*)", stem)
        if numbered and f"{numbered.group(1)}.fif".lower() in names_in(path.parent):
            return ""
        split = re.search(r"_split-(\d+)", stem)
        if split and int(split.group(1)) > 1:
            first = stem.replace(split.group(0), f"_split-{1:0{len(split.group(1))}d}")
            there = f"{first}.fif".lower() in names_in(path.parent)
            return "" if there else "a later part of a split recording without its first"
    return None


def _begins(path: Path, *signatures: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(16).startswith(signatures)


def size_of(path: Path) -> int:
    """Bytes on disk, of a folder's files together, with BrainVision's and EEGLAB's sample files counted in."""
    if path.is_dir():
        return sum(member.stat().st_size for member in path.rglob("*") if member.is_file())
    beside = {".vhdr": (".eeg", ".dat"), ".set": (".fdt",), ".lay": (".dat",)}.get(path.suffix.lower(), ())
    others = [path.with_suffix(suffix) for suffix in beside]
    return path.stat().st_size + sum(other.stat().st_size for other in others if other.is_file())
