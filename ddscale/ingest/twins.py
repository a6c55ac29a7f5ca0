"""The same signal in two splits, under other names: found at an ingest's end, from the index and a few records.

A file exported twice, cut or named otherwise, is no duplicate as a whole, and its records are. R records.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from ddscale.store import layout, open_store, tables
from ddscale.store.identity import NO_SPLIT

LOOKED_AT = 100
"""Pairs of recordings that are compared: equal checksums alone are chance more often than not in a large store."""
_NAMED = 10

_Side = tuple[str, str, str]
"""Dataset, recording, split."""


def notes(path: Path) -> list[str]:
    """A sentence for each pair of recordings in different splits that share records.

    Those with most equal checksums are looked at, one record of each read, so that the time is bounded.
    """
    store = open_store(path, check_index=False)  # it has just been written
    index, count = path / layout.RECORDS, len(store)
    split_R, splits = tables.codes(index, "split", np.int8, count)
    if len(set(splits) - {NO_SPLIT}) < 2:
        return []
    rows = _pairs(index, count, split_R)
    dataset_R, datasets = tables.codes(index, "dataset", np.int32, count)
    recording_R, recordings = tables.codes(index, "recording", np.int32, count)

    def side(row: int) -> _Side:
        return datasets[dataset_R[row]], recordings[recording_R[row]], splits[split_R[row]]

    shared: Counter[tuple[_Side, _Side]] = Counter()
    example: dict[tuple[_Side, _Side], tuple[int, int]] = {}
    for row, other in rows.tolist():
        sides = side(row), side(other)
        if NO_SPLIT in (sides[0][2], sides[1][2]):
            continue
        pair = (sides[0], sides[1]) if sides[0] <= sides[1] else (sides[1], sides[0])
        shared[pair] += 1
        example.setdefault(pair, (row, other))
    found = []
    for pair, number in shared.most_common(LOOKED_AT):
        row, other = example[pair]
        samples = int(store.samples[row])
        try:
            same = np.array_equal(store.read(row, 0, samples), store.read(other, 0, samples))
        except OSError:
            break  # `ddscale verify` tells of damage, and what cannot be read is tried for a minute each
        if same:
            found.append((pair, number))
    sentences = [
        f"{'/'.join(first[:2])} in {first[2]} and {'/'.join(second[:2])} in {second[2]} hold the same signal in "
        f"{number} records: what is learnt from is tested on. Put one of them on the blocklist, or state one subject "
        "for both and ingest into a new folder."
        for (first, second), number in found[:_NAMED]
    ]
    if len(found) > _NAMED:
        sentences.append(f"{len(found) - _NAMED} more pairs of recordings in different splits share records.")
    return sentences


def _pairs(index: Path, count: int, split_R: np.ndarray) -> np.ndarray:
    """(P, 2) rows of records with the same checksum and shape in different splits."""
    crc_R = tables.numbers(index, "crc32c", np.uint32, count)
    samples_R = tables.numbers(index, "samples", np.int32, count)
    channels_R = tables.numbers(index, "channels", np.int32, count)
    order_R = np.lexsort((split_R, channels_R, samples_R, crc_R))
    same = np.ones(max(count - 1, 0), bool)
    for column_R in (crc_R, samples_R, channels_R):
        ordered_R = column_R[order_R]
        same &= ordered_R[1:] == ordered_R[:-1]
    ordered_R = split_R[order_R]
    places = np.flatnonzero(same & (ordered_R[1:] != ordered_R[:-1]))
    return np.stack([order_R[places], order_R[places + 1]], axis=1)
