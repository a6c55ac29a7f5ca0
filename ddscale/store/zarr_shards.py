"""Records as rows of a Zarr v3 array with the sharding codec, encoded and decoded here chunk by chunk.

`signal (records, samples, channels)`: a shard file holds `rows` records; an inner chunk is `chunk_samples`
samples of one record, encoded little-endian, Blosc LZ4 with bit-shuffle, CRC32C; chunks wholly beyond the end
of a record are not stored. The shard ends with the offset and length of each chunk, and a CRC32C of that list.
Encoding a record needs nothing of its neighbours, so workers compress and a shard is put together by copying
bytes. Arrays and metadata that surround the shards are written by zarr-python. C channels, T samples.
"""

from __future__ import annotations

import os
import struct
import threading

import google_crc32c
import numcodecs.blosc
import numpy as np

from ddscale.store.shard_files import read_bytes

# Several threads decode at a time here, each its own chunk; Blosc's own thread pool holds one lock for all.
# zarr-python sets the same.
numcodecs.blosc.use_threads = False

LEVEL = 5
NOT_STORED = 2**64 - 1
_CRC = struct.Struct("<I")


def chunks_per_record(record_samples: int, chunk_samples: int) -> int:
    return -(-record_samples // chunk_samples)


def encode_record(values_TC: np.ndarray, record_samples: int, chunk_samples: int) -> list[bytes]:
    """One encoded inner chunk per `chunk_samples`; b"" where nothing of the record lies.

    The last chunk with data is filled up with zeros, as Zarr demands; the record's length tells them apart.
    """
    encoded = []
    for first in range(0, record_samples, chunk_samples):
        part_TC = values_TC[first : first + chunk_samples]
        if not len(part_TC):
            encoded.append(b"")
            continue
        if len(part_TC) < chunk_samples:
            whole_TC = np.zeros((chunk_samples, values_TC.shape[1]), values_TC.dtype)
            whole_TC[: len(part_TC)] = part_TC
            part_TC = whole_TC
        packed = numcodecs.blosc.compress(
            np.ascontiguousarray(part_TC), b"lz4", LEVEL, numcodecs.blosc.BITSHUFFLE, 0
        )
        encoded.append(packed + _CRC.pack(google_crc32c.value(packed)))
    return encoded


def shard_index(chunk_lengths: list[int], chunks_in_shard: int) -> bytes:
    """The end of a shard file whose chunks of these lengths (0: not stored) lie one after the other."""
    table = np.full((chunks_in_shard, 2), NOT_STORED, "<u8")
    lengths = np.asarray(chunk_lengths, np.int64)
    ends = np.cumsum(lengths)
    stored = np.flatnonzero(lengths)
    table[stored, 0] = (ends - lengths)[stored]
    table[stored, 1] = lengths[stored]
    content = table.tobytes()
    return content + _CRC.pack(google_crc32c.value(content))


def read_shard_index(descriptor: int, chunks_in_shard: int) -> np.ndarray:
    """(chunks, 2) uint64: offset and length of every inner chunk of an open shard file.

    Raises ValueError when the list is not there or its checksum is wrong.
    """
    length = 16 * chunks_in_shard + _CRC.size
    size = os.fstat(descriptor).st_size
    if size < length:
        raise ValueError("its list of chunks is damaged or cut off")
    content = read_bytes(descriptor, length, size - length)
    if google_crc32c.value(content[:-4]) != _CRC.unpack(content[-4:])[0]:
        raise ValueError("its list of chunks is damaged or cut off")
    return np.frombuffer(content[:-4], "<u8").reshape(chunks_in_shard, 2)


def decode_into(
    descriptor: int, chunks: np.ndarray, chunk_samples: int, start: int, stop: int, out_TC: np.ndarray
) -> None:
    """Samples [start, stop) of the record whose chunks have these offsets and lengths, into `out_TC`.

    chunks: (chunks per record, 2). Raises ValueError when bytes are missing or a checksum is wrong.
    """
    first, last = start // chunk_samples, (stop - 1) // chunk_samples
    wanted = chunks[first : last + 1]
    if (wanted[:, 1] == NOT_STORED).any():
        raise ValueError("a chunk that should hold data is not stored")
    begin = int(wanted[0, 0])
    length = int(wanted[-1, 0] + wanted[-1, 1]) - begin
    content = read_bytes(descriptor, length, begin)
    scratch_TC: np.ndarray | None = None
    for number, (offset, size) in enumerate(wanted.tolist(), start=first):
        packed = content[offset - begin : offset - begin + size - _CRC.size]
        if google_crc32c.value(packed) != _CRC.unpack_from(content, offset - begin + size - _CRC.size)[0]:
            raise ValueError(f"the checksum of chunk {number} is wrong")
        low, high = number * chunk_samples, (number + 1) * chunk_samples
        if start <= low and high <= stop:
            numcodecs.blosc.decompress(packed, out_TC[low - start : high - start])
            continue
        if scratch_TC is None:
            scratch_TC = _scratch((chunk_samples, out_TC.shape[1]), out_TC.dtype)
        numcodecs.blosc.decompress(packed, scratch_TC)
        part_from, part_to = max(start, low), min(stop, high)
        out_TC[part_from - start : part_to - start] = scratch_TC[part_from - low : part_to - low]


_local = threading.local()


def _scratch(shape: tuple[int, int], dtype: np.dtype) -> np.ndarray:
    """A buffer of the thread's own, kept from call to call."""
    held = getattr(_local, "buffer", None)
    if held is None or held.shape != shape or held.dtype != dtype:
        held = _local.buffer = np.empty(shape, dtype)
    return held
