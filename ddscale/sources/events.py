"""The `events` source: recordings in any format known here, and what was presented when.

Said either by a CSV table, a line per trial, or by the events in the recordings themselves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from ddscale.sources.files import FilesSource, list_files, open_file
from ddscale.sources.folder import FolderSource
from ddscale.sources.provenance import Unit, Whereabouts
from ddscale.sources.recording import Listing, OpenRecording, Recording, Trial
from ddscale.sources.selection import Statements
from ddscale.sources.trial_table import Event, read_table, to_trials


class EventsSource(FolderSource):
    """Recordings that are cut into trials: one for each line of a CSV, or for each event of a named kind."""

    kind: Literal["events"]

    unit: Unit | None = None
    """Unit of the numbers in the files, whatever their headers say; leave out to believe the headers."""

    csv: Annotated[str | None, Whereabouts] = None
    """Table of trials: columns `recording` (path relative to `folder`), `onset` and `duration` (s), and any of `image`
    (path), `label`, `caption`, `split` (of the picture: train, val or test). Other recordings are left out."""

    images: Annotated[str | None, Whereabouts] = None
    """Folder that the CSV's `image` paths are relative to; left out: the folder the CSV is in."""

    annotations: Annotated[dict[str, str] | None, Whereabouts] = Field(None, min_length=1)
    """Instead of a CSV: names or codes of events in the files that begin a trial, and the label of each."""

    tmin: Annotated[float, Whereabouts] = 0.0
    """From the event to the beginning of the trial, s (`annotations:` only); negative: before it."""

    duration: Annotated[float | None, Whereabouts] = Field(None, gt=0)
    """Length of a trial, s (`annotations:` only)."""

    @field_validator("annotations")
    @classmethod
    def _labels_are_not_empty(cls, annotations: dict[str, str] | None) -> dict[str, str] | None:
        empty = [name for name, label in (annotations or {}).items() if not label]
        if empty:
            raise ValueError(f"no label for {', '.join(empty)}: write `{empty[0]}: its-label`.")
        return annotations

    @model_validator(mode="after")
    def _one_way_of_saying_it(self) -> EventsSource:
        if (self.csv is None) == (self.annotations is None):
            raise ValueError(
                "state either `csv:` (a table of trials) or `annotations:` (events in the files)."
            )
        if self.annotations is not None and self.duration is None:
            raise ValueError("`annotations:` needs `duration:`, the length of a trial in seconds.")
        if self.csv is not None and (self.duration is not None or self.tmin):
            raise ValueError(
                "`tmin:` and `duration:` go with `annotations:`; in a CSV each trial has its own."
            )
        if self.images is not None and self.csv is None:
            raise ValueError("`images:` goes with `csv:`.")
        return self


def list_events(source: EventsSource) -> Listing:
    """The recordings that have trials, and the pictures shown in them, without opening a recording.

    Raises FileNotFoundError when the folder, the table or a picture is missing, naming it; ValueError when the table
    cannot be understood, naming the line.
    """
    if source.csv is None:
        assert source.annotations is not None
        assert source.duration is not None
        listing = _files(source)
        events = _FileEvents(dict(source.annotations), source.tmin, source.duration)
        cut = f"{source.duration:g} s from {source.tmin:g} s after {dict(sorted(source.annotations.items()))}"
        return Listing(
            [_with(recording, events, cut=cut) for recording in listing.recordings], listing.rejected
        )
    table = read_table(Path(source.csv), Path(source.images) if source.images else Path(source.csv).parent)
    listing = _files(source)
    root = Path(source.folder)
    by_path = {
        Path(recording.path).relative_to(root).as_posix(): recording for recording in listing.recordings
    }
    unknown = sorted(set(table.events) - set(by_path))
    if unknown:
        raise FileNotFoundError(
            f"{source.csv} names recordings that are not among those of {source.folder}: {', '.join(unknown[:5])}"
            f"{' and others' if len(unknown) > 5 else ''}. Write paths relative to `folder:`, such as "
            f"{min(by_path)}."
        )
    recordings = [
        _with(recording, _TableEvents(tuple(table.events[path])), (source.csv,))
        for path, recording in sorted(by_path.items())
        if path in table.events
    ]
    silent = sorted(set(by_path) - set(table.events))
    notes = []
    if silent:
        named = ", ".join(silent[:5]) + (" and others" if len(silent) > 5 else "")
        notes.append(
            f"{len(silent)} recordings are left out, since {source.csv} has no trial in them: {named}"
        )
    by_id = sorted(recordings, key=lambda recording: recording.id)
    return Listing(by_id, listing.rejected, table.pictures, notes)


def _files(source: EventsSource) -> Listing:
    plain = {name: getattr(source, name) for name in FilesSource.model_fields if name != "kind"}
    return list_files(FilesSource(kind="files", **plain))


class _TableEvents:
    """Trials of one recording from its lines of a table."""

    def __init__(self, events: tuple[Event, ...]) -> None:
        self.events = events

    def __call__(self, opened: OpenRecording) -> list[Trial]:
        return to_trials(self.events, opened.sfreq)


@dataclass(frozen=True)
class _FileEvents:
    """Trials of a recording from the events in its own file."""

    labels: dict[str, str]
    tmin: float
    duration: float

    def __call__(self, opened: OpenRecording) -> list[Trial]:
        from ddscale.sources.file_events import events_of  # MNE only when a file is opened

        found = events_of(Path(opened.path))
        mine = [
            Event(onset + self.tmin, self.duration, None, self.labels[name], None)
            for onset, name in found
            if name in self.labels
        ]
        if not mine:
            there = ", ".join(
                f"{count} {name}" for name, count in Counter(name for _, name in found).most_common(12)
            )
            raise ValueError(
                f"{opened.path} has no event that `annotations:` names ({', '.join(self.labels)}); it has "
                f"{there or 'none at all'}. Correct `annotations:`, or exclude it."
            )
        return to_trials(mine, opened.sfreq)


def _with(
    recording: Recording,
    trials: Callable[[OpenRecording], list[Trial]],
    beside: tuple[str, ...] = (),
    cut: str = "",
) -> Recording:
    opener = partial(open_with_trials, recording.opener, trials)
    return replace(recording, opener=opener, beside=(*recording.beside, *beside), cut=cut)


def open_with_trials(
    opener: Callable[[], OpenRecording], trials: Callable[[OpenRecording], list[Trial]]
) -> OpenRecording:
    """Open a recording and find its trials."""
    opened = opener()
    try:
        opened.trials = trials(opened)
    except BaseException:
        opened.close()
        raise
    return opened


def open_events(path: str, events: Sequence[Event], statements: Statements) -> OpenRecording:
    """Open a file as a recording with the trials of a table."""
    return open_with_trials(partial(open_file, path, statements), _TableEvents(tuple(events)))
