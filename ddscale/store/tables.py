"""The store's Parquet tables: their columns, and how they are written and read. R records."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ddscale.store import layout
from ddscale.store.manifest import TableFile

ROWS_PER_GROUP = 1 << 18

_NAME = pa.dictionary(pa.int32(), pa.string())


def _schema(**columns: tuple[pa.DataType, str]) -> pa.Schema:
    return pa.schema(
        [pa.field(name, kind, metadata={"about": about}) for name, (kind, about) in columns.items()]
    )


RECORDS = _schema(
    key=(pa.string(), "name of the record in its shard"),
    dataset=(_NAME, "dataset"),
    subject=(_NAME, "salted hash of the subject"),
    recording=(_NAME, "recording, unique within the dataset"),
    split=(_NAME, "train, val or test; a subject lies in one only"),
    start=(pa.int64(), "first sample, counted from the beginning of the recording at the store's rate"),
    samples=(pa.int32(), "length in samples"),
    channels=(pa.int32(), "number of channels"),
    montage=(_NAME, "key in the manifest's montages"),
    dropped=(pa.list_(pa.int16()), "positions in the montage of channels that this record lacks"),
    shard=(_NAME, "file, relative to the store"),
    row=(pa.int64(), "zarr: row of the array `signal`; tar: -1"),
    offset=(pa.int64(), "tar: byte of the shard where the values begin; zarr: where its first chunk begins"),
    length=(pa.int64(), "bytes from there"),
    crc32c=(pa.uint32(), "CRC32C of the values, uncompressed, time-major, little-endian"),
    clipped=(pa.int32(), "values at the limit of the integer range"),
    image=(_NAME, "trials: picture that was shown, as in images.parquet; null: none"),
    label=(_NAME, "trials: class; null: none"),
    caption=(_NAME, "trials: what the picture shows, in words; null: none"),
    repetition=(
        pa.int32(),
        "trials: how often the same was shown before in the recording; null: not a trial",
    ),
)

TRIAL_COLUMNS = ("image", "label", "caption", "repetition")
"""Columns that records.parquet has only when some record is a trial."""

IMAGES = _schema(
    image=(pa.string(), "name, unique within the dataset; also its key in the shard"),
    dataset=(_NAME, "dataset"),
    split=(_NAME, "train, val or test"),
    stated=(_NAME, "split that its publishers put it into; null: they say nothing"),
    label=(_NAME, "class; null: none"),
    caption=(pa.string(), "what it shows, in words; null: none"),
    shard=(_NAME, "file, relative to the store"),
    offset=(pa.int64(), "byte of the shard where it begins"),
    length=(pa.int64(), "bytes from there: the file as it came"),
    sha256=(pa.string(), "SHA-256 of those bytes"),
    width=(pa.int32(), "pixels"),
    height=(pa.int32(), "pixels"),
)

REJECTED = _schema(
    dataset=(_NAME, "dataset"),
    recording=(_NAME, "recording, or the name of what could not become one"),
    start_s=(pa.float64(), "seconds from the beginning of the recording; null: all of it"),
    stop_s=(pa.float64(), "seconds from the beginning of the recording; null: all of it"),
    channel=(pa.string(), "null: every channel"),
    reason=(_NAME, "in a word"),
    detail=(pa.string(), "in a sentence"),
)

RECORDINGS = _schema(
    dataset=(_NAME, "dataset"),
    recording=(_NAME, "recording"),
    subject=(_NAME, "salted hash of the subject"),
    status=(_NAME, "kept or quarantined"),
    reason=(_NAME, "why it was quarantined, in a word"),
    detail=(pa.string(), "why it was quarantined, in a sentence"),
    content=(pa.string(), "hash of the processed signal: equal for duplicates"),
    montage=(_NAME, "key in the manifest's montages"),
    dropped=(pa.list_(pa.int16()), "positions in the montage of channels left out as bad"),
    positions=(
        pa.list_(pa.float32()),
        "x, y, z in metres of every montage channel, where this recording states them",
    ),
    sfreq=(pa.float64(), "Hz, as recorded"),
    seconds_found=(pa.float64(), "length"),
    seconds_kept=(pa.float64(), "length in records"),
    records=(pa.int32(), "number of records"),
    line_freq=(pa.float64(), "Hz, mains frequency that was found or stated; null: none"),
    clipped=(pa.int64(), "values at the limit of the integer range"),
    largest_quantisation_error_uV=(pa.float64(), "µV"),
    meta=(pa.string(), "JSON: device, filters, what the source left out"),
    notes=(pa.list_(pa.string()), "what a person should read, though the recording was kept"),
)

SOURCES = _schema(
    dataset=(_NAME, "dataset"),
    recording=(_NAME, "recording"),
    size_bytes=(pa.int64(), "size of the source when it was read"),
    mtime_ns=(pa.int64(), "its time of change, nanoseconds"),
)


def table(schema: pa.Schema, rows: Iterable[dict[str, Any]]) -> pa.Table:
    """Rows as dicts, missing values as None, to a table of this schema."""
    rows = list(rows)
    return pa.table(
        {field.name: _column([row.get(field.name) for row in rows], field.type) for field in schema},
        schema=schema,
    )


def _column(values: list[Any], kind: pa.DataType) -> pa.Array:
    if pa.types.is_dictionary(kind):
        return pa.array(values, kind.value_type).dictionary_encode().cast(kind)
    return pa.array(values, kind)


def write(path: Path, content: pa.Table, schema: pa.Schema) -> TableFile:
    """Write a table as one Parquet file, whole or not at all; the same rows give the same bytes."""
    absent = _unused_trial_columns(content)
    schema = pa.schema([field for field in schema if field.name not in absent])
    content = content.drop_columns(absent)
    names = [field.name for field in schema if pa.types.is_dictionary(field.type)]
    with layout.written_whole(path) as temporary:
        with pq.ParquetWriter(temporary, schema, compression="zstd", use_dictionary=names) as writer:
            writer.write_table(_compact(content), row_group_size=ROWS_PER_GROUP)
        digest = sha256_of(temporary)
    return TableFile(rows=content.num_rows, sha256=digest)


def _unused_trial_columns(content: pa.Table) -> list[str]:
    """What a store without trials does not need: its index stays what it was before there were any."""
    if "repetition" not in content.column_names or content["repetition"].null_count < len(content):
        return []
    return list(TRIAL_COLUMNS)


def widened(content: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table with trial columns of nulls where it has none, columns in the order of `schema`."""
    for field in schema:
        if field.name in TRIAL_COLUMNS and field.name not in content.column_names:
            content = content.append_column(field, pa.nulls(len(content), field.type))
    return content.select(schema.names)


