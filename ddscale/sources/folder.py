"""Recordings as files in a folder: which to take, what to call them, who was recorded.

Shared by the `files` and `arrays` sources.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator

from ddscale.sources.formats import FOLDER_EXTENSIONS, extension
from ddscale.sources.identity import SubjectRule, recording_names
from ddscale.sources.provenance import ChannelKind, Provenance, Whereabouts
from ddscale.sources.recording import Listing, OpenRecording, Recording


class FolderSource(Provenance):
    """A folder of recordings, one or a few files each."""

    folder: Annotated[str, Whereabouts]
    """Folder to search, with everything below it."""

    include: Annotated[list[str], Whereabouts] = Field(default_factory=lambda: ["**/*"], min_length=1)
    """Patterns of paths relative to `folder` to take (`*` within a name, `**` across folders, `?` one letter)."""

    exclude: Annotated[list[str], Whereabouts] = []
    """Patterns of relative paths to leave out, after `include`."""

    subject: Annotated[str, Whereabouts] = "parent"
    """Who was recorded: `parent` (name of the file's folder), `stem` (file name), or a regular expression on the
    relative path whose first (or `subject`) group is the subject. Splits between training and validation go by it."""

    kinds: dict[str, ChannelKind] = {}
    """Kinds of channels that their names do not tell, such as `PHO: misc`; `stim` leaves a channel out."""

    reference: str | None = None
    """Reference electrode or scheme of the recordings, for the store's montage; it changes no sample."""

    @field_validator("subject")
    @classmethod
    def _usable_rule(cls, rule: str) -> str:
        SubjectRule(rule)
        return rule


def list_folder(
    source: FolderSource,
    extensions: Collection[str],
    screen: Callable[[Path], str | None],
    size_of: Callable[[Path], int],
    opener: Callable[[str], Callable[[], OpenRecording]],
) -> Listing:
    """The recordings of a folder, without opening them.

    screen: None for a recording; otherwise why a file is none of its own, empty when it belongs to another.
    size_of: bytes of what is read for a path. opener: what opens the file at a path.
    Raises FileNotFoundError when the folder is missing or holds no recording.
    """
    root = Path(source.folder)
    rule = SubjectRule(source.subject)
    rejected, chosen = [], []
    for relative in _find(source, extensions):
        path = root / relative
        if path.is_symlink() and not path.exists():
            rejected.append((relative, "a link to content that is not here (with DataLad: `datalad get` it)"))
            continue
        if (reason := screen(path)) is not None:
            if reason:
                rejected.append((relative, reason))
            continue
        subject = rule.subject(relative, root.resolve().name)
        if subject is None:
            rejected.append((relative, f"the `subject:` pattern {source.subject!r} does not match its path"))
            continue
        chosen.append((relative, subject))
    if not chosen:
        raise _nothing_found(source, extensions, rejected)
    recordings = [
        Recording(
            dataset=source.dataset,
            subject=subject,
            id=name,
            alias=alias,
            path=str(root / relative),
            size_bytes=size_of(root / relative),
            opener=opener(str(root / relative)),
        )
        for (name, alias), (relative, subject) in zip(
            recording_names([relative for relative, _ in chosen]), chosen, strict=True
        )
    ]
    return Listing(sorted(recordings, key=lambda recording: recording.id), sorted(rejected))


def _find(source: FolderSource, extensions: Collection[str]) -> Iterator[str]:
    """Relative POSIX paths that the patterns take, sorted; with the bare `**/*`, only of known extensions.

    Hidden files and folders are passed over; a folder that is one recording (.mff) is not looked into.
    """
    root = Path(source.folder)
    if not root.is_dir():
        raise FileNotFoundError(
            f"There is no folder {root}. Correct `folder:` (it is relative to where you are)."
        )
    wanted = [_pattern(glob) for glob in source.include]
    unwanted = [_pattern(glob) for glob in source.exclude]
    any_extension = source.include != ["**/*"]
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


def _nothing_found(
    source: FolderSource, extensions: Collection[str], rejected: list[tuple[str, str]]
) -> FileNotFoundError:
    """The error for a folder without recordings: where was looked, for what, and what is there instead."""
    patterns = ", ".join(source.include) + (f" without {', '.join(source.exclude)}" if source.exclude else "")
    there = Counter(extension(name) or "no extension" for name in _walk(Path(source.folder)))
    seen = ", ".join(f"{count} {suffix}" for suffix, count in there.most_common(8)) or "nothing"
    first = f" First of {len(rejected)} rejected: {rejected[0][0]}: {rejected[0][1]}." if rejected else ""
    return FileNotFoundError(
        f"No recordings in {source.folder} for {patterns}: it holds {seen}, and a recording ends in "
        f"{' '.join(sorted(extensions))}.{first} Correct `folder:` or `include:`, or the source's `kind:` "
        "(`files` for EEG formats, `arrays` for tables of numbers)."
    )
