"""Trials of a processed recording: where each lies at the store's rate, and which are fit to keep."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ddscale.signal.quality import Cell
from ddscale.sources.recording import OpenRecording, Trial
from ddscale.store.manifest import StoreFormat
from ddscale.store.staging import RejectedStretch, StagedTrial

NO_TRIAL = "no_trial"
CUT_OFF = "cut_off"
INTERRUPTED = "interrupted"
TRIAL = "trial "
"""How the detail of a trial that is left out begins, in the list of what was rejected."""


@dataclass(frozen=True)
class ProcessedSpan:
    """A continuous stretch of a recording after processing.

    start, stop: samples of the recording. samples: at the store's rate. scratch_start: its first, in the scratch file.
    cells: judged, in samples of the span at the store's rate.
    """

    start: int
    stop: int
    samples: int
    scratch_start: int
    cells: Sequence[Cell]


@dataclass(frozen=True)
class PlacedTrial:
    """A trial that is kept. start: at the store's rate, in the recording; scratch_start: in the scratch file."""

    scratch_start: int
    samples: int
    start: int
    trial: StagedTrial


def check(opened: OpenRecording, content: StoreFormat) -> None:
    """Raise ValueError for trials that no record of this store could hold, or that all begin after the end."""
    if all(trial.start >= opened.n_samples for trial in opened.trials):
        raise ValueError(_beyond(opened))
    longest = max(opened.trials, key=lambda trial: trial.stop - trial.start)
    seconds = (longest.stop - longest.start) / opened.sfreq
    if _samples(longest, opened.sfreq, content.sfreq) > content.record_samples:
        raise ValueError(
            f"{opened.path} has a trial of {seconds:g} s, and records of this store have at most {content.record_s:g} "
            "s: raise storage.record_s, or shorten the trials."
        )
    for trial in opened.trials:
        if trial.stop <= trial.start or _samples(trial, opened.sfreq, content.sfreq) < 2:
            raise ValueError(
                f"{opened.path}: the trial at {trial.start / opened.sfreq:g} s lasts "
                f"{(trial.stop - trial.start) / opened.sfreq:g} s: correct its duration."
            )


def notes(opened: OpenRecording) -> list[str]:
    """What a person should know of trials that lie outside the recording."""
    return [_beyond(opened)] if any(trial.start >= opened.n_samples for trial in opened.trials) else []


def _beyond(opened: OpenRecording) -> str:
    count = sum(trial.start >= opened.n_samples for trial in opened.trials)
    first = min(trial.start for trial in opened.trials if trial.start >= opened.n_samples)
    return (
        f"{opened.path}: {count} of {len(opened.trials)} trials begin after the recording's end "
        f"({opened.n_samples / opened.sfreq:g} s), the first at {first / opened.sfreq:g} s: are onsets in seconds, and "
        "of this recording?"
    )


def place(
    opened: OpenRecording,
    spans: Sequence[ProcessedSpan],
    holes: Sequence[tuple[int, int]],
    content: StoreFormat,
) -> tuple[list[PlacedTrial], list[RejectedStretch]]:
    """Find every trial in the processed spans, from its onset on; one that touches a bad cell is left out.

    holes: stretches [start, stop) of the recording with NaN. Returns what is kept, in order, and what is left out:
    trials with their reasons, and what lies in no trial.
    """
    kept: list[PlacedTrial] = []
    rejected: list[RejectedStretch] = []
    spans = sorted(spans, key=lambda span: span.start)
    first = 0
    for trial in opened.trials:
        while first < len(spans) and spans[first].stop <= trial.start:
            first += 1
        span = spans[first] if first < len(spans) else None
        if span is None or not span.start <= trial.start < trial.stop <= span.stop:
            rejected.append(_left_out(opened, trial, [_why_nowhere(opened, trial, holes)]))
            continue
        offset = round((trial.start - span.start) / opened.sfreq * content.sfreq)
        # The last sample of a span may fall to rounding.
        samples = min(_samples(trial, opened.sfreq, content.sfreq), span.samples - offset)
        reasons = _reasons(span.cells, offset, offset + samples)
        if reasons:
            rejected.append(_left_out(opened, trial, reasons))
            continue
        begin = round(span.start / opened.sfreq * content.sfreq)
        staged = StagedTrial(
            image=trial.image, label=trial.label, caption=trial.caption, repetition=trial.repetition
        )
        kept.append(PlacedTrial(span.scratch_start + offset, samples, begin + offset, staged))
    rejected.extend(_between(opened))
    return kept, rejected


def _reasons(cells: Sequence[Cell], start: int, stop: int) -> list[str]:
    """Why cells that hold any of the samples [start, stop) are not fit to keep."""
    first = bisect.bisect_right(cells, start, key=lambda cell: cell.stop)
    touched = itertools.takewhile(lambda cell: cell.start < stop, itertools.islice(cells, first, None))
    return list(dict.fromkeys(reason for cell in touched for reason in cell.reasons))


def _samples(trial: Trial, sfreq: float, target: float) -> int:
    """Length at the store's rate: the same for all trials of one length, wherever they begin."""
    return round((trial.stop - trial.start) / sfreq * target)


def _why_nowhere(opened: OpenRecording, trial: Trial, holes: Sequence[tuple[int, int]]) -> str:
    if trial.start < 0 or trial.stop > opened.n_samples:
        return CUT_OFF
    return "nan" if any(start < trial.stop and stop > trial.start for start, stop in holes) else INTERRUPTED


def _left_out(opened: OpenRecording, trial: Trial, reasons: list[str]) -> RejectedStretch:
    what = trial.image or trial.label or "unnamed"
    # A trial before or after the recording takes no time away from it.
    start, stop = (min(max(sample, 0), opened.n_samples) for sample in (trial.start, trial.stop))
    return RejectedStretch(
        start_s=start / opened.sfreq,
        stop_s=stop / opened.sfreq,
        reason=reasons[0],
        detail=f"{TRIAL}{what}: {', '.join(reasons)}",
    )


def _between(opened: OpenRecording) -> Iterator[RejectedStretch]:
    """What lies in no trial."""
    position = 0
    for start, stop in [
        *((trial.start, trial.stop) for trial in opened.trials),
        (opened.n_samples, opened.n_samples),
    ]:
        if min(start, opened.n_samples) > position:
            yield RejectedStretch(
                start_s=position / opened.sfreq,
                stop_s=min(start, opened.n_samples) / opened.sfreq,
                reason=NO_TRIAL,
                detail="nothing was presented",
            )
        position = max(position, stop)