def has_trials(path: Path) -> bool:
    """Whether an index has the columns of trials."""
    return "repetition" in pq.read_schema(path).names


def read(path: Path, schema: pa.Schema, columns: list[str] | None = None) -> pa.Table:
    """A table as written here, names dictionary-encoded.

    Raises ValueError naming the file when it is not such a table.
    """
    names = [field.name for field in schema if pa.types.is_dictionary(field.type)]
    try:
        there = set(pq.read_schema(path).names)
        asked = (
            None if columns is None else [name for name in columns if name in there | _not_optional(schema)]
        )
        found = pq.read_table(path, columns=asked, read_dictionary=names, partitioning=None)
    except (pa.ArrowInvalid, KeyError) as error:
        raise ValueError(
            f"{path} cannot be read as a table ({error}). Run `ddscale ingest` again."
        ) from error
    wanted = pa.schema([field for field in schema if columns is None or field.name in columns])
    missing = set(wanted.names) - set(found.column_names) - set(_optional(schema))
    if missing:
        raise ValueError(f"{path} lacks the columns {sorted(missing)}. Ingest again into a new folder.")
    return widened(found, wanted).cast(wanted)


def _optional(schema: pa.Schema) -> list[str]:
    return [name for name in TRIAL_COLUMNS if schema is RECORDS]


def _not_optional(schema: pa.Schema) -> set[str]:
    return set(schema.names) - set(_optional(schema))


def cell(path: Path, column: str, row: int) -> Any:
    """One value of a table, reading only the group of rows it is in."""
    with pq.ParquetFile(path) as file:
        group = 0
        while row >= (count := file.metadata.row_group(group).num_rows):
            group, row = group + 1, row - count
        return file.read_row_group(group, columns=[column])[column][row].as_py()


