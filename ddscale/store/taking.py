"""Rows of a table in another order, however large its columns."""

from __future__ import annotations

import itertools

import numpy as np
import pyarrow as pa

from ddscale.store.tables import ROWS_PER_GROUP


def taken(content: pa.Table, rows: np.ndarray) -> pa.Table:
    """The rows named, in that order, in chunks of ROWS_PER_GROUP; for text of any size.

    pyarrow's own take joins all chunks of a column first, which fails from 2 GiB of text on: the keys of some 60
    million records.
    """
    rows = rows.astype(np.int64, copy=False)
    columns = [_taken(column, rows) for column in content.columns]
    return pa.table(columns, schema=content.schema)


def _taken(column: pa.ChunkedArray, rows: np.ndarray) -> pa.ChunkedArray:
    spans = [slice(start, start + ROWS_PER_GROUP) for start in range(0, len(rows), ROWS_PER_GROUP)]
    if pa.types.is_primitive(column.type) or pa.types.is_dictionary(column.type):
        whole = column.unify_dictionaries().take(pa.array(rows)).combine_chunks()
        return pa.chunked_array([part for span in spans for part in _chunks(whole[span])], column.type)
    ends = np.cumsum([len(chunk) for chunk in column.chunks])
    return pa.chunked_array([_gathered(column, ends, rows[span]) for span in spans], column.type)


def _chunks(values: pa.Array | pa.ChunkedArray) -> list[pa.Array]:
    return values.chunks if isinstance(values, pa.ChunkedArray) else [values]


def _gathered(column: pa.ChunkedArray, ends: np.ndarray, rows: np.ndarray) -> pa.Array:
    """Few rows of a column of many chunks, each chunk asked once."""
    chunk_of = np.searchsorted(ends, rows, side="right")
    order = np.argsort(chunk_of, kind="stable")
    bounds = np.flatnonzero(np.diff(chunk_of[order], prepend=-1, append=len(ends)))
    parts = []
    for start, stop in itertools.pairwise(bounds):
        number = chunk_of[order[start]]
        chunk = column.chunk(number)
        parts.append(chunk.take(pa.array(rows[order[start:stop]] - (ends[number] - len(chunk)))))
    return pa.concat_arrays(parts).take(pa.array(np.argsort(order)))
