"""One recording, from its file to its fragment in the store: what every worker does. C channels."""

from __future__ import annotations

import json
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from ddscale.ingest import chain, marks, trials
from ddscale.ingest.chain import Job, Piece
from ddscale.ingest.cutting import TOO_SHORT, main_reason
from ddscale.ingest.signature import signature
from ddscale.ingest.trials import PlacedTrial
from ddscale.signal.channels import Channel
from ddscale.signal.preprocessing import plan
from ddscale.signal.quality import bad_channels
from ddscale.signal.survey import Survey, survey
from ddscale.signal.units import implausible_unit
from ddscale.sources.recording import STANDARDISED, OpenRecording, Recording
from ddscale.store import layout
from ddscale.store.identity import subject_hash
from ddscale.store.manifest import Montage, MontageChannel
from ddscale.store.staging import RejectedStretch, StagedRecording, StoreWriteError, stage

_ROUNDING_UV = 1e-9


class Unusable(Exception):
    """This recording cannot go into the store. reason: in a word; the message: in a sentence, with the remedy."""

    def __init__(self, reason: str, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason


@dataclass(frozen=True)
class Outcome:
    """What became of a recording, without its records. seconds: length found, kept."""

    status: str
    seconds_found: float
    seconds_kept: float


def ingest_recording(job: Job, recording: Recording) -> Outcome:
    """Stage one recording: its records, or the reason why it has none.

    Raises StoreWriteError when the store cannot be written; whatever is wrong with the recording is an outcome.
    """
    store = layout.local_folder(job.store)
    described = describe(job, recording)
    try:
        with recording.open() as opened, chain.scratch_file(store) as scratch:
            pieces = _process(job, opened, described, scratch)
            _sign(described, recording)
            staged = stage(
                store,
                job.content,
                described,
                chain.records(job, scratch, described.channels, pieces),
                [piece.trial for piece in pieces if isinstance(piece, PlacedTrial)],
            )
    except StoreWriteError:
        raise
    except Exception as error:  # a reader of other people's files may raise anything; the job goes on
        reason, sentence = _explain(recording, error)
        staged = quarantine(job, recording, described, reason, sentence)
    return Outcome(staged.status, staged.seconds_found, staged.seconds_kept)


def describe(job: Job, recording: Recording) -> StagedRecording:
    """What is known of a recording before it is opened."""
    return StagedRecording(
        dataset=recording.dataset,
        recording=recording.id,
        subject=subject_hash(recording.dataset, recording.subject, job.salt),
        status="kept",
    )


def quarantine(
    job: Job, recording: Recording, described: StagedRecording, reason: str, sentence: str, look: bool = True
) -> StagedRecording:
    """Stage a recording without records. described: what is known of it, changed in place.

    look: whether to note the size of its file, to know it again.
    """
    if look:
        _sign(described, recording)
    described.status, described.reason, described.detail = "quarantined", reason, sentence
    return stage(layout.local_folder(job.store), job.content, described)


def _sign(described: StagedRecording, recording: Recording) -> None:
    # After reading: some sources write or fetch the file when it is first opened.
    described.size_bytes, described.mtime_ns = signature(recording.path, recording.beside)
    if recording.cut:
        described.meta |= {"cut": recording.cut}
    if recording.statement:
        described.meta |= {"statement": json.loads(recording.statement)}


def _explain(recording: Recording, error: Exception) -> tuple[str, str]:
    if isinstance(error, Unusable):
        return error.reason, f"{recording.path} {error}"
    if isinstance(error, MemoryError):
        return (
            "out_of_memory",
            f"{recording.path} needs more memory than there is: use fewer workers, or exclude it.",
        )
    if isinstance(error, ValueError | OSError):
        cause = str(error) or repr(error)
        return "unreadable", cause if recording.path in cause else f"{recording.path} cannot be read: {cause}"
    where = traceback.extract_tb(error.__traceback__)[-1]
    return (
        "failed",
        f"{recording.path} failed with {error!r} at {where.filename}:{where.lineno}: please report it.",
    )


def _process(
    job: Job, opened: OpenRecording, described: StagedRecording, scratch: IO[bytes]
) -> Sequence[Piece | PlacedTrial]:
    """Process a recording into the scratch file, decide what of it is kept, and fill in its description.

    Raises Unusable when nothing is; `described` then says what was found out until then.
    """
    content = job.content
    described.sfreq, described.seconds_found = opened.sfreq, opened.n_samples / opened.sfreq
    longest = max((stop - start for start, stop in opened.spans), default=0) / opened.sfreq
    if opened.trials:
        trials.check(opened, content)
    elif longest < content.min_record_s:
        raise Unusable(
            TOO_SHORT,
            f"has {longest:.2f} s in one piece, and the shortest record is {content.min_record_s:g} s: lower "
            "storage.min_record_s, or leave it out.",
        )
    picks = [i for i, channel in enumerate(opened.channels) if channel.kind in content.channel_kinds]
    channels = [opened.channels[i] for i in picks]
    eeg_C = np.array([channel.kind == "eeg" for channel in channels], bool)
    if not eeg_C.any():
        kinds = ", ".join(sorted({channel.kind for channel in opened.channels}))
        raise Unusable("no_eeg", f"has no EEG channel, only {kinds}: state `kinds:` if its names mislead.")
    marked = opened.marks if job.quality.marked_bad else []
    names = {channel.name for channel, is_eeg in zip(channels, eeg_C, strict=True) if is_eeg}
    bad_stretches = marks.stretches(marked, names, job.quality.bad_channels)
    seen = survey(
        lambda start, stop: opened.read(start, stop)[picks],
        opened.n_samples,
        opened.sfreq,
        marks.outside(opened.spans, bad_stretches, opened.sfreq),
        eeg_C,
        job.quality.flat_uV,
    )
    described.line_freq = seen.line_freq
    described.montage = _montage(job, opened, channels)
    described.positions = _positions(channels)
    described.meta = _meta(job, opened, seen)
    if bad_stretches:
        described.meta |= {marks.MARKED_BAD: marks.digest(bad_stretches)}
    described.notes = [*_check_unit(opened, seen), *trials.notes(opened)]
    described.notes += marks.notes(opened) if marked else []
    bad = bad_channels(seen, job.quality)
    described.dropped = sorted(bad)
    good = [i for i in range(len(picks)) if i not in bad]
    if not eeg_C[good].any():
        count = Counter(bad.values()).most_common()
        all_of_them = ", ".join(f"{number} {reason}" for reason, number in count)
        raise Unusable(count[0][0], f"has no EEG channel that is fit to keep: {all_of_them}.")
    described.rejected = [
        RejectedStretch(
            start_s=0.0,
            stop_s=described.seconds_found,
            reason=bad[i],
            detail=f"the channel is {bad[i]} for most of the recording",
            channel=channels[i].name,
        )
        for i in described.dropped
    ]
    done = chain.run(
        job, opened, [picks[i] for i in good], eeg_C[good], seen.line_freq, scratch, bad_stretches
    )
    if not done.pieces:
        raise Unusable(
            *main_reason([stretch for stretch in done.rejected if stretch.reason != trials.NO_TRIAL])
        )
    described.rejected += done.rejected
    described.content = done.content
    described.largest_quantisation_error_uV = done.largest_error
    return done.pieces


def _check_unit(opened: OpenRecording, seen: Survey) -> list[str]:
    """Notes on the unit. Raises Unusable when the numbers cannot be in it, unless a recipe says that they are."""
    if opened.unit == STANDARDISED:
        return []
    rms_C = seen.rms_C[seen.eeg_C]
    # A constant comes out of a file's scaling with rounding errors; it is flat in any unit.
    doubt = implausible_unit(np.where(rms_C < _ROUNDING_UV, 0.0, rms_C), opened.unit)
    if doubt is None:
        return []
    if opened.unit_source == "recipe":
        return [f"{opened.path}: the unit of the recipe is believed, though {doubt}"]
    raise Unusable("unit", f"has an implausible unit: {doubt}")


def _montage(job: Job, opened: OpenRecording, channels: list[Channel]) -> Montage:
    reference = job.preprocessing.reference
    if reference == "as_recorded":
        named = opened.reference
    else:
        named = reference if isinstance(reference, str) else f"mean of {', '.join(reference)}"
    return Montage(
        channels=[
            MontageChannel(
                name=channel.name, standard=channel.standard, kind=channel.kind, position=channel.position
            )
            for channel in channels
        ],
        reference=named,
    )


def _positions(channels: list[Channel]) -> list[float] | None:
    if not any(channel.position for channel in channels):
        return None
    return [float(value) for channel in channels for value in channel.position or (np.nan,) * 3]


def _meta(job: Job, opened: OpenRecording, seen: Survey) -> dict[str, Any]:
    kinds = job.content.channel_kinds
    return opened.meta | {
        "processing": plan(job.preprocessing, opened.sfreq, seen.line_freq).description(),
        "unit_source": opened.unit_source,
        "not_stored": {
            channel.name: channel.kind for channel in opened.channels if channel.kind not in kinds
        },
    }