class Groups:
    """Rows of a table by number, some columns of them: for long tables, of which only one group is held at a time.

    Rows asked for in about their order cost the reading of each group once.
    """

    def __init__(self, path: Path, columns: Iterable[str]) -> None:
        self._path, self._columns = path, list(columns)
        with pq.ParquetFile(path) as file:
            self._there = [name for name in self._columns if name in file.schema_arrow.names]
            counts = [
                file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)
            ]
        self._ends = np.cumsum(counts)
        self._group = -1
        self._first = 0
        self._rows: pa.Table | None = None

    def __getitem__(self, row: int) -> dict[str, Any]:
        """Values of one row by column; None in columns that the table lacks."""
        group = int(np.searchsorted(self._ends, row, side="right"))
        if group != self._group or self._rows is None:
            with pq.ParquetFile(self._path) as file:
                self._rows = file.read_row_group(group, columns=self._there)
            self._group, self._first = group, int(self._ends[group - 1]) if group else 0
        found = {name: self._rows[name][row - self._first].as_py() for name in self._there}
        return {name: found.get(name) for name in self._columns}


def coded(column: pa.ChunkedArray) -> tuple[np.ndarray, list[str]]:
    """A column of names in memory as (codes, names): `names[codes[row]]`; names are sorted and all in use.

    A missing name has the code -1.
    """
    chunks = column.unify_dictionaries().chunks
    if not chunks:
        return np.empty(0, np.int32), []
    array = pa.chunked_array(chunks, column.type).combine_chunks()
    array = array.chunk(0) if isinstance(array, pa.ChunkedArray) else array
    known = array.dictionary.to_pylist()
    old = array.indices.fill_null(len(known)).to_numpy()
    used = np.flatnonzero(np.bincount(old, minlength=len(known) + 1)[: len(known)])
    order = sorted(used.tolist(), key=known.__getitem__)
    new = np.full(len(known) + 1, -1, np.int32)
    new[order] = np.arange(len(order))
    return new[old], [known[code] for code in order]


def _compact(content: pa.Table) -> pa.Table:
    """The same rows, with only those names in the dictionaries that occur, sorted: a file depends on its rows
    alone, and what was taken out leaves no trace."""
    for position, field in enumerate(content.schema):
        if pa.types.is_dictionary(field.type):
            codes_R, names = coded(content[position])
            indices = pa.array(codes_R, pa.int32(), mask=codes_R < 0)
            column = pa.DictionaryArray.from_arrays(indices, pa.array(names, pa.string()))
            content = content.set_column(position, field, column)
    return content


def numbers(path: Path, column: str, dtype: np.dtype | type, count: int) -> np.ndarray:
    """One numeric column as a compact array of `count` values, never holding more than a batch besides it."""
    values = np.empty(count, dtype)
    position = 0
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=ROWS_PER_GROUP, columns=[column]):
            values[position : position + batch.num_rows] = batch.column(0).to_numpy(zero_copy_only=False)
            position += batch.num_rows
    return values


def codes(path: Path, column: str, dtype: np.dtype | type, count: int) -> tuple[np.ndarray, list[str]]:
    """One column of names as (codes, names): `names[codes[row]]`; names are sorted. A missing name has the code -1."""
    values = np.empty(count, np.int64 if np.dtype(dtype).itemsize > 4 else np.int32)
    known: dict[str, int] = {}
    position = 0
    with pq.ParquetFile(path, read_dictionary=[column]) as file:
        for batch in file.iter_batches(batch_size=ROWS_PER_GROUP, columns=[column]):
            array = batch.column(0)
            local = [known.setdefault(name, len(known)) for name in array.dictionary.to_pylist()]
            indices = array.indices.fill_null(-1).to_numpy(zero_copy_only=False)
            mapped = np.asarray([*local, -1], values.dtype)[indices]
            values[position : position + batch.num_rows] = mapped
            position += batch.num_rows
    names = sorted(known)
    final = np.full(len(known) + 1, -1, np.int64)
    for place, name in enumerate(names):
        final[known[name]] = place
    return final.astype(dtype)[values], names


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
