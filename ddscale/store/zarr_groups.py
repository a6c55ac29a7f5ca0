"""What surrounds the shards of a Zarr store, so that plain `zarr.open` reads it: groups, attributes, row arrays.

Everything is written by zarr-python into memory and then file by file, each whole or not at all.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.storage import MemoryStore

from ddscale.store import layout, tables, zarr_shards
from ddscale.store.identity import CODES
from ddscale.store.manifest import MICROVOLT, Montage, StoreFormat
from ddscale.store.sealing import group_name

ABOUT = {
    "signal": "(record, sample, channel): integers, times `step_uV` gives µV; zeros beyond a record's `length`",
    "length": "samples of each row that hold data; 0: the row is not in use",
    "start": "first sample of each row, counted from the beginning of its recording",
    "key": "name of the record in each row, as in records.parquet",
    "subject": "salted hash of the subject of each row",
    "split": "0 train, 1 val, 2 test",
    "crc32c": "CRC32C of the values signal[row, :length[row]], time-major, little-endian",
}

ABOUT_TRIALS = {
    "split": "0 train, 1 val, 2 test, 3 none",
    "image": "name of the picture that was shown, as in images.parquet; empty: none",
    "label": "class of what was presented; empty: none",
    "caption": "what it shows, in words; empty: none",
    "repetition": "how often the same had been presented before in the recording; -1: not a trial",
}


def write(store: Path, content: StoreFormat, records: pa.Table, montages: dict[str, Montage]) -> None:
    """Write zarr.json at every level and the row arrays of every group of the index `records`."""
    memory = MemoryStore()
    root = zarr.create_group(
        memory,
        attributes={
            "about": "EEG records; one group per dataset and montage. manifest.json and records.parquet describe them.",
            "format": layout.FORMAT,
            "sfreq": content.sfreq,
            "unit": "µV" if content.unit == MICROVOLT else content.unit,
            "step_uV": content.step_uV,
            "record_samples": content.record_samples,
        },
    )
    codes, shards = tables.coded(records["shard"])
    groups: dict[str, list[int]] = {}
    for code, shard in enumerate(shards):
        groups.setdefault(shard.split("/signal/")[0], []).append(code)
    for path in sorted(groups):
        _write_group(root, path, content, records.filter(pa.array(np.isin(codes, groups[path]))), montages)
    with warnings.catch_warnings():
        # Warned about because the specification does not have it yet. Without it, listing the root makes zarr try
        # every other file of the store as an array, and open one zarr.json after the other.
        warnings.simplefilter("ignore")
        zarr.consolidate_metadata(memory)
    for key, value in sorted(memory._store_dict.items()):
        layout.write_bytes(store / key, value.to_bytes())


def _write_group(
    root: zarr.Group, path: str, content: StoreFormat, rows: pa.Table, montages: dict[str, Montage]
) -> None:
    montage_id = rows["montage"][0].as_py()
    channels = rows["channels"][0].as_py()
    montage = montages[montage_id]
    about = ABOUT if rows["repetition"].null_count == len(rows) else ABOUT | ABOUT_TRIALS
    attributes: dict[str, Any] = {
        "about": about,
        "dataset": rows["dataset"][0].as_py(),
        "montage": montage_id,
        "reference": montage.reference,
        "sfreq": content.sfreq,
        "step_uV": content.step_uV,
    }
    lacking = len(montage.channels) - channels
    if lacking:
        attributes["montage_channels"] = [channel.name for channel in montage.channels]
        attributes["about"] = about | {"dropped": "positions in montage_channels that each row lacks"}
    else:
        attributes["channels"] = [channel.model_dump(mode="json") for channel in montage.channels]
    group = root.create_group(path, attributes=attributes)
    assert path.endswith(group_name(montage_id, channels, lacking))
    place = rows["row"].to_numpy()
    count = int(place.max()) + 1
    signal_array(group, content, channels, count)
    for name, dtype, values in (
        ("length", "int32", rows["samples"].to_numpy()),
        ("start", "int64", rows["start"].to_numpy()),
        ("crc32c", "uint32", rows["crc32c"].to_numpy()),
        ("split", "uint8", _split_codes(rows)),
    ):
        _row_array(group, name, np.zeros(count, dtype), place, values)
    for name in ("key", "subject"):
        _row_array(group, name, np.full(count, "", object), place, rows[name].cast(pa.string()).to_pylist())
    if rows["repetition"].null_count < len(rows):
        for name in ("image", "label", "caption"):
            texts = [text or "" for text in rows[name].cast(pa.string()).to_pylist()]
            _row_array(group, name, np.full(count, "", object), place, texts)
        repetition = rows["repetition"].fill_null(-1).to_numpy()
        _row_array(group, "repetition", np.full(count, -1, np.int32), place, repetition)
    if lacking:
        dropped = np.asarray(rows["dropped"].to_pylist(), np.int16)
        _row_array(group, "dropped", np.zeros((count, lacking), np.int16), place, dropped)


def signal_array(group: zarr.Group, content: StoreFormat, channels: int, rows: int) -> zarr.Array:
    """The array whose shard files `zarr_shards` encodes; this only says how they are to be read."""
    chunk = content.chunk_samples
    shard_samples = zarr_shards.chunks_per_record(content.record_samples, chunk) * chunk
    return group.create_array(
        "signal",
        shape=(rows, content.record_samples, channels),
        dtype=content.dtype,
        chunks=(1, chunk, channels),
        shards=(content.rows_per_shard(channels), shard_samples, channels),
        compressors=[
            BloscCodec(
                cname="lz4", clevel=zarr_shards.LEVEL, shuffle="bitshuffle", typesize=content.itemsize
            ),
            Crc32cCodec(),
        ],
        fill_value=0,
        dimension_names=["record", "sample", "channel"],
    )


def _row_array(group: zarr.Group, name: str, whole: np.ndarray, place: np.ndarray, values: Any) -> None:
    whole[place] = values
    array = group.create_array(
        name,
        shape=whole.shape,
        dtype="string" if whole.dtype == object else whole.dtype,
        chunks=(min(len(whole), 1 << 16), *whole.shape[1:]),
        compressors=None,
        dimension_names=["record", "channel"][: whole.ndim],
        # Left out when all zero, a chunk of an earlier publication would stay in its place.
        config={"write_empty_chunks": True},
    )
    array[:] = whole


def _split_codes(rows: pa.Table) -> np.ndarray:
    codes, names = tables.coded(rows["split"])
    return np.array([CODES[name] for name in names], np.uint8)[codes]
