"""One recording on its way into the store: a fragment file with its records and a sidecar that describes them.

Fragments are written by many processes, each its own, and published whole: sidecar last, so that a sidecar
means a complete fragment. Sealing copies their bytes into shards. C channels, T samples.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import google_crc32c
import numpy as np
from pydantic import BaseModel, ConfigDict

from ddscale.store import layout, tar_shards, zarr_shards
from ddscale.store.manifest import MICROVOLT, Montage, StoreFormat
from ddscale.store.quantisation import count_clipped

FRAGMENTS = "fragments"


class _Part(BaseModel):
    # NaN stands for what is not known, such as one electrode's position; JSON's null would not come back.
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, ser_json_inf_nan="constants")


class StagedTrial(_Part):
    """What was presented while a record was recorded."""

    image: str | None = None
    label: str | None = None
    caption: str | None = None
    repetition: int = 0
    """How often the same had been presented before in the recording."""


class StagedRecord(_Part):
    start: int
    """First sample, counted from the beginning of the recording at the store's rate."""
    samples: int
    offset: int
    """Byte of the fragment where the record begins."""
    length: int
    """Bytes of the fragment that are the record."""
    payload: int = 0
    """Tar: where the values begin, bytes from `offset`."""
    chunk_lengths: list[int] = []
    """Zarr: bytes of every inner chunk, 0 where none is stored."""
    crc32c: int
    clipped: int
    trial: StagedTrial | None = None


class RejectedStretch(_Part):
    start_s: float | None
    stop_s: float | None
    reason: str
    """In a word."""
    detail: str
    """In a sentence."""
    channel: str | None = None


class StagedRecording(_Part):
    """What became of one recording: everything the store's tables will say about it."""

    dataset: str
    recording: str
    subject: str
    """Salted hash."""
    size_bytes: int = 0
    mtime_ns: int = 0
    status: Literal["kept", "quarantined"]
    reason: str | None = None
    detail: str | None = None
    content: str | None = None
    """Hash of the processed signal."""
    montage: Montage | None = None
    dropped: list[int] = []
    positions: list[float] | None = None
    sfreq: float | None = None
    seconds_found: float = 0.0
    seconds_kept: float = 0.0
    line_freq: float | None = None
    clipped: int = 0
    largest_quantisation_error_uV: float = 0.0
    meta: dict[str, Any] = {}
    notes: list[str] = []
    """What the person who started the ingest should read, though the recording was kept."""
    n_records: int = 0
    records: list[StagedRecord] = []
    rejected: list[RejectedStretch] = []

    @property
    def name(self) -> str:
        return f"{self.dataset}/{self.recording}"

    @property
    def channels(self) -> int:
        """Number of channels in every record."""
        return 0 if self.montage is None else len(self.montage.channels) - len(self.dropped)


class StoreWriteError(OSError):
    """The store's folder cannot be written: no recording's fault, the whole job must stop."""


def fragment_path(store: Path, dataset: str, recording: str) -> Path:
    return store / layout.STAGING / FRAGMENTS / dataset / f"{recording}.part"


def sidecar_path(store: Path, dataset: str, recording: str) -> Path:
    return store / layout.STAGING / FRAGMENTS / dataset / f"{recording}.json"


def stage(
    store: Path,
    content: StoreFormat,
    recording: StagedRecording,
    records: Iterable[tuple[int, np.ndarray]] = (),
    trials: Sequence[StagedTrial] = (),
) -> StagedRecording:
    """Write a recording's fragment and sidecar; returns what the sidecar says.

    records: (start, values_TC) in ascending order, values in the store's dtype; empty for a quarantined one.
    trials: one per record, or none at all.
    Raises StoreWriteError when the store's disk is full or cannot be written.
    """
    fragment = fragment_path(store, recording.dataset, recording.recording)
    staged: list[StagedRecord] = []
    try:
        with layout.written_whole(fragment) as temporary, temporary.open("wb") as file:
            for index, (start, values_TC) in enumerate(records):
                values_TC = _checked(values_TC, content, recording)
                trial = trials[index] if trials else None
                pieces, record = _encode(content, recording, index, start, values_TC, trial)
                record.offset = file.tell()
                file.writelines(pieces)
                staged.append(record)
        if not staged:
            fragment.unlink()
        done = recording.model_copy(
            update={
                "records": staged,
                "n_records": len(staged),
                "seconds_kept": sum(record.samples for record in staged) / content.sfreq,
                "clipped": sum(record.clipped for record in staged),
            }
        )
        sidecar = sidecar_path(store, recording.dataset, recording.recording)
        layout.write_bytes(sidecar, done.model_dump_json().encode())
    except OSError as error:
        raise write_error(store, error) from error
    return done


