"""Is a store what its manifest and index say? Every check runs, every problem is named, nothing is changed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ddscale.store import images as image_shards
from ddscale.store import layout, leakage, tables, tar_shards, zarr_shards
from ddscale.store.describing import dataset_entry, totals
from ddscale.store.manifest import Manifest, StoreFormat, read_manifest
from ddscale.store.reading import Store

OnProgress = Callable[[int, int, str], None]

_JSON_SAYS = ("key", "dataset", "subject", "recording", "start", "samples", "crc32c")


@dataclass
class Report:
    """What was found. checked: records whose values were read and compared."""

    problems: list[str] = field(default_factory=list)
    checked: int = 0
    shards: int = 0
    bytes: int = 0

    @property
    def ok(self) -> bool:
        return not self.problems


def verify(
    path: str | os.PathLike[str], on_progress: OnProgress | None = None, threads: int | None = None
) -> Report:
    """Check the store in the folder `path`: every checksum, the index against the data both ways, leakage.

    on_progress(done, total, shard): records read so far. threads: shards read at a time, by default 2 per core.
    Raises FileNotFoundError or ValueError when there is no manifest to check against.
    """
    store = layout.local_folder(path)
    manifest = read_manifest(store)
    report = Report()
    if (store / layout.STAGING).is_dir():
        report.problems.append(
            f"{store} holds an unfinished ingest ({layout.STAGING}): run `ddscale ingest` again."
        )
    whole = [_table_problem(store, manifest, name) for name in manifest.tables]
    report.problems += [problem for problem in whole if problem]
    if any(whole):
        return report  # with the wrong index, every shard would be found wrong
    records = tables.read(store / layout.RECORDS, tables.RECORDS)
    recordings = tables.read(store / layout.RECORDINGS, tables.RECORDINGS)
    report.problems += _index_problems(manifest, records)
    images = _images(store, manifest)
    report.problems += _total_problems(store, manifest, records, recordings, images)
    report.problems += leakage.image_problems(manifest, records, images)
    report.problems += image_shards.problems(store, images)
    report.problems += leakage.problems(
        manifest, records, recordings, partial(_same_values, Store(store, manifest))
    )
    codes, shards = tables.coded(records["shard"])
    report.problems += _orphans(store, manifest, set(shards), set(tables.coded(images["shard"])[1]))
    # Rows of a shard adjoin in the index, so a shard's rows are a slice.
    first = {int(code): int(place) for code, place in zip(*np.unique(codes, return_index=True), strict=True)}
    count = np.bincount(codes, minlength=len(shards)).tolist()
    check = _check_tar if manifest.content.backend == "tar" else _check_zarr
    with ThreadPoolExecutor(threads or 2 * (os.cpu_count() or 1)) as pool:
        jobs = [
            pool.submit(
                partial(_check_shard, check, store, manifest.content), records.slice(first[code], count[code])
            )
            for code in sorted(first, key=first.__getitem__)
        ]
        for job in jobs:
            shard, problems, checked, size = job.result()
            report.problems += problems
            report.checked += checked
            report.shards += 1
            report.bytes += size
            if on_progress:
                on_progress(report.checked, len(records), shard)
    return report


def _table_problem(store: Path, manifest: Manifest, name: str) -> str | None:
    path = store / name
    if not path.is_file():
        return f"{path} is missing: copy the store again, or ingest into a new folder."
    if tables.sha256_of(path) != manifest.tables[name].sha256:
        return (
            f"{path} is not the table that {layout.MANIFEST} names (other SHA-256): run `ddscale ingest` again if it "
            "was interrupted, else copy the store anew."
        )
    return None


def _index_problems(manifest: Manifest, records: pa.Table) -> Iterator[str]:
    if manifest.preprocessing_hash != manifest.content.preprocessing_hash:
        yield f"{layout.MANIFEST}: its preprocessing_hash does not fit its settings: it was edited by hand."
    keys = records["key"]
    if pc.count_distinct(keys).as_py() != len(records):
        counts = pc.value_counts(keys)
        twice = counts.field("values").filter(pc.greater(counts.field("counts"), 1)).to_pylist()
        yield f"{layout.RECORDS}: keys occur twice: {', '.join(sorted(twice)[:10])}."
    for name in sorted(set(tables.coded(records["montage"])[1]) - set(manifest.montages)):
        yield f"{layout.MANIFEST}: montage {name} is not described, and records have it."
    samples = records["samples"].to_numpy()
    for row in np.flatnonzero((samples <= 0) | (samples > manifest.content.record_samples)):
        yield f"record {keys[row]} has {samples[row]} samples; this store takes 1 to {manifest.content.record_samples}."


def _total_problems(
    store: Path, manifest: Manifest, records: pa.Table, recordings: pa.Table, images: pa.Table
) -> Iterator[str]:
    rejected = tables.read(store / layout.REJECTED, tables.REJECTED)
    counted = {
        name: dataset_entry(
            name, said.licence, said.url, records, recordings, rejected, manifest.content.sfreq, images
        )
        for name, said in manifest.datasets.items()
    }
    for name, said in manifest.datasets.items():
        if said != counted[name]:
            wrong = [
                key for key, value in said.model_dump().items() if counted[name].model_dump()[key] != value
            ]
            yield f"{layout.MANIFEST}: dataset {name}: {', '.join(wrong)} differ from the tables."
    if totals(counted) != manifest.totals:
        yield f"{layout.MANIFEST}: its totals differ from the tables: {manifest.totals} against {totals(counted)}."
    for name in sorted(set(tables.coded(records["dataset"])[1]) - set(manifest.datasets)):
        yield f"{layout.MANIFEST}: dataset {name} is not described, and records are of it."


def _same_values(store: Store, row: int, other: int) -> bool:
    samples = int(store.samples[row])
    try:
        return np.array_equal(store.read(row, 0, samples), store.read(other, 0, samples))
    except OSError:
        return False  # damage is reported where shards are read


def _images(store: Path, manifest: Manifest) -> pa.Table:
    if layout.IMAGES not in manifest.tables:
        return tables.table(tables.IMAGES, [])
    return tables.read(store / layout.IMAGES, tables.IMAGES)


def _orphans(store: Path, manifest: Manifest, shards: set[str], image_files: set[str]) -> Iterator[str]:
    """Files that nothing accounts for. Zarr's own files are those its metadata names."""
    known = {layout.MANIFEST, layout.SOURCES, layout.SUMMARY, *manifest.tables} | shards | image_files
    groups = {shard.split("/signal/")[0] for shard in shards} if manifest.content.backend == "zarr" else set()
    if groups:
        known.add("zarr.json")
        known |= {f"{group.split('/')[0]}/zarr.json" for group in groups} | {
            f"{group}/zarr.json" for group in groups
        }
    for folder, folders, names in os.walk(store):
        inside = os.path.relpath(folder, store)
        if inside == layout.STAGING:
            folders.clear()
            continue
        for name in sorted(names):
            path = os.path.normpath(os.path.join(inside, name))
            group = "/".join(path.split("/")[:2])
            array = path.split("/")[2:3]
            of_rows = group in groups and array != ["signal"]
            if path in known or of_rows or (group in groups and path == f"{group}/signal/zarr.json"):
                continue
            yield f"{store / path} belongs to nothing in the index: remove it, or move it out of the store."


