"""The last step of an ingest: what was sealed becomes part of the store, by one atomic rename of the manifest.

Everything before it can be interrupted at any point and done again; readers see the old store until then.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ddscale.store import images as image_shards
from ddscale.store import layout, sealing, splitting, tables, zarr_groups
from ddscale.store.describing import dataset_entry, totals
from ddscale.store.leakage import blocked_rows
from ddscale.store.manifest import Blocklist, Manifest, Montage, Splitting, StoreFormat, read_manifest
from ddscale.store.staging import RejectedStretch, StagedRecording
from ddscale.store.taking import taken

UNLISTED = "not_a_recording"
"""Reason in rejected.parquet of files that never became recordings; each run lists them afresh."""


@dataclass
class DatasetTerms:
    """What is stated about a dataset, and what of its source could not be listed as a recording."""

    licence: str | None = None
    url: str | None = None
    unlisted: Sequence[tuple[str, str]] = ()


@dataclass
class Terms:
    """What a publication needs to know besides the data. salt: decides splits, is not written anywhere."""

    salt: str
    splitting: Splitting = field(default_factory=lambda: Splitting(val_fraction=0.0, test_fraction=0.0))
    blocklist: Blocklist = field(default_factory=Blocklist)
    datasets: dict[str, DatasetTerms] = field(default_factory=dict)
    writer: str = "ddscale"


def publish(store: Path, content: StoreFormat, staged: Iterable[StagedRecording], terms: Terms) -> Manifest:
    """Make all that is staged and sealed part of the store, remove .staging, return the new manifest.

    staged: the recordings since the last publication, read once; those that were in the store before replace
    their rows.
    """
    old = read_manifest(store) if (store / layout.MANIFEST).is_file() else None
    montages = dict(old.montages) if old else {}
    fresh = _fresh_tables(staged, montages)
    recordings = _merged(store, old, layout.RECORDINGS, tables.RECORDINGS, fresh)
    sources = _merged(store, old, layout.SOURCES, tables.SOURCES, fresh)
    rejected = _merged(store, old, layout.REJECTED, tables.REJECTED, fresh)
    rejected = _with_unlisted(rejected, terms.datasets)
    images = image_shards.present(store)
    image_codes_N = splitting.image_codes(images, terms.splitting, terms.salt)
    images = _with_splits(images, image_codes_N, tables.IMAGES)
    records = _records(store, old, terms)
    record_codes_R = splitting.record_codes(records, images, image_codes_N, terms.splitting, terms.salt)
    records = _with_splits(records, record_codes_R, tables.RECORDS)
    rejected = _with_mixed(rejected, splitting.left_out(records, content.sfreq))
    if content.backend == "zarr":
        zarr_groups.write(store, content, records, montages)
    tables.write(store / layout.SOURCES, sources, tables.SOURCES)
    written = {
        layout.REJECTED: tables.write(store / layout.REJECTED, rejected, tables.REJECTED),
        layout.RECORDINGS: tables.write(store / layout.RECORDINGS, recordings, tables.RECORDINGS),
        layout.RECORDS: tables.write(store / layout.RECORDS, records, tables.RECORDS),
    }
    if len(images):
        written[layout.IMAGES] = tables.write(store / layout.IMAGES, images, tables.IMAGES)
    stated = {name: (entry.licence, entry.url) for name, entry in (old.datasets if old else {}).items()}
    stated |= {name: (entry.licence, entry.url) for name, entry in terms.datasets.items()}
    entries = {
        name: dataset_entry(name, licence, url, records, recordings, rejected, content.sfreq, images)
        for name, (licence, url) in sorted(stated.items())
    }
    paired = len(images) or tables.has_trials(store / layout.RECORDS)
    manifest = Manifest(
        version=layout.PAIRED_VERSION if paired else layout.FORMAT_VERSION,
        writer=terms.writer,
        preprocessing_hash=content.preprocessing_hash,
        content=content,
        totals=totals(entries),
        datasets=entries,
        splitting=terms.splitting,
        blocklist=terms.blocklist,
        montages=dict(sorted(montages.items())),
        tables=written,
    )
    layout.write_bytes(store / layout.MANIFEST, manifest.to_json().encode())
    for rows in sealing.sealed_rows(store):
        if sealing.replaces(rows):
            (store / sealing.replaces(rows)).unlink(missing_ok=True)
    shutil.rmtree(store / layout.STAGING, ignore_errors=True)
    return manifest


def _fresh_tables(staged: Iterable[StagedRecording], montages: dict[str, Montage]) -> dict[str, pa.Table]:
    """Rows of the three tables about recordings, built in batches; montages seen first are added to `montages`."""
    parts: dict[str, list[pa.Table]] = {layout.RECORDINGS: [], layout.SOURCES: [], layout.REJECTED: []}
    remaining = iter(staged)
    while True:
        batch = list(itertools.islice(remaining, 1024))
        for recording in batch:
            if recording.montage is not None and recording.n_records:
                montages.setdefault(recording.montage.id, recording.montage)
        parts[layout.RECORDINGS].append(tables.table(tables.RECORDINGS, map(_recording_row, batch)))
        parts[layout.SOURCES].append(tables.table(tables.SOURCES, map(_source_row, batch)))
        rejected = (row for recording in batch for row in _rejected_rows(recording))
        parts[layout.REJECTED].append(tables.table(tables.REJECTED, rejected))
        if not batch:
            return {name: pa.concat_tables(tables_of) for name, tables_of in parts.items()}


def _merged(
    store: Path, old: Manifest | None, name: str, schema: pa.Schema, fresh: dict[str, pa.Table]
) -> pa.Table:
    """The table as published, without the rows of recordings staged anew, and the new rows; sorted."""
    merged = fresh[name]
    if old is not None:
        known = tables.read(store / name, schema)
        again = _full_names(fresh[layout.SOURCES])
        merged = pa.concat_tables([known.filter(pc.invert(pc.is_in(_full_names(known), again))), merged])
    order = [name for name in ("dataset", "recording", "start_s", "channel") if name in schema.names]
    plain = [merged[name].cast(pa.float64() if name == "start_s" else pa.string()) for name in order]
    keys = [(name, "ascending") for name in order]
    return taken(merged, pc.sort_indices(pa.table(plain, names=order), sort_keys=keys).to_numpy())


def _full_names(rows: pa.Table) -> pa.ChunkedArray:
    return pc.binary_join_element_wise(
        rows["dataset"].cast(pa.string()), rows["recording"].cast(pa.string()), "/"
    )


def _recording_row(recording: StagedRecording) -> dict[str, Any]:
    return {
        **recording.model_dump(include=set(tables.RECORDINGS.names)),
        "montage": recording.montage.id if recording.montage else None,
        "records": recording.n_records,
        "meta": json.dumps(recording.meta, ensure_ascii=False, sort_keys=True),
    }


def _source_row(recording: StagedRecording) -> dict[str, Any]:
    return recording.model_dump(include=set(tables.SOURCES.names))


def _rejected_rows(recording: StagedRecording) -> list[dict[str, Any]]:
    stretches = recording.rejected
    if recording.status == "quarantined":
        length = recording.seconds_found or None
        stretches = [
            *(stretch for stretch in stretches if stretch.channel is not None),
            RejectedStretch(
                start_s=None if length is None else 0.0,
                stop_s=length,
                reason=recording.reason or "",
                detail=recording.detail or "",
            ),
        ]
    name = {"dataset": recording.dataset, "recording": recording.recording}
    return [name | stretch.model_dump() for stretch in stretches]


def _with_unlisted(rejected: pa.Table, datasets: dict[str, DatasetTerms]) -> pa.Table:
    stale = pc.and_(
        pc.equal(rejected["reason"].cast(pa.string()), UNLISTED),
        pc.is_in(rejected["dataset"].cast(pa.string()), pa.array(list(datasets), pa.string())),
    )
    fresh = [
        {"dataset": name, "recording": what, "reason": UNLISTED, "detail": why}
        for name, stated in sorted(datasets.items())
        for what, why in stated.unlisted
    ]
    return pa.concat_tables([rejected.filter(pc.invert(stale)), tables.table(tables.REJECTED, fresh)])


def _records(store: Path, old: Manifest | None, terms: Terms) -> pa.Table:
    """The index: what was published and what is sealed, without what is blocked, sorted by place."""
    sealed = sealing.sealed_rows(store)
    parts = []
    known: set[str] = set()
    if old is not None:
        published = tables.read(store / layout.RECORDS, tables.RECORDS)
        known = set(tables.coded(published["shard"])[1])
        gone = pa.array([sealing.replaces(rows) for rows in sealed], pa.string())
        parts.append(published.filter(pc.invert(pc.is_in(published["shard"].cast(pa.string()), gone))))
    for rows in sealed:
        # A crash between publishing and tidying up leaves rows that are published already.
        if len(rows) and rows["shard"][0].as_py() not in known:
            rows = tables.widened(rows.replace_schema_metadata(None), tables.RECORDS)
            parts.append(rows.cast(tables.RECORDS))
    if not parts:
        return tables.table(tables.RECORDS, [])
    merged = pa.concat_tables(parts).unify_dictionaries()
    merged = merged.filter(pa.array(~blocked_rows(merged, terms.blocklist)))
    shard_codes, shards = tables.coded(merged["shard"])
    rank = np.empty(max(len(shards), 1), np.int64)
    rank[sorted(range(len(shards)), key=lambda code: _shard_place(shards[code]))] = np.arange(len(shards))
    return taken(merged, np.lexsort((merged["offset"].to_numpy(), rank[shard_codes])))


def _shard_place(shard: str) -> tuple[str, int]:
    return sealing.family_of(shard), layout.shard_number(shard)


def _with_splits(rows: pa.Table, codes: np.ndarray, schema: pa.Schema) -> pa.Table:
    position = rows.schema.get_field_index("split")
    return rows.set_column(position, schema.field("split"), splitting.column(codes))


def _with_mixed(rejected: pa.Table, mixed: list[dict[str, object]]) -> pa.Table:
    """The table with the trials that no split may have now in the place of those that none might have before."""
    stale = pc.equal(rejected["reason"].cast(pa.string()), splitting.SPLIT_REASON)
    if not mixed and not pc.any(stale).as_py():
        return rejected
    return pa.concat_tables([rejected.filter(pc.invert(stale)), tables.table(tables.REJECTED, mixed)])
