"""The signal chain of one recording: span by span into a scratch file, judged, cut into records.

The scratch file is what bounds the memory: it holds the processed recording until all its cells can be judged
against one another. C channels, T samples.
"""

from __future__ import annotations

import hashlib
import itertools
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from ddscale.ingest import marks, trials
from ddscale.ingest.cutting import Stretch, cut
from ddscale.ingest.trials import PlacedTrial, ProcessedSpan
from ddscale.signal.preprocessing import NonFinite, Preprocessing, process, split_at_nonfinite
from ddscale.signal.quality import Meter, Quality
from ddscale.sources.recording import OpenRecording
from ddscale.store import layout
from ddscale.store.manifest import StoreFormat
from ddscale.store.quantisation import Quantiser
from ddscale.store.staging import RejectedStretch, write_error


@dataclass(frozen=True)
class Job:
    """What is the same for every recording of an ingest."""

    store: str
    content: StoreFormat
    preprocessing: Preprocessing
    quality: Quality
    salt: str


@dataclass(frozen=True)
class Piece:
    """A record: where its samples lie in the scratch file, and its first sample in the recording."""

    scratch_start: int
    samples: int
    start: int


@dataclass(frozen=True)
class Processed:
    """A whole recording in the scratch file. content: hash of all its values, kept or not, and of its trials."""

    pieces: Sequence[Piece | PlacedTrial]
    rejected: list[RejectedStretch]
    content: str
    largest_error: float


def scratch_file(store: Path) -> IO[bytes]:
    """A nameless file on the store's disk: a killed worker leaves nothing behind."""
    folder = store / layout.STAGING
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryFile(dir=folder)
    except OSError as error:
        raise write_error(store, error) from error


def run(
    job: Job,
    opened: OpenRecording,
    picks: Sequence[int],
    eeg_C: np.ndarray,
    line_freq: float | None,
    scratch: IO[bytes],
    bad: marks.Stretches,
) -> Processed:
    """Process the channels `picks` of a recording into `scratch` and cut what is good into records.

    eeg_C: which of the picked channels are EEG. line_freq: the survey's, Hz. bad: what is left out
    because it is marked.
    Stretches with NaN are left out: only when one is met is the recording searched for the others, so that the
    many recordings without are read once less. A recording with trials is cut into those.
    """
    try:
        return _run(job, opened, picks, eeg_C, line_freq, scratch, bad, opened.spans, [])
    except NonFinite:
        shortest = round(job.content.min_record_s * opened.sfreq)
        if opened.trials:
            shortest = min(trial.stop - trial.start for trial in opened.trials)
        finite: list[tuple[int, int]] = []
        holes: list[tuple[int, int]] = []
        for span in opened.spans:
            kept, rejected = split_at_nonfinite(opened.read, span, shortest, picks)
            finite += kept
            holes += rejected
    done = _run(job, opened, picks, eeg_C, line_freq, scratch, bad, finite, holes)
    if opened.trials:
        return done
    done.rejected.extend(
        RejectedStretch(
            start_s=start / opened.sfreq,
            stop_s=stop / opened.sfreq,
            reason="nan",
            detail="NaN or infinity, or too little between two of them",
        )
        for start, stop in holes
    )
    return done


def _run(
    job: Job,
    opened: OpenRecording,
    picks: Sequence[int],
    eeg_C: np.ndarray,
    line_freq: float | None,
    scratch: IO[bytes],
    bad: marks.Stretches,
    spans: Sequence[tuple[int, int]],
    holes: Sequence[tuple[int, int]],
) -> Processed:
    content = job.content
    meter = Meter(job.quality, opened.sfreq, content.sfreq, line_freq, eeg_C)
    quantiser = Quantiser(content.dtype, content.step_uV)
    digest = hashlib.blake2b(f"{len(picks)} {content.sfreq}".encode(), digest_size=16)
    scratch.seek(0)
    scratch.truncate()
    written = [0]
    for span in spans:
        blocks = process(
            opened.read,
            opened.n_samples,
            opened.sfreq,
            job.preprocessing,
            line_freq,
            span=span,
            channels=opened.channels,
            picks=picks,
            on_raw=meter.add_raw,
        )
        samples = 0
        for start, block_CT in blocks:
            meter.add_processed(start, block_CT)
            values_TC = quantiser(block_CT)
            digest.update(values_TC.data)
            _write(job, scratch, values_TC)
            samples += len(values_TC)
        meter.close_span()
        written.append(written[-1] + samples)
    ratio = content.sfreq / opened.sfreq
    judged = [marks.marked(cells, span, bad, ratio) for cells, span in zip(meter.judge(), spans, strict=True)]
    if opened.trials:
        processed = [
            ProcessedSpan(*span, stop - start, start, cells)
            for span, (start, stop), cells in zip(spans, itertools.pairwise(written), judged, strict=True)
        ]
        # The same signal with other trials is another recording: what is kept of it differs.
        digest.update(repr(opened.trials).encode())
        kept, rejected_trials = trials.place(opened, processed, holes, content)
        return Processed(kept, rejected_trials, digest.hexdigest(), quantiser.largest_error)
    pieces: list[Piece] = []
    done = Processed(pieces, [], digest.hexdigest(), quantiser.largest_error)
    shortest = max(1, round(content.min_record_s * content.sfreq))
    for span, scratch_begin, cells in zip(spans, written, judged, strict=False):
        begin = round(span[0] / opened.sfreq * content.sfreq)
        records, rejected = cut(cells, content.record_samples, shortest)
        pieces.extend(Piece(scratch_begin + r.start, r.samples, begin + r.start) for r in records)
        done.rejected.extend(_named(stretch, begin, content.sfreq) for stretch in rejected)
    return done


def _named(stretch: Stretch, begin: int, sfreq: float) -> RejectedStretch:
    return RejectedStretch(
        start_s=(begin + stretch.start) / sfreq,
        stop_s=(begin + stretch.stop) / sfreq,
        reason=stretch.reasons[0],
        detail=", ".join(stretch.reasons),
    )


def _write(job: Job, scratch: IO[bytes], values_TC: np.ndarray) -> None:
    try:
        scratch.write(values_TC.data)
    except OSError as error:
        raise write_error(Path(job.store), error) from error


def records(
    job: Job, scratch: IO[bytes], channels: int, pieces: Sequence[Piece | PlacedTrial]
) -> Iterator[tuple[int, np.ndarray]]:
    """(start, values (T, C)) of every piece, read back one at a time."""
    dtype = np.dtype("<i2" if job.content.dtype == "int16" else "<f4")
    for piece in pieces:
        scratch.seek(piece.scratch_start * channels * dtype.itemsize)
        content = scratch.read(piece.samples * channels * dtype.itemsize)
        yield piece.start, np.frombuffer(content, dtype).reshape(piece.samples, channels)
