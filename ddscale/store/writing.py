"""Writing a small store in one process, from arrays: for experiments, conversions and tests.

`ddscale.ingest` is the way for recordings; it uses the same staging, sealing and publishing. C channels, T samples.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from ddscale.store import images as image_shards
from ddscale.store import layout, sealing
from ddscale.store.identity import PUBLIC_SALT, salt_check, subject_hash
from ddscale.store.images import ImageFile
from ddscale.store.layout import Backend
from ddscale.store.manifest import Manifest, Montage, MontageChannel, Splitting, StoreFormat
from ddscale.store.publishing import DatasetTerms, Terms, publish
from ddscale.store.quantisation import Dtype, Quantiser
from ddscale.store.staging import RejectedStretch, StagedRecording, StagedTrial, stage

CHUNK_S = 2.0
"""Seconds in an inner chunk of a Zarr store: the usual window (see tests/benchmarks/bench_store.py)."""


@dataclass
class ArrayRecording:
    """A recording as arrays. id: letters, digits, `_` and `-`.

    records: (start sample, (C, T) float µV) in ascending order, none longer than the store's record_s.
    channels: C names. trials: what was presented, one per record; none for a continuous recording.
    """

    dataset: str
    subject: str
    id: str
    channels: Sequence[str]
    records: Sequence[tuple[int, np.ndarray]]
    rejected: Sequence[RejectedStretch] = field(default_factory=list)
    trials: Sequence[StagedTrial] = ()


def write_store(
    path: str | os.PathLike[str],
    recordings: Iterable[ArrayRecording],
    *,
    sfreq: float,
    backend: Backend = "tar",
    dtype: Dtype = "int16",
    step_uV: float = 0.1,
    record_s: float = 60.0,
    shard_mb: float = 512.0,
    chunk_s: float = CHUNK_S,
    val_subjects: Sequence[str] = (),
    test_subjects: Sequence[str] = (),
    salt: str = PUBLIC_SALT,
    images: Sequence[ImageFile] = (),
    images_by: Literal["image", "image_and_subject"] = "image",
) -> Manifest:
    """Write a new store, or add recordings to one written with the same settings.

    sfreq: Hz. val_subjects, test_subjects: `dataset/subject`; everybody else is in train.
    images: the pictures that trials name, in the splits they state (none: train). images_by: as in an ingest recipe.
    """
    folder = layout.local_folder(path)
    content = StoreFormat(
        backend=backend,
        sfreq=float(sfreq),
        dtype=dtype,
        step_uV=step_uV if dtype == "int16" else 1.0,
        record_s=record_s,
        min_record_s=1.0 / sfreq,
        shard_mb=shard_mb,
        chunk_samples=max(1, round(chunk_s * sfreq)),
        channel_kinds=["eeg"],
        filters={},
        quality={},
        salt_check=salt_check(salt),
    )
    staged = [
        _stage(folder, content, recording, salt)
        for recording in sorted(recordings, key=lambda recording: (recording.dataset, recording.id))
    ]
    image_shards.add(folder, shard_mb * 1e6, images)
    packer = sealing.Packer(folder, content, sealing.published_numbers(folder))
    plans = [plan for recording in staged for plan in packer.add(recording)]
    for plan in [*plans, *packer.finish()]:
        sealing.seal(folder, plan)
    splitting = Splitting(
        val_fraction=0.0,
        test_fraction=0.0,
        val_subjects=[_hashed(name, salt) for name in val_subjects],
        test_subjects=[_hashed(name, salt) for name in test_subjects],
        images_by=images_by,
    )
    datasets = {recording.dataset: DatasetTerms() for recording in staged}
    return publish(folder, content, staged, Terms(salt=salt, splitting=splitting, datasets=datasets))


def _hashed(name: str, salt: str) -> str:
    dataset, _, subject = name.partition("/")
    return subject_hash(dataset, subject, salt)


def _stage(
    folder: os.PathLike[str], content: StoreFormat, recording: ArrayRecording, salt: str
) -> StagedRecording:
    quantiser = Quantiser(content.dtype, content.step_uV)
    records = [(start, quantiser(block_CT)) for start, block_CT in recording.records]
    montage = Montage(
        channels=[MontageChannel(name=name, standard=name, kind="eeg") for name in recording.channels]
    )
    return stage(
        layout.local_folder(folder),
        content,
        StagedRecording(
            dataset=recording.dataset,
            recording=recording.id,
            subject=subject_hash(recording.dataset, recording.subject, salt),
            status="kept",
            montage=montage,
            sfreq=content.sfreq,
            seconds_found=sum(len(values_TC) for _, values_TC in records) / content.sfreq,
            largest_quantisation_error_uV=quantiser.largest_error,
            rejected=list(recording.rejected),
        ),
        records,
        recording.trials,
    )