ShardCheck = Callable[[Path, StoreFormat, pa.Table, Path], Iterator[str | int]]


def _check_shard(
    check: ShardCheck, store: Path, content: StoreFormat, rows: pa.Table
) -> tuple[str, list[str], int, int]:
    shard = rows["shard"][0].as_py()
    problems: list[str] = []
    checked = 0
    try:
        for found in check(store / shard, content, rows, store):
            if isinstance(found, int):
                checked += found
            else:
                problems.append(found)
        size = (store / shard).stat().st_size
    except FileNotFoundError:
        keys = rows["key"].to_pylist()
        problems.append(
            f"shard {store / shard} is missing, with records {keys[0]} to {keys[-1]} ({len(keys)})."
        )
        size = 0
    except (OSError, ValueError) as error:
        problems.append(f"shard {store / shard} cannot be read: {error}")
        size = 0
    return shard, problems, checked, size


def _check_tar(shard: Path, content: StoreFormat, rows: pa.Table, store: Path) -> Iterator[str | int]:
    """Members against rows, both ways; every value against its checksum; every .json against its row."""
    dtype = np.dtype("<i2" if content.dtype == "int16" else "<f4")
    members: dict[str, tar_shards.Member] = {}
    try:
        for member in tar_shards.members(shard):
            members[member.name] = member
    except ValueError as error:
        yield f"{error} Copy it again, or ingest into a new folder."
    with shard.open("rb") as file:
        for row in rows.to_pylist():
            key = row["key"]
            file.seek(row["offset"])
            values = file.read(row["length"])
            if len(values) != row["length"]:
                yield f"record {key}: shard {shard} ends before its values do."
                continue
            if google_crc32c.value(values) != row["crc32c"]:
                yield f"record {key}: its values in {shard} do not have the CRC32C of the index: the shard is damaged."
                continue
            yield 1
            array, note = members.pop(f"{key}.npy", None), members.pop(f"{key}.json", None)
            if array is None or note is None:
                yield f"record {key}: shard {shard} has no whole pair {key}.npy and {key}.json."
                continue
            begins, shape, kind = tar_shards.array_begins(shard, array)
            if (begins, shape, kind) != (row["offset"], (row["samples"], row["channels"]), dtype):
                yield (
                    f"record {key}: {array.name} in {shard} is {kind} {shape} at byte {begins}, and the index says "
                    f"{dtype} {(row['samples'], row['channels'])} at byte {row['offset']}."
                )
            file.seek(note.offset)
            yield from _note_problems(shard, key, file.read(note.size), row)
    for name in members:
        yield f"{name} in {shard} belongs to nothing in the index."


