"""Taking records out of a store that has been published: consent withdrawn, or a recording of a benchmark found.

A sealed shard never changes: what is left of it is copied into a new one, and the next publication drops the old
one's rows and then its file. Until then, readers see the store as it was.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ddscale.store import layout, sealing, tables, tar_shards, zarr_shards
from ddscale.store.leakage import blocked_rows
from ddscale.store.manifest import Blocklist, StoreFormat


def withdraw(store: Path, content: StoreFormat, blocklist: Blocklist) -> list[str]:
    """Seal a replacement for every published shard that holds what is on the blocklist; returns those shards.

    Raises StoreWriteError when the disk is full or cannot be written, ValueError when an old shard is damaged or
    an interrupted ingest has begun to withdraw something else.
    """
    if not (store / layout.MANIFEST).is_file():
        return []
    records = tables.read(store / layout.RECORDS, tables.RECORDS)
    blocked = blocked_rows(records, blocklist)
    codes, shards = tables.coded(records["shard"])
    sealed = sealing.sealed_rows(store)
    replaced = set()
    for rows in sealed:
        if (shard := sealing.replaces(rows)) in shards:
            mine = codes == shards.index(shard)
            if records["key"].filter(pa.array(mine & ~blocked)).to_pylist() != rows["key"].to_pylist():
                raise ValueError(
                    f"{store}: an ingest was interrupted while it withdrew records from {shard}, and the blocklist "
                    "is another now. Put it back as it was, let that ingest finish, then change it."
                )
            replaced.add(shard)
    affected = sorted({shards[code] for code in codes[blocked]} - replaced)
    used = [*shards, *sealing.shards_of(sealed)]
    for sequence, shard in enumerate(affected, start=len(sealed)):
        mine = codes == shards.index(shard)
        kept = records.filter(pa.array(mine & ~blocked)).to_pylist()
        plan = _replacement(store, content, shard, kept, used)
        plan.sequence = sequence
        sealing.seal(store, plan)
        used.append(plan.path)
    return affected


def _replacement(
    store: Path, content: StoreFormat, shard: str, kept: list[dict[str, Any]], used: list[str]
) -> sealing.ShardPlan:
    family = sealing.family_of(shard)
    number = sealing.next_numbers(used)[family]
    if content.backend == "tar":
        plan = sealing.ShardPlan(layout.tar_shard(family, number), replaces=shard)
        pieces = _tar_pieces(store / shard) if kept else {}
    else:
        dataset, group = family.split("/")
        plan = sealing.ShardPlan(layout.zarr_shard(dataset, group, number), replaces=shard)
        pieces, plan.chunks_in_shard = _zarr_pieces(store / shard, content, kept)
        capacity = content.rows_per_shard(kept[0]["channels"]) if kept else 0
    for row in kept:
        piece, chunk_lengths = pieces[row["key"]]
        moved = {"shard": plan.path, "offset": plan.size + row["offset"] - piece.offset}
        if content.backend == "zarr":
            moved["row"] = number * capacity + len(plan.rows)
        plan.rows.append(row | moved)
        plan.pieces.append(piece)
        plan.chunk_lengths += chunk_lengths
        plan.size += piece.length
    return plan


def _tar_pieces(shard: Path) -> dict[str, tuple[sealing.Piece, list[int]]]:
    """Where each record's two members lie in a tar shard, headers and padding included."""
    found: dict[str, tuple[sealing.Piece, list[int]]] = {}
    begin = 0
    for member in tar_shards.members(shard):
        if member.name.endswith(".json"):
            end = member.offset + member.size + -member.size % tar_shards.BLOCK
            found[member.name.removesuffix(".json")] = sealing.Piece(str(shard), begin, end - begin), []
            begin = end
    return found


def _zarr_pieces(
    shard: Path, content: StoreFormat, rows: list[dict[str, Any]]
) -> tuple[dict[str, tuple[sealing.Piece, list[int]]], int]:
    """Where each row's chunks lie in a Zarr shard, and how many chunks a shard has."""
    if not rows:
        return {}, 0
    capacity = content.rows_per_shard(rows[0]["channels"])
    per_record = zarr_shards.chunks_per_record(content.record_samples, content.chunk_samples)
    with shard.open("rb") as file:
        index = zarr_shards.read_shard_index(file.fileno(), capacity * per_record)
    found = {}
    for row in rows:
        place = row["row"] % capacity
        lengths = index[place * per_record : (place + 1) * per_record, 1]
        lengths = np.where(lengths == zarr_shards.NOT_STORED, 0, lengths).astype(int)
        found[row["key"]] = sealing.Piece(str(shard), row["offset"], row["length"]), lengths.tolist()
    return found, capacity * per_record
