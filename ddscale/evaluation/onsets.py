"""Onsets in a recording as a person gives them on a command line: numbers, or a table."""

from __future__ import annotations

import csv
import math
from pathlib import Path, PurePosixPath

_COLUMN = "onset"


def read_onsets(given: str, recording: str | Path) -> list[float]:
    """Seconds from the beginning of `recording`, ascending, each once.

    given: numbers with commas between (`1.5,4`), or the path of a table (commas, semicolons or tabs) with a column
    `onset`, such as BIDS events or a table of trials; of one with a column `recording`, its lines for this file.
    Raises ValueError naming what is no onset, FileNotFoundError when there is no such table.
    """
    path = Path(given)
    if path.is_file():
        named = _of_table(path, Path(recording).name)
    elif path.suffix.lower() in (".csv", ".tsv", ".txt"):
        raise FileNotFoundError(f"--at {given}: there is no such table.")
    else:
        named = [("--at", part) for part in given.split(",") if part.strip()]
    if not named:
        raise ValueError(f"--at {given}: no onset for {recording} in it.")
    return sorted({_seconds(where, text) for where, text in named})


def _of_table(path: Path, recording: str) -> list[tuple[str, str]]:
    """(where it stands, what stands there) of every onset of this recording."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: save it as CSV UTF-8.") from error
    header = lines[0] if lines else ""
    separator = max("\t;,", key=header.count)
    reader = csv.DictReader(lines, delimiter=separator)
    columns = [name.strip() for name in reader.fieldnames or []]
    if _COLUMN not in columns:
        raise ValueError(
            f"{path} has no column `{_COLUMN}` (seconds from the recording's beginning), only "
            f"{', '.join(columns) or 'nothing'}: rename the one that says when."
        )
    reader.fieldnames = columns
    found = []
    for number, line in enumerate(reader, start=2):
        of = line.get("recording")
        if of and PurePosixPath(of.replace("\\", "/")).name != recording:
            continue
        found.append((f"{path}, line {number}", line[_COLUMN] or ""))
    return found


def _seconds(where: str, text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        raise ValueError(
            f"{where}: onset `{text}` is no number of seconds, or no table's path: write --at 1.5,4 or --at FILE."
        ) from None
    if not (math.isfinite(seconds) and seconds >= 0):
        raise ValueError(f"{where}: onset {text} s cannot be: a recording begins at 0.")
    return seconds
