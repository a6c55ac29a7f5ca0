"""Staged recordings into shards: which record goes where is decided in one place, copying is done anywhere.

`Packer` is fed recordings in sorted order and plans shards; a plan is a pure function of what came before it,
so neither the number of workers nor the order in which they finish shows in the store. `seal` carries out one
plan, in any process. Plans are numbered; after an interruption the unbroken run of sealed plans is kept.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from ddscale.store import layout, tables, tar_shards, zarr_shards
from ddscale.store.manifest import StoreFormat
from ddscale.store.staging import StagedRecord, StagedRecording, fragment_path, write_error

SEALED = "sealed"


@dataclass(frozen=True)
class Piece:
    """A range of bytes to copy."""

    source: str
    offset: int
    length: int


@dataclass
class ShardPlan:
    """A shard to be made. path: relative to the store; sequence: its number in this ingest, in order of filling.

    replaces: the published shard that this one makes superfluous, if any; without rows, nothing takes its place.
    """

    path: str
    sequence: int = -1
    replaces: str = ""
    pieces: list[Piece] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    chunk_lengths: list[int] = field(default_factory=list)
    chunks_in_shard: int = 0
    size: int = 0

    @property
    def recordings(self) -> set[tuple[str, str]]:
        return {(row["dataset"], row["recording"]) for row in self.rows}


def group_name(montage: str, channels: int, lacking: int) -> str:
    """Name of a montage's Zarr group; records that lack bad channels lie in a group of their own width."""
    return f"{montage}-keep{channels}" if lacking else montage


class Packer:
    """Plans shards for recordings that arrive in sorted order.

    next_number: for each shard family (dataset, or dataset/group) the number its next shard gets.
    """

    def __init__(
        self, store: Path, content: StoreFormat, next_number: dict[str, int] | None = None, sequence: int = 0
    ) -> None:
        self._store = store
        self._content = content
        self._next_number = dict(next_number or {})
        self._sequence = sequence
        self._open: dict[str, ShardPlan] = {}

    def add(self, recording: StagedRecording, skip: int = 0) -> Iterator[ShardPlan]:
        """Take a recording's records, but for the first `skip`; yields the plans that are now full."""
        if not recording.records:
            return
        assert recording.montage is not None
        group = group_name(recording.montage.id, recording.channels, len(recording.dropped))
        tar = self._content.backend == "tar"
        family = recording.dataset if tar else f"{recording.dataset}/{group}"
        source = os.fspath(fragment_path(self._store, recording.dataset, recording.recording))
        for index, record in enumerate(recording.records[skip:], start=skip):
            plan = self._open.get(family)
            if plan is not None and self._full(plan, record, recording.channels):
                yield self._numbered(self._open.pop(family))
                plan = None
            if plan is None:
                plan = self._open[family] = self._new_plan(family, recording, group)
            plan.rows.append(self._row(plan, recording, index, record))
            _append(plan.pieces, Piece(source, record.offset, record.length))
            plan.chunk_lengths += record.chunk_lengths
            plan.size += record.length

    def finish(self) -> Iterator[ShardPlan]:
        """The plans still open, in order of their paths."""
        for family in sorted(self._open):
            yield self._numbered(self._open[family])
        self._open.clear()

    def _numbered(self, plan: ShardPlan) -> ShardPlan:
        plan.sequence, self._sequence = self._sequence, self._sequence + 1
        return plan

    def _full(self, plan: ShardPlan, record: StagedRecord, channels: int) -> bool:
        if self._content.backend == "tar":
            return plan.size + record.length + len(tar_shards.END_OF_ARCHIVE) > self._content.shard_mb * 1e6
        return len(plan.rows) >= self._content.rows_per_shard(channels)

    def _new_plan(self, family: str, recording: StagedRecording, group: str) -> ShardPlan:
        number = self._next_number.get(family, 0)
        self._next_number[family] = number + 1
        if self._content.backend == "tar":
            return ShardPlan(layout.tar_shard(recording.dataset, number))
        chunks = zarr_shards.chunks_per_record(self._content.record_samples, self._content.chunk_samples)
        return ShardPlan(
            layout.zarr_shard(recording.dataset, group, number),
            chunks_in_shard=chunks * self._content.rows_per_shard(recording.channels),
        )

    def _row(
        self, plan: ShardPlan, recording: StagedRecording, index: int, record: StagedRecord
    ) -> dict[str, Any]:
        assert recording.montage is not None
        tar = self._content.backend == "tar"
        row = -1
        if not tar:
            first = layout.shard_number(plan.path) * self._content.rows_per_shard(recording.channels)
            row = first + len(plan.rows)
        values = record.samples * recording.channels * self._content.itemsize
        return {
            "key": layout.record_key(recording.dataset, recording.recording, index),
            "dataset": recording.dataset,
            "subject": recording.subject,
            "recording": recording.recording,
            "split": "",  # decided when the index is published
            "start": record.start,
            "samples": record.samples,
            "channels": recording.channels,
            "montage": recording.montage.id,
            "dropped": recording.dropped,
            "shard": plan.path,
            "row": row,
            "offset": plan.size + record.payload,
            "length": values if tar else record.length,
            "crc32c": record.crc32c,
            "clipped": record.clipped,
            **(record.trial.model_dump() if record.trial else {}),
        }


