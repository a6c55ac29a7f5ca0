"""The `files` source: a folder of recordings in any format known here."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from ddscale.sources.formats import EXTENSIONS, FOLDER_EXTENSIONS, extension, identify
from ddscale.sources.identity import SubjectRule, recording_ids
from ddscale.sources.provenance import ChannelKind, Provenance, Unit
from ddscale.sources.recording import Listing, OpenRecording, Recording
from ddscale.sources.selection import Statements


class FilesSource(Provenance):
    """A folder of EDF, BDF, GDF, BrainVision, EEGLAB, FIF, EGI, Neuroscan, Curry, Persyst... recordings."""

    kind: Literal["files"]

    folder: str
    """Folder to search, with everything below it."""

    include: list[str] = Field(default_factory=lambda: ["**/*"], min_length=1)
    """Patterns of paths relative to `folder` to take (`*` within a name, `**` across folders, `?` one letter)."""

    exclude: list[str] = []
    """Patterns of relative paths to leave out, after `include`."""

    subject: str = "parent"
    """Who was recorded: `parent` (name of the file's folder), `stem` (file name), or a regular expression on the
    relative path whose first (or `subject`) group is the subject. Splits between training and validation go by it."""

    unit: Unit | None = None
    """Unit of the numbers in the files, whatever their headers say; leave out to believe the headers."""

    kinds: dict[str, ChannelKind] = {}
    """Kinds of channels that their names do not tell, such as `PHO: misc`; `stim` leaves a channel out."""

    reference: str | None = None
    """Reference electrode or scheme of the recordings, for the store's montage; it changes no sample."""

    @field_validator("subject")
    @classmethod
    def _usable_rule(cls, rule: str) -> str:
        SubjectRule(rule)
        return rule

    def statements(self) -> Statements:
        """What the recipe says about every file."""
        return Statements(unit=self.unit, kinds=self.kinds, reference=self.reference)


def list_files(source: FilesSource) -> Listing:
    """The recordings of a folder, without opening them.

    Raises FileNotFoundError when the folder is missing or holds no recording.
    """
    root = Path(source.folder)
    found = list(find(root, source.include, source.exclude, EXTENSIONS))
    rule = SubjectRule(source.subject)
    rejected, chosen = [], []
    for relative in found:
        path = root / relative
        if (reason := _not_a_recording(path)) is not None:
            if reason:
                rejected.append((relative, reason))
            continue
        subject = rule.subject(relative, root.resolve().name)
        if subject is None:
            rejected.append((relative, f"the `subject:` pattern {source.subject!r} does not match its path"))
            continue
        chosen.append((relative, subject))
    if not chosen:
        raise nothing_found(root, source.include, source.exclude, EXTENSIONS, rejected)
    ids = recording_ids([relative for relative, _ in chosen])
    recordings = [
        Recording(
            dataset=source.dataset,
            subject=subject,
            id=name,
            path=str(root / relative),
            size_bytes=size_of(root / relative),
            opener=partial(open_file, str(root / relative), source.statements()),
        )
        for name, (relative, subject) in zip(ids, chosen, strict=True)
    ]
    return Listing(sorted(recordings, key=lambda recording: recording.id), sorted(rejected))


def open_file(path: str, statements: Statements) -> OpenRecording:
    """Open one file with the reader of what it is.

    Raises ValueError or OSError naming the file, the cause and the remedy.
    """
    # Imported on opening: a recipe can be checked without the second that MNE takes to load.
    from ddscale.sources.edf_recording import open_edf
    from ddscale.sources.mne_files import open_with_mne

    format_name = identify(Path(path))
    if format_name in ("EDF", "BDF"):
        return open_edf(Path(path), statements)
    return open_with_mne(Path(path), format_name, statements)


def find(
    root: Path, include: list[str], exclude: list[str], extensions: dict[str, tuple[str, ...]]
) -> Iterator[str]:
    """Relative POSIX paths that the patterns take, sorted; with the bare `**/*`, only of known extensions.

    Hidden files and folders are passed over; a folder that is one recording (.mff) is not looked into.
    """
    if not root.is_dir():
        raise FileNotFoundError(
            f"There is no folder {root}. Correct `folder:` (it is relative to where you are)."
        )
    wanted, unwanted = [_pattern(glob) for glob in include], [_pattern(glob) for glob in exclude]
    any_extension = include != ["**/*"]
    for relative in sorted(_walk(root)):
        known = extension(relative) in extensions
        if not (known or any_extension) or not any(pattern.fullmatch(relative) for pattern in wanted):
            continue
        if not any(pattern.fullmatch(relative) for pattern in unwanted):
            yield relative


def _walk(root: Path) -> Iterator[str]:
    seen: set[str] = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        # Links are followed (DataLad links contents, labs link disks), but not in circles.
        if (real := os.path.realpath(folder)) in seen:
            folders.clear()
            continue
        seen.add(real)
        whole = [name for name in folders if extension(name) in FOLDER_EXTENSIONS]
        folders[:] = [name for name in folders if name not in whole and not name.startswith(".")]
        for name in (*names, *whole):
            if not name.startswith("."):
                yield (Path(folder) / name).relative_to(root).as_posix()


def _pattern(glob: str) -> re.Pattern[str]:
    """`*`, `?` and `**` only: brackets are letters, since recorders put them into file names."""
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", glob)
    meaning = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.compile("".join(meaning.get(part, re.escape(part)) for part in parts))


def _not_a_recording(path: Path) -> str | None:
    """None for a recording; otherwise why it is none of its own, empty when it belongs to one that is listed."""
    kind, stem = extension(path.name), path.name[: -len(path.suffix)]
    if path.is_symlink() and not path.exists():
        return "a link to content that is not here (with DataLad: `datalad get` it)"
    beside = {other.lower() for other in _names_in(path.parent)}
    if kind in (".eeg", ".dat"):
        headers = (".vhdr", ".ahdr") if kind == ".eeg" else (".vhdr", ".ahdr", ".lay", ".cdt")
        if any(stem.lower() + suffix in beside for suffix in headers):
            return ""
        if (
            kind == ".dat"
            and stem.lower() + ".dap" not in beside
            and not _begins(path, b"BCI2000V", b"HeaderLen")
        ):
            return "no .vhdr, .lay or .dap header beside it, and not BCI2000"
        if (
            kind == ".eeg"
            and stem.lower() + ".pnt" not in beside
            and not _begins(path, b"EEG-", b"QI-", b"DAE-")
        ):
            return "its header is missing (.vhdr for BrainVision, .pnt for Nihon Kohden)"
    if kind == ".fif":
        # MNE follows the parts of a split recording from the first.
        numbered = re.fullmatch(r"(.+)-([1-9]\d*)", stem)
        if numbered and f"{numbered.group(1)}.fif".lower() in beside:
            return ""
        split = re.search(r"_split-(\d+)", stem)
        if split and int(split.group(1)) > 1:
            first = stem.replace(split.group(0), f"_split-{1:0{len(split.group(1))}d}")
            return (
                ""
                if f"{first}.fif".lower() in beside
                else "a later part of a split recording without its first"
            )
    return None


def _names_in(folder: Path) -> list[str]:
    return os.listdir(folder)


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


def nothing_found(
    root: Path,
    include: list[str],
    exclude: list[str],
    extensions: dict[str, tuple[str, ...]],
    rejected: list[tuple[str, str]],
) -> FileNotFoundError:
    """The error for a folder without recordings: where was looked, for what, and what is there instead."""
    patterns = ", ".join(include) + (f" without {', '.join(exclude)}" if exclude else "")
    there = Counter(extension(name) or "no extension" for name in _walk(root))
    seen = ", ".join(f"{count} {suffix}" for suffix, count in there.most_common(8)) or "nothing"
    first = f" First of {len(rejected)} rejected: {rejected[0][0]}: {rejected[0][1]}." if rejected else ""
    return FileNotFoundError(
        f"No recordings in {root} for {patterns}: it holds {seen}, and a recording ends in "
        f"{' '.join(sorted(extensions))}.{first} Correct `folder:` or `include:`; tables of numbers need a source "
        "of kind `arrays`."
    )