def _checked(values_TC: np.ndarray, content: StoreFormat, recording: StagedRecording) -> np.ndarray:
    expected = np.dtype("<i2" if content.dtype == "int16" else "<f4")
    samples, channels = values_TC.shape
    if values_TC.dtype != expected or channels != recording.channels:
        raise ValueError(
            f"{recording.name}: a record of {values_TC.dtype} with {channels} channels does not fit a store of "
            f"{expected} and a montage of {recording.channels}. Quantise it, and list every channel."
        )
    if not 0 < samples <= content.record_samples:
        raise ValueError(
            f"{recording.name}: a record of {samples} samples; this store takes 1 to {content.record_samples}."
        )
    return np.ascontiguousarray(values_TC)


def _encode(
    content: StoreFormat,
    recording: StagedRecording,
    index: int,
    start: int,
    values_TC: np.ndarray,
    trial: StagedTrial | None,
) -> tuple[list[bytes], StagedRecord]:
    record = StagedRecord(
        start=start,
        samples=len(values_TC),
        offset=0,
        length=0,
        crc32c=google_crc32c.value(values_TC.reshape(-1).view(np.uint8)),
        clipped=count_clipped(values_TC),
        trial=trial,
    )
    if content.backend == "zarr":
        chunks = zarr_shards.encode_record(values_TC, content.record_samples, content.chunk_samples)
        record.chunk_lengths = [len(chunk) for chunk in chunks]
        record.length = sum(record.chunk_lengths)
        return chunks, record
    key = layout.record_key(recording.dataset, recording.recording, index)
    whole, record.payload = tar_shards.record_bytes(key, values_TC, _note(content, recording, key, record))
    record.length = len(whole)
    return [whole], record


def _note(content: StoreFormat, recording: StagedRecording, key: str, record: StagedRecord) -> dict[str, Any]:
    """What the .json member says: enough to use the array without the rest of the store.

    The split is not among it: it may be decided anew by a later ingest, and a shard never changes.
    """
    assert recording.montage is not None
    channels = recording.montage.without(recording.dropped)
    return {
        "key": key,
        "dataset": recording.dataset,
        "subject": recording.subject,
        "recording": recording.recording,
        "start": record.start,
        "samples": record.samples,
        "sfreq": content.sfreq,
        "unit": "µV" if content.unit == MICROVOLT else content.unit,
        "step_uV": content.step_uV,
        "montage": recording.montage.id,
        "channels": [channel.name for channel in channels],
        "standard": [channel.standard for channel in channels],
        "kinds": [channel.kind for channel in channels],
        "reference": recording.montage.reference,
        "crc32c": record.crc32c,
        "clipped": record.clipped,
        **(record.trial.model_dump() if record.trial else {}),
    }


def write_error(store: Path, error: OSError) -> StoreWriteError:
    remedy = {
        errno.ENOSPC: "Free space on that disk, then run the same ingest again: it continues.",
        errno.EDQUOT: "Raise the quota, then run the same ingest again: it continues.",
        errno.EROFS: "Choose an `out:` that can be written.",
        errno.EACCES: "Choose an `out:` that can be written.",
    }.get(error.errno or 0, "Check the disk, then run the same ingest again: it continues.")
    return StoreWriteError(
        error.errno, f"Cannot write the store at {store}: {error.strerror or error}. {remedy}"
    )


def read_sidecar(store: Path, dataset: str, recording: str) -> StagedRecording | None:
    """What was staged of a recording, or None when nothing is, or not yet whole."""
    path = sidecar_path(store, dataset, recording)
    return StagedRecording.model_validate_json(path.read_bytes()) if path.is_file() else None


def staged_names(store: Path) -> list[tuple[str, str]]:
    """(dataset, recording) of everything staged so far, sorted."""
    found = (store / layout.STAGING / FRAGMENTS).glob("*/*.json")
    return sorted((path.parent.name, path.stem) for path in found if not path.name.startswith("."))
