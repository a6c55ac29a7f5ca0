"""Totals of a store, from its tables."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ddscale.store import layout, tables
from ddscale.store.manifest import DatasetEntry, Totals, TrialCounts, read_manifest
from ddscale.store.remote import RemoteFolder, fetch_manifest


def dataset_entry(
    name: str,
    licence: str | None,
    url: str | None,
    records: pa.Table,
    recordings: pa.Table,
    rejected: pa.Table,
    sfreq: float,
    images: pa.Table,
) -> DatasetEntry:
    """The manifest's entry of one dataset, counted from the store's tables. sfreq: Hz."""
    mine, known, left_out, pictures = (
        _of_dataset(whole, name) for whole in (records, recordings, rejected, images)
    )
    kept = known.filter(pc.equal(known["status"].cast(pa.string()), "kept"))
    hours = mine["samples"].to_numpy() / sfreq / 3600
    subject, _ = tables.coded(mine["subject"])
    split, splits = tables.coded(mine["split"])
    present, first = np.unique(subject, return_index=True)
    subjects_by_split = _counted([splits[code] for code in split[first]])
    trials = _trial_counts(mine, pictures)
    if trials is not None:  # split by picture, a subject may be in several
        pairs = np.unique(np.stack([subject, split], axis=1), axis=0)
        subjects_by_split = _counted([splits[code] for code in pairs[:, 1]])
    whole_channel = pc.is_valid(left_out["channel"])
    return DatasetEntry(
        licence=licence,
        url=url,
        recordings=len(kept),
        quarantined=len(known) - len(kept),
        subjects=len(present),
        records=len(mine),
        hours=_hours(hours.sum()),
        hours_found=_hours(np.nansum(known["seconds_found"].to_numpy(zero_copy_only=False)) / 3600),
        hours_by_split=_summed(np.array(splits, object)[split], hours),
        hours_by_channels=_summed(mine["channels"].to_numpy(), hours),
        subjects_by_split=subjects_by_split,
        rejected_hours=_rejected_hours(left_out.filter(pc.invert(whole_channel))),
        dropped_channels=_counted(left_out.filter(whole_channel)["reason"].cast(pa.string()).to_pylist()),
        clipped=int(mine["clipped"].to_numpy().sum()),
        largest_quantisation_error_uV=max(
            kept["largest_quantisation_error_uV"].to_pylist() if len(kept) else [0.0]
        ),
        trials=trials,
    )


def _trial_counts(records: pa.Table, images: pa.Table) -> TrialCounts | None:
    """Of one dataset; None where nothing was presented."""
    is_trial = pc.is_valid(records["repetition"])
    trials = records.filter(is_trial)
    if not len(trials) and not len(images):
        return None
    image, names = tables.coded(trials["image"])
    subject, _ = tables.coded(trials["subject"])
    shown = image >= 0
    _, repetitions = np.unique(np.stack([image[shown], subject[shown]], axis=1), axis=0, return_counts=True)
    return TrialCounts(
        trials=len(trials),
        trials_by_split=_counted(trials["split"].cast(pa.string()).to_pylist()),
        labels=len(tables.coded(trials["label"])[1]),
        images=len(images),
        images_by_split=_counted(images["split"].cast(pa.string()).to_pylist()),
        images_shown=len(names),
        most_repetitions=int(repetitions.max(initial=0)),
    )


def _of_dataset(whole: pa.Table, name: str) -> pa.Table:
    return whole.filter(pc.equal(whole["dataset"].cast(pa.string()), name))


def _hours(value: float) -> float:
    return round(float(value), 6)


def _summed(labels: np.ndarray, hours: np.ndarray) -> dict[str, float]:
    return {str(label): _hours(hours[labels == label].sum()) for label in sorted(set(labels.tolist()))}


def _counted(labels: list[str]) -> dict[str, int]:
    return dict(sorted(Counter(labels).items()))


def _rejected_hours(stretches: pa.Table) -> dict[str, float]:
    start = stretches["start_s"].to_numpy(zero_copy_only=False).astype(float)
    stop = stretches["stop_s"].to_numpy(zero_copy_only=False).astype(float)
    reasons = np.array(stretches["reason"].cast(pa.string()).to_pylist(), object)
    return _summed(reasons, np.nan_to_num(stop - start) / 3600)


def totals(entries: Mapping[str, DatasetEntry]) -> Totals:
    values = entries.values()
    return Totals(
        hours=_hours(sum(entry.hours for entry in values)),
        recordings=sum(entry.recordings for entry in values),
        subjects=sum(entry.subjects for entry in values),
        records=sum(entry.records for entry in values),
    )


def describe(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What is in the store in a folder or behind a URL, as plain JSON-able values.

    Totals, one entry per dataset, montages, how it was made.

    Reads the manifest alone. Raises what `open_store` raises when there is no store.
    """
    if layout.is_url(path):
        (manifest, _), unfinished = fetch_manifest(RemoteFolder(os.fspath(path))), False
    else:
        manifest, unfinished = read_manifest(Path(path)), (Path(path) / layout.STAGING).is_dir()
    return {
        "store": os.fspath(path),
        "backend": manifest.content.backend,
        "sfreq": manifest.content.sfreq,
        "dtype": manifest.content.dtype,
        "unit": manifest.content.unit,
        "step_uV": manifest.content.step_uV,
        "record_s": manifest.content.record_s,
        "preprocessing_hash": manifest.preprocessing_hash,
        "filters": manifest.content.filters,
        "quality": manifest.content.quality,
        "totals": manifest.totals.model_dump(),
        "datasets": {name: entry.model_dump() for name, entry in manifest.datasets.items()},
        "montages": {
            name: {"channels": len(montage.channels), "reference": montage.reference}
            for name, montage in manifest.montages.items()
        },
        "unfinished": unfinished,
    }