def _note_problems(shard: Path, key: str, text: bytes, row: dict[str, Any]) -> Iterator[str]:
    try:
        note = json.loads(text)
    except ValueError:
        yield f"record {key}: {key}.json in {shard} is not JSON: the shard is damaged."
        return
    said = _JSON_SAYS if row["repetition"] is None else (*_JSON_SAYS, *tables.TRIAL_COLUMNS)
    wrong = [name for name in said if note.get(name) != row[name]]
    if wrong:
        yield f"record {key}: {key}.json in {shard} says otherwise than the index about {', '.join(wrong)}."


def _check_zarr(shard: Path, content: StoreFormat, rows: pa.Table, store: Path) -> Iterator[str | int]:
    """Every chunk and every record against its checksum; rows of the shard in no record; the row arrays."""
    channels = rows["channels"][0].as_py()
    capacity = content.rows_per_shard(channels)
    per_record = zarr_shards.chunks_per_record(content.record_samples, content.chunk_samples)
    dtype = np.dtype("<i2" if content.dtype == "int16" else "<f4")
    used = np.zeros(capacity, bool)
    with shard.open("rb") as file:
        descriptor = file.fileno()
        try:
            index = zarr_shards.read_shard_index(descriptor, capacity * per_record)
        except ValueError as error:
            yield f"shard {shard}: {error}. Copy it again, or ingest into a new folder."
            return
        for row in rows.select(["key", "row", "samples", "offset", "length", "crc32c"]).to_pylist():
            place = row["row"] % capacity
            used[place] = True
            chunks = index[place * per_record : (place + 1) * per_record]
            stored = chunks[chunks[:, 1] != zarr_shards.NOT_STORED]
            values_TC = np.empty((row["samples"], channels), dtype)
            try:
                zarr_shards.decode_into(
                    descriptor, chunks, content.chunk_samples, 0, row["samples"], values_TC
                )
            except (ValueError, RuntimeError) as error:
                yield f"record {row['key']}: shard {shard}: {error}."
                continue
            if google_crc32c.value(values_TC.reshape(-1).view(np.uint8)) != row["crc32c"]:
                yield f"record {row['key']}: its values in {shard} do not have the CRC32C of the index."
                continue
            yield 1
            if int(stored[0, 0]) != row["offset"] or int(stored[:, 1].sum()) != row["length"]:
                yield f"record {row['key']}: its chunks in {shard} are not where the index says."
    data = (index[:, 1] != zarr_shards.NOT_STORED).reshape(capacity, per_record).any(axis=1)
    for place in np.flatnonzero(data & ~used):
        yield f"row {place} of shard {shard} holds data and belongs to nothing in the index."
    yield from _row_array_problems(shard, rows)


def _row_array_problems(shard: Path, rows: pa.Table) -> Iterator[str]:
    import zarr

    group_path = shard.parents[4]
    place = rows["row"].to_numpy()
    found: dict[str, list[Any]] = {}
    try:
        group = zarr.open_group(group_path, mode="r")
        for column, name in (("samples", "length"), ("start", "start"), ("crc32c", "crc32c"), ("key", "key")):
            array: Any = group[name]
            found[column] = list(array[:][place])
    except (KeyError, OSError, IndexError, ValueError) as error:
        yield f"{group_path}: Zarr's own arrays cannot be read ({error}): run `ddscale ingest` again."
        return
    for name, values in found.items():
        if values != rows[name].to_pylist():
            yield f"{group_path}: the array for `{name}` says otherwise than the index: run `ddscale ingest` again."
