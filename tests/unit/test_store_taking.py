"""Rows of the store's tables in another order, whatever the size of the columns."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from ddscale.store import tables, taking


def table_in_chunks(counts):
    """A table of many kinds of columns whose chunks have their own dictionaries, as sealed shards have."""
    parts = []
    for number, count in enumerate(counts):
        rows = [
            {
                "key": f"{number}-{row}" * (row % 4) if row % 5 else "",
                "dataset": f"d{number % 2}",
                "recording": f"r{number}",
                "dropped": list(range(row % 3)) if row % 4 else None,
                "image": None if row % 2 else f"i{row}",
                "offset": row,
            }
            for row in range(count)
        ]
        parts.append(tables.table(tables.RECORDS, rows))
    return pa.concat_tables(parts)


@pytest.mark.parametrize("rows_per_group", [1, 7, 1 << 18])
def test_rows_are_taken_as_pyarrow_takes_them(monkeypatch, rows_per_group):
    monkeypatch.setattr(taking, "ROWS_PER_GROUP", rows_per_group)
    content = table_in_chunks([5, 0, 1, 30, 12])
    rows = np.random.default_rng(0).permutation(len(content))[:40].astype(np.uint64)
    found = taking.taken(content, rows)
    assert found.to_pylist() == content.unify_dictionaries().take(rows).to_pylist()
    assert found.schema == content.schema
    for column in found.columns:
        assert [len(chunk) for chunk in column.chunks] == np.diff(
            [*range(0, 40, rows_per_group), 40]
        ).tolist()
    assert len(taking.taken(content, rows[:0])) == 0
    assert len(taking.taken(content.slice(0, 0), rows[:0])) == 0


def test_text_beyond_2_gib_can_be_taken():
    # The long value lies in memory that is never touched, twice: no more than a few pages are used.
    long = 1_200_000_000
    offsets = np.array([0, 3, 3 + long], np.int32)
    chunk = pa.StringArray.from_buffers(2, pa.py_buffer(offsets), pa.py_buffer(np.zeros(3 + long, np.uint8)))
    column = pa.chunked_array([chunk, chunk])
    rows = np.array([2, 0])
    with pytest.raises(pa.ArrowInvalid, match="overflow"):
        column.take(rows)  # when this passes, `taken` is superfluous
    found = taking.taken(pa.table({"key": column}), rows)
    assert found["key"].to_pylist() == ["\0\0\0", "\0\0\0"]
