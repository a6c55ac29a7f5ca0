"""What every source hands over: a list of recordings, and an opened recording read in µV stretch by stretch.

Shapes: C channels, T samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from ddscale.signal.channels import Channel

UnitSource = Literal["recipe", "file", "assumed"]

STANDARDISED = "standardised"
"""Unit of numbers whose publishers divided them by a spread: no µV can be had from them any more."""


@dataclass(frozen=True)
class Trial:
    """Something presented to a person, and the samples [start, stop) recorded from then on.

    start, stop: at the recording's rate. image: name of the picture, as in the source's `Listing.pictures`.
    label: class. caption: what the picture shows, in words. repetition: how often the same picture (without one: the
    same label) was presented before in this recording.
    """

    start: int
    stop: int
    image: str | None = None
    label: str | None = None
    caption: str | None = None
    repetition: int = 0


@dataclass(frozen=True)
class Mark:
    """Samples [start, stop) of a recording that somebody marked as bad.

    start, stop: at the recording's rate; equal for a mark without a duration. channels: names of those that are bad;
    none: all.
    """

    start: int
    stop: int
    channels: tuple[str, ...] = ()

    @classmethod
    def at(
        cls, onset_s: float, duration_s: float, sfreq: float, n_samples: int, channels: Sequence[str] = ()
    ) -> Mark:
        """What of a recording of `n_samples` at `sfreq` Hz lies in those seconds, to the sample that MNE rounds to."""
        start, stop = (
            min(max(round(second * sfreq), 0), n_samples) for second in (onset_s, onset_s + duration_s)
        )
        return cls(start, stop, tuple(channels))


@dataclass(frozen=True)
class Picture:
    """A picture that trials name; its file is there when it is listed.

    image: unique within the dataset, only letters, digits, `_` and `-`. path: what messages show.
    suffix: png, jpg or jpeg. split: where its publishers put it, or None where they say nothing.
    reader: what gives its bytes, on this machine or pickled to another; by default the file at `path`.
    """

    image: str
    path: str
    suffix: str
    label: str | None = None
    caption: str | None = None
    split: Literal["train", "val", "test"] | None = None
    reader: Callable[[], bytes] | None = field(default=None, repr=False)

    def read(self) -> bytes:
        """The file as it is. Raises FileNotFoundError naming it when it is gone."""
        return self.reader() if self.reader is not None else Path(self.path).read_bytes()


@dataclass(frozen=True)
class Recording:
    """One recording that can be opened, on this machine or pickled to another.

    dataset, subject: names as the recipe and the folder give them.
    id: unique within the dataset, only letters, digits, `_` and `-`; the same on every listing.
    path: what messages show: a path, or a place inside a public dataset.
    size_bytes: on disk, or an estimate where the data is not there yet; for balancing work, not for checks.
    beside: paths of other files that say what is in it, such as a table of trials.
    cut: what settings make of it beyond its files, such as where trials begin; another text, another recording.
    alias: another id that it may have in a store, listed with other files then; empty: none.
    statement: what settings say of it, as JSON, such as the unit of its numbers; empty: not known.
    """

    dataset: str
    subject: str
    id: str
    path: str
    size_bytes: int
    opener: Callable[[], OpenRecording] = field(repr=False)
    beside: tuple[str, ...] = ()
    cut: str = ""
    statement: str = ""
    alias: str = ""

    def open(self) -> OpenRecording:
        """Open for reading; use as a context manager.

        Raises ValueError or OSError naming the file, the cause and the remedy.
        """
        return self.opener()


@dataclass(frozen=True)
class Listing:
    """The recordings of a source, sorted by id, and what was found but cannot be one: (name, reason).

    pictures: those that the recordings' trials name, sorted by image. notes: what a person should know of the listing.
    """

    recordings: list[Recording]
    rejected: list[tuple[str, str]]
    pictures: list[Picture] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class OpenRecording:
    """A recording opened for reading. Nothing but the stretch asked for is held in memory.

    sfreq: Hz. n_samples: T. channels: the C data channels (no stimulus, annotation or non-voltage channels).
    reference: the electrode or scheme the file or recipe names, or None.
    unit: the unit the file's numbers were taken to be in ("uV", "mV"...; of most channels where they differ).
    unit_source: who says so: the "recipe", the "file" (header or sidecar), or nobody, so that the format's custom
        was "assumed". Headers are wrong at times (amplifier software writes "uV" beside mV): only what the recipe
        states is beyond checking against what EEG can be.
    spans: sorted [start, stop) sample ranges, continuous within and interrupted between.
    trials: what was presented when, by ascending start; empty: nothing that matters here.
    marks: what was marked as bad by hand.
    meta: JSON-able notes on device, filters and what was left out; no names of persons, no dates.
    """

    def __init__(
        self,
        *,
        path: str,
        sfreq: float,
        n_samples: int,
        channels: Sequence[Channel],
        read: Callable[[int, int], np.ndarray],
        unit: str,
        unit_source: UnitSource,
        reference: str | None = None,
        spans: Sequence[tuple[int, int]] | None = None,
        trials: Sequence[Trial] = (),
        marks: Sequence[Mark] = (),
        meta: dict[str, Any] | None = None,
        close: Callable[[], None] | None = None,
    ) -> None:
        if n_samples <= 0:
            raise ValueError(
                f"{path} holds no samples: its header is all there is. Remove it from the folder."
            )
        if not (np.isfinite(sfreq) and sfreq > 0):
            raise ValueError(
                f"{path} states a sampling rate of {sfreq} Hz, which cannot be; repair its header."
            )
        if not channels:
            raise ValueError(f"{path} has no channel that could be EEG. Exclude it from the source.")
        self.path = path
        self.sfreq = float(sfreq)
        self.n_samples = int(n_samples)
        self.channels = list(channels)
        self.unit = unit
        self.unit_source: UnitSource = unit_source
        self.reference = reference
        self.spans = [(0, self.n_samples)] if spans is None else list(spans)
        self.trials = sorted(trials, key=lambda trial: (trial.start, trial.stop))
        self.marks = list(marks)
        self.meta = meta or {}
        self._read = read
        self._close = close

    def read(self, start: int, stop: int) -> np.ndarray:
        """The samples [start, stop) as (C, T) float64 in µV.

        Raises ValueError outside the recording, OSError when the file does not yield what its header promises.
        """
        if not 0 <= start <= stop <= self.n_samples:
            raise ValueError(f"{self.path} has samples 0 to {self.n_samples}, asked for {start} to {stop}.")
        if start == stop:
            return np.empty((len(self.channels), 0))
        block_CT = np.ascontiguousarray(self._read(start, stop), dtype=np.float64)
        if block_CT.shape != (len(self.channels), stop - start):
            raise OSError(
                f"{self.path}: samples {start} to {stop} came as {block_CT.shape[1]} of {stop - start}: the file is "
                "shorter than its header says. Copy it again from its origin."
            )
        return block_CT

    def close(self) -> None:
        """Release the file and whatever was unpacked to read it; may be called twice."""
        if self._close is not None:
            self._close()
            self._close = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
