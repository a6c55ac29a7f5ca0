"""Records as members of WebDataset tar shards: `<key>.npy` and `<key>.json`, uncompressed. C channels, T samples.

Members carry no time, owner or other trace of the machine, so the same ingest gives the same bytes.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

BLOCK = tarfile.BLOCKSIZE
END_OF_ARCHIVE = bytes(2 * BLOCK)


@dataclass(frozen=True)
class Member:
    """A file inside a shard. offset: byte of the shard where its content begins."""

    name: str
    offset: int
    size: int


def record_bytes(key: str, values_TC: np.ndarray, note: dict[str, Any]) -> tuple[bytes, int]:
    """Both members of a record, headers and padding included, and the byte at which the values begin.

    values_TC: contiguous little-endian array; note: what the .json says.
    """
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(values_TC))
    array = header.getvalue() + values_TC.tobytes()
    text = json.dumps(note, ensure_ascii=False, separators=(",", ":")).encode()
    array_header = _header(f"{key}.npy", len(array))
    content = array_header + _padded(array) + _header(f"{key}.json", len(text)) + _padded(text)
    return content, len(array_header) + len(header.getvalue())


def file_bytes(key: str, suffix: str, content: bytes, note: dict[str, Any]) -> tuple[bytes, int]:
    """A file as it is and what is said of it, as members `<key>.<suffix>` and `<key>.json`; where the file begins."""
    header = _header(f"{key}.{suffix}", len(content))
    text = json.dumps(note, ensure_ascii=False, separators=(",", ":")).encode()
    return header + _padded(content) + _header(f"{key}.json", len(text)) + _padded(text), len(header)


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    info.mode = 0o644
    return info.tobuf(tarfile.GNU_FORMAT)


def _padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % BLOCK)


def members(shard: Path) -> Iterator[Member]:
    """The members of a shard, in order.

    Raises ValueError naming the shard, after the members that could be found, when it is cut off or damaged.
    """
    end = 0
    try:
        with tarfile.open(shard, "r:") as archive:
            for info in archive:
                yield Member(info.name, info.offset_data, info.size)
                end = info.offset_data + info.size + -info.size % BLOCK
    except tarfile.TarError as error:
        raise ValueError(f"{shard} is not a whole tar file: {error}.") from error
    with shard.open("rb") as file:
        file.seek(end)
        if file.read() != END_OF_ARCHIVE:
            raise ValueError(
                f"{shard} does not end where its last member does: it is cut off, or was added to."
            )


def array_begins(shard: Path, member: Member) -> tuple[int, tuple[int, ...], np.dtype]:
    """Where the values of an .npy member begin in its shard, their shape and dtype."""
    with shard.open("rb") as file:
        file.seek(member.offset)
        version = np.lib.format.read_magic(file)
        if version != (1, 0):
            raise ValueError(f"{shard}: {member.name} has NPY version {version}, records have (1, 0).")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        if fortran:
            raise ValueError(f"{shard}: {member.name} is in Fortran order, records are time-major.")
        return file.tell(), shape, dtype
