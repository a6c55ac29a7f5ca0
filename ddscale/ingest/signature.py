"""Has a recording's source changed since it was read? Told from sizes and times, without reading it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

# Where a small header names a big file of samples beside it, it is the latter that is cut off or replaced.
_SAMPLES_BESIDE = {".vhdr": (".eeg", ".dat"), ".set": (".fdt",), ".head": (".data",), ".lay": (".dat",)}

NO_FILE = (0, 0)


def signature(path: str, others: Sequence[str] = ()) -> tuple[int, int]:
    """Size in bytes and latest time of change in ns of what lies at `path`, and of the files `others` with it; NO_FILE
    where nothing does."""
    place = Path(path)
    if place.is_dir():
        files = [member for member in place.rglob("*") if member.is_file()]
    else:
        beside = [place.with_suffix(suffix) for suffix in _SAMPLES_BESIDE.get(place.suffix.lower(), ())]
        files = [file for file in (place, *beside) if file.is_file()]
    found = [file.stat() for file in files]
    if not found:
        return NO_FILE
    found += [Path(other).stat() for other in others if Path(other).is_file()]
    return sum(stat.st_size for stat in found), max(stat.st_mtime_ns for stat in found)
