"""Reading a store: one index, two backends. R records, T samples, C channels.

A caller asks for (record, start, stop) and does not know which backend it has.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pyarrow as pa

from ddscale.store import images as image_shards
from ddscale.store import layout, matching, remote, retrying, splitting, tables, zarr_shards
from ddscale.store.columns import IndexColumns
from ddscale.store.identity import PUBLIC_SALT, salt_check
from ddscale.store.manifest import Manifest, Montage, MontageChannel, StoreFormat, read_manifest
from ddscale.store.shard_cache import ShardCache, default_folder
from ddscale.store.shard_files import OpenFiles, ReadError, ShardFiles, read_whole


def open_store(
    path: str | os.PathLike[str], cache: ShardCache | None = None, check_index: bool = True
) -> Store:
    """Open the store in the folder `path`, or behind that URL, for reading.

    cache: where files of a remote store are kept while they are in use; by default 100 GB in `default_folder()`.
    check_index: hash a folder's index, which may be gigabytes; False where another process of this machine does.
    Raises FileNotFoundError when there is none or its ingest has not finished, ValueError when it has another
    format version or its index is not the one the manifest names; ModuleNotFoundError when a URL needs a package
    that is not installed, ReadError when it does not answer.
    """
    if layout.is_url(path):
        manifest, origin = remote.open_origin(os.fspath(path), cache or ShardCache(default_folder(), 100.0))
        return Store(origin.folder, manifest, origin)
    folder = layout.local_folder(path)
    manifest = read_manifest(folder)
    _check_index(folder, manifest, layout.RECORDS, check_index)
    if layout.IMAGES in manifest.tables:
        _check_index(folder, manifest, layout.IMAGES, check_index)
    return Store(folder, manifest)


def _check_index(folder: Path, manifest: Manifest, name: str, whole: bool) -> None:
    if not (folder / name).is_file():
        raise FileNotFoundError(f"{folder} has lost its index {name}. Copy the store again, or ingest anew.")
    if whole and tables.sha256_of(folder / name) != manifest.tables[name].sha256:
        if (folder / layout.STAGING).is_dir():
            raise ValueError(
                f"{folder} was left half-published: {name} is newer than {layout.MANIFEST}. "
                "Run the same `ddscale ingest` again: it finishes the job."
            )
        raise ValueError(
            f"{folder}: {name} is not the index that {layout.MANIFEST} names (other SHA-256). "
            "Run the same `ddscale ingest` again, or copy the store anew."
        )


class Store:
    """An open store. Safe to share between threads; pickles as its address.

    address: folder or URL. path: the folder its index is in, one of the cache for a URL. manifest.
    fingerprint: hex, changes whenever a record, a picture or its meaning does.
    sfreq: Hz. step: µV per least significant bit (of `unit`, where that is not "uV"). dtype: "int16" or "float32".
    dataset_names: sorted; montages: by id.
    """

    def __init__(self, path: Path, manifest: Manifest, origin: remote.Origin | None = None) -> None:
        self.path = path
        self.address = os.fspath(path) if origin is None else origin.url
        self.origin = origin
        self.manifest = manifest
        self.content: StoreFormat = manifest.content
        self.sfreq = self.content.sfreq
        self.step = self.content.step_uV
        self.unit = self.content.unit
        self.dtype = self.content.dtype
        self.montages: dict[str, Montage] = manifest.montages
        self.fingerprint = f"{manifest.preprocessing_hash}{_contents(manifest)[:16]}"
        self._value_dtype = np.dtype("<i2" if self.dtype == "int16" else "<f4")
        self._index = IndexColumns(path / layout.RECORDS, len(self))
        # A bad record comes again in every epoch, and its name costs the reading of its whole group of rows.
        self._keys = functools.lru_cache(maxsize=1024)(functools.partial(_key, path / layout.RECORDS))
        zarr = self.content.backend == "zarr"
        index_of = self._shard_index if zarr else None
        if origin is None:
            self._files = ShardFiles(self._open_shard, index_of)
        else:  # opening is quick there, and a file that is open takes room after it is evicted
            self._files = ShardFiles(self._open_shard, index_of, OpenFiles(16))
        self._read = self._read_zarr if zarr else self._read_tar

    def __len__(self) -> int:
        """Number of records."""
        return self.manifest.tables[layout.RECORDS].rows

    def __reduce__(self) -> tuple[Any, ...]:
        return open_store, (self.address, None if self.origin is None else self.origin.cache)

    def __repr__(self) -> str:
        return f"Store({self.address!r}, {len(self)} records, {self.content.backend})"

    @property
    def samples(self) -> np.ndarray:
        """(R,) int32: length of each record."""
        return self._column("samples")

    @property
    def channels(self) -> np.ndarray:
        """(R,) int32: number of channels of each record."""
        return self._column("channels")

    @property
    def dataset(self) -> np.ndarray:
        """(R,) int16: position in `dataset_names`."""
        return self._column("dataset")

    @property
    def dataset_names(self) -> list[str]:
        """Names of the datasets that have records, sorted."""
        self._column("dataset")
        return self._index.names["dataset"]

    @property
    def split(self) -> np.ndarray:
        """(R,) uint8: 0 train, 1 val, 2 test; 3 none, of trials whose picture and subject are divided differently."""
        return self._column("split")

    @property
    def start(self) -> np.ndarray:
        """(R,) int64: first sample of each record, counted from the beginning of its recording."""
        return self._column("start")

    @property
    def shard(self) -> np.ndarray:
        """(R,) int32: position in `shard_names`; records of a shard adjoin."""
        return self._column("shard")

    @property
    def shard_names(self) -> list[str]:
        """Shard files, relative to the store."""
        self._column("shard")
        return self._index.names["shard"]

    def lengths(self) -> np.ndarray:
        """(R,) int64: bytes of each record in its shard; read anew each time."""
        return tables.numbers(self.path / layout.RECORDS, "length", np.int64, len(self))

    @functools.cached_property
    def is_trial(self) -> np.ndarray:
        """(R,) bool: records that begin with the onset of something presented."""
        if not tables.has_trials(self.path / layout.RECORDS):
            return np.zeros(len(self), bool)
        return self.table(["repetition"])["repetition"].is_valid().to_numpy()

    @functools.cached_property
    def images(self) -> pa.Table | None:
        """images.parquet, a row per picture; None in a store without."""
        if layout.IMAGES not in self.manifest.tables:
            return None
        return tables.read(self.path / layout.IMAGES, tables.IMAGES)

    @functools.cached_property
    def image_row_of_record(self) -> np.ndarray:
        """(R,) int32: row in `images` of the picture shown in each record; -1 where there was none."""
        if self.images is None:
            return np.full(len(self), -1, np.int32)
        return splitting.image_rows(self.table(["dataset", "image"]), self.images)

    def read_image(self, row: int) -> bytes:
        """The file of a picture, by its row in `images`, as it came and with its checksum tested.

        Raises IndexError when there is no such row, OSError naming picture and shard when it cannot be read.
        """
        if self.images is None or not 0 <= row < len(self.images):
            count = 0 if self.images is None else len(self.images)
            raise IndexError(f"{self.path} has {count} pictures, asked for number {row}.")
        about = self.images.slice(row, 1).to_pylist()[0]
        if self.origin is not None:
            retrying.patiently(functools.partial(self.origin.hold, about["shard"]))
        return image_shards.read(self.path, about)

    def table(self, columns: Iterable[str] | None = None) -> pa.Table:
        """records.parquet as a table, all columns or those named."""
        return tables.read(
            self.path / layout.RECORDS, tables.RECORDS, None if columns is None else list(columns)
        )

    def key(self, row: int) -> str:
        """Name of one record; "row 17" while the index itself cannot be read."""
        try:
            return self._keys(row)
        except OSError:
            return f"row {row}"

    def onset_s(self, row: int, sample: int) -> float:
        """Where a sample of a record lies, in seconds from the beginning of its recording.

        Of a recording with interruptions, the seconds that were recorded are counted.
        """
        return round((int(self.start[row]) + sample) / self.sfreq, 6)

    def channels_of(self, row: int) -> list[MontageChannel]:
        """The channels of one record, in the order of its columns."""
        montage = self.montages[self._name("montage", row)]
        return montage.without(tables.cell(self.path / layout.RECORDS, "dropped", row))

    def _name(self, column: str, row: int) -> str:
        codes = self._column(column)
        return self._index.names[column][codes[row]]

    def _column(self, name: str) -> np.ndarray:
        return self._index[name]

    def read(self, row: int, start: int, stop: int) -> np.ndarray:
        """Samples [start, stop) of record `row` as a new (T, C) array in the store's dtype.

        While the storage fails, it is tried again for a minute. Raises ValueError when the record has no such
        samples, ReadError when the shard cannot be read.
        """
        out_TC = np.empty((stop - start, int(self.channels[row])), self._value_dtype)
        retrying.patiently(lambda: self.read_into(row, start, stop, out_TC))
        return out_TC

    def read_into(self, row: int, start: int, stop: int, out_TC: np.ndarray) -> None:
        """Samples [start, stop) of record `row` into `out_TC`, C-contiguous and of the store's dtype.

        The GIL is released while bytes are fetched and decompressed; any number of threads may call this.
        Raises ValueError when the record has no such samples or `out_TC` does not fit, ReadError naming shard and
        record when the shard cannot be read, at once: whether to try again later is the caller's to decide.
        """
        samples, channels = int(self.samples[row]), int(self.channels[row])
        if not 0 <= start < stop <= samples:
            raise ValueError(
                f"{self.path}: record {row} has samples 0 to {samples}, asked for {start} to {stop}."
            )
        if (
            out_TC.shape != (stop - start, channels)
            or out_TC.dtype != self._value_dtype
            or not out_TC.flags.c_contiguous
        ):
            raise ValueError(
                f"{self.path}: samples {start} to {stop} of record {row} need a C-contiguous {self._value_dtype} "
                f"array of {(stop - start, channels)}, given {out_TC.dtype} {out_TC.shape}."
            )
        try:
            try:
                self._read(row, start, stop, out_TC)
            except ReadError:
                raise  # of a file that was to be fetched
            except (ValueError, OSError):
                self._read(row, start, stop, out_TC)  # from a file opened anew
        except (ValueError, OSError) as error:
            raise self._fault(row, error) from error

    def _read_tar(self, row: int, start: int, stop: int, out_TC: np.ndarray) -> None:
        code = int(self.shard[row])
        offset = int(self._column("offset")[row]) + start * out_TC.shape[1] * out_TC.itemsize
        with self._files.opened(code) as (descriptor, _):
            read_whole(descriptor, out_TC, offset)

    def _read_zarr(self, row: int, start: int, stop: int, out_TC: np.ndarray) -> None:
        code = int(self.shard[row])
        place = int(self._column("row")[row]) % self.content.rows_per_shard(out_TC.shape[1])
        chunks = zarr_shards.chunks_per_record(self.content.record_samples, self.content.chunk_samples)
        with self._files.opened(code) as (descriptor, index):
            of_record = index[place * chunks : (place + 1) * chunks]
            zarr_shards.decode_into(descriptor, of_record, self.content.chunk_samples, start, stop, out_TC)

    def _open_shard(self, code: int) -> int:
        if self.origin is not None:
            return self.origin.open(self.shard_names[code], functools.partial(self._sound, code))
        return os.open(self.path / self.shard_names[code], os.O_RDONLY | os.O_CLOEXEC)

    @functools.cached_property
    def _first_of_shard(self) -> np.ndarray:
        """(shards,) int64: the first row of each shard, by its position in `shard_names`."""
        starts = np.flatnonzero(np.diff(self.shard, prepend=-1))
        first = np.empty(len(starts), np.int64)
        first[self.shard[starts]] = starts
        return first

    def _shard_index(self, code: int, descriptor: int) -> np.ndarray:
        rows = self.content.rows_per_shard(int(self.channels[self._first_of_shard[code]]))
        chunks = zarr_shards.chunks_per_record(self.content.record_samples, self.content.chunk_samples)
        return zarr_shards.read_shard_index(descriptor, rows * chunks)

    def holds(self, code: int) -> bool:
        """Whether a shard is a local file, and need not be fetched."""
        return self.origin is None or os.path.isfile(self.path / self.shard_names[code])

    def fetch(self, code: int) -> None:
        """Have a shard of a remote store in the cache. Raises ReadError."""
        if self.origin is not None:
            self.origin.hold(self.shard_names[code], functools.partial(self._sound, code))

    def _sound(self, code: int, file: Path) -> bool:
        """Whether the records of a tar shard have the checksums of the index; chunks of Zarr's have their own."""
        if self.content.backend == "zarr":
            return True
        rows = np.flatnonzero(self.shard == code)
        lengths = self.samples[rows].astype(np.int64) * self.channels[rows] * self._value_dtype.itemsize
        with file.open("rb") as shard:
            for row, length in zip(rows.tolist(), lengths.tolist(), strict=True):
                shard.seek(int(self._column("offset")[row]))
                if google_crc32c.value(shard.read(length)) != self._column("crc32c")[row]:
                    return False
        return True

    def _fault(self, row: int, error: Exception) -> ReadError:
        where = f"{self.address}/{self._name('shard', row)}"
        missing = isinstance(error, FileNotFoundError)
        # A shard alone is gone for good; with its whole store, the disk may come back.
        transient = isinstance(error, OSError) and not (
            missing and os.path.isfile(self.path / layout.MANIFEST)
        )
        return ReadError(
            f"Cannot read record {self.key(row)} from shard {where}: {'it is not there' if missing else error}. "
            f"`ddscale verify {self.address}` lists all that is damaged; copy those shards again, or ingest into a new "
            "folder.",
            transient=error.transient if isinstance(error, ReadError) else transient,
        )

    def rows_matching(self, names: Iterable[str], salt: str = PUBLIC_SALT) -> np.ndarray:
        """(R,) bool: records of the subjects and recordings named, for a blocklist that is enforced at load.

        names: `dataset/subject`, `dataset/<subject's hash>` or `dataset/recording`. Subjects' own names are found
        through the salt of the ingest recipe; a store that was salted otherwise needs their hashes.
        Raises ValueError when a name fits nothing in the store and the salt is not the store's: it may be there.
        """
        columns = {name: self._column(name) for name in ("subject", "recording", "dataset")}
        wanted, unknown = matching.rows(names, columns, self._index.names, salt)
        if unknown and salt_check(salt) != self.content.salt_check:
            raise ValueError(
                f"blocklist: {', '.join(unknown)}: no such recording in {self.path}, and subjects there were hashed "
                "with another salt. Name subjects by their hash, or give the salt of the ingest recipe."
            )
        return wanted

    def close(self) -> None:
        """Close the shard files; they open again when needed."""
        self._files.close()


def _key(index: Path, row: int) -> str:
    return str(tables.cell(index, "key", row))


def _contents(manifest: Manifest) -> str:
    """A hash of everything the indexes say."""
    records = manifest.tables[layout.RECORDS].sha256
    if layout.IMAGES not in manifest.tables:
        return records
    return hashlib.sha256(f"{records} {manifest.tables[layout.IMAGES].sha256}".encode()).hexdigest()