def _append(pieces: list[Piece], piece: Piece) -> None:
    """Add a piece, as part of the last one where they adjoin: fewer, longer copies."""
    if pieces and pieces[-1].source == piece.source and pieces[-1].offset + pieces[-1].length == piece.offset:
        piece = Piece(piece.source, pieces[-1].offset, pieces[-1].length + piece.length)
        pieces.pop()
    pieces.append(piece)


def seal(store: Path, plan: ShardPlan) -> None:
    """Write the shard and then, as the sign that it is whole, its rows under .staging.

    Raises StoreWriteError when the disk is full or cannot be written.
    """
    try:
        if plan.rows:
            _write_shard(store, plan)
        about = {"shard": plan.path, "replaces": plan.replaces}
        rows = tables.table(tables.RECORDS, plan.rows).replace_schema_metadata(about)
        layout.write_bytes(_sealed_path(store, plan.sequence), ipc_bytes(rows))
    except OSError as error:
        raise write_error(store, error) from error


def _write_shard(store: Path, plan: ShardPlan) -> None:
    with layout.written_whole(store / plan.path) as temporary, temporary.open("wb", buffering=0) as shard:
        for piece in plan.pieces:
            _copy(piece, shard.fileno())
        if plan.chunks_in_shard:
            shard.write(zarr_shards.shard_index(plan.chunk_lengths, plan.chunks_in_shard))
        else:
            shard.write(tar_shards.END_OF_ARCHIVE)


def ipc_bytes(rows: pa.Table) -> bytes:
    """Rows as a file that `sealed_rows` and its like read back."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, rows.schema) as writer:
        writer.write_table(rows)
    return sink.getvalue().to_pybytes()


def _copy(piece: Piece, target: int) -> None:
    source = os.open(piece.source, os.O_RDONLY)
    try:
        offset, left = piece.offset, piece.length
        while left:
            # sendfile copies inside the kernel, on every file system and between two of them.
            copied = os.sendfile(target, source, offset, min(left, 1 << 30))
            if copied == 0:
                raise OSError(f"{piece.source} is shorter than its sidecar says")
            offset, left = offset + copied, left - copied
    finally:
        os.close(source)


def _sealed_path(store: Path, sequence: int) -> Path:
    return store / layout.STAGING / SEALED / f"{sequence:08d}.arrow"


def sealed_rows(store: Path) -> list[pa.Table]:
    """Rows of the shards sealed since the last publication, the unbroken run of plans only.

    A shard sealed after a missing one is removed with its rows: it will be planned again, the same way.
    """
    found = sorted((store / layout.STAGING / SEALED).glob("[0-9]*.arrow"))
    kept: list[pa.Table] = []
    for path in found:
        rows = pa.ipc.open_file(pa.py_buffer(path.read_bytes())).read_all()
        shard = store / _about(rows, "shard")
        if int(path.stem) == len(kept) and (shard.is_file() or not len(rows)):
            kept.append(rows)
            continue
        path.unlink()
        shard.unlink(missing_ok=True)
    return kept


def _about(rows: pa.Table, what: str) -> str:
    return rows.schema.metadata[what.encode()].decode()


def shards_of(sealed: Iterable[pa.Table]) -> list[str]:
    """The shard of each table of sealed rows."""
    return [_about(rows, "shard") for rows in sealed]


def replaces(rows: pa.Table) -> str:
    """The published shard that a table of sealed rows stands in for; empty: none."""
    return _about(rows, "replaces")


def count_by_recording(sealed: Iterable[pa.Table]) -> dict[tuple[str, str], int]:
    """How many records of each (dataset, recording) are sealed."""
    counts: dict[tuple[str, str], int] = {}
    for rows in sealed:
        for dataset, recording in zip(
            rows["dataset"].to_pylist(), rows["recording"].to_pylist(), strict=True
        ):
            counts[dataset, recording] = counts.get((dataset, recording), 0) + 1
    return counts


def family_of(shard: str) -> str:
    """What shards are numbered within: the dataset, or dataset/group."""
    return shard.rsplit("-", 1)[0] if shard.endswith(".tar") else shard.rsplit("/signal/", 1)[0]


def next_numbers(shards: Iterable[str]) -> dict[str, int]:
    """For each shard family the number after the highest in use."""
    numbers: dict[str, int] = {}
    for shard in shards:
        family = family_of(shard)
        numbers[family] = max(numbers.get(family, 0), layout.shard_number(shard) + 1)
    return numbers


def published_numbers(store: Path) -> dict[str, int]:
    """`next_numbers` of the store as it was last published; empty when it never was."""
    index = store / layout.RECORDS
    if not (store / layout.MANIFEST).is_file():
        return {}
    return next_numbers(tables.coded(tables.read(index, tables.RECORDS, ["shard"])["shard"])[1])
