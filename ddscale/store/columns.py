"""Columns of a store's index as compact arrays: 60 million records cost 25 bytes each, not a Python object each."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np

from ddscale.store import tables
from ddscale.store.identity import CODES

_NUMBERS = {
    "samples": np.int32,
    "channels": np.int32,
    "start": np.int64,
    "row": np.int64,
    "offset": np.int64,
    "crc32c": np.uint32,
    "clipped": np.int32,
}
_CODES = {
    "dataset": np.int16,
    "montage": np.int32,
    "subject": np.int32,
    "recording": np.int32,
    "shard": np.int32,
}


class IndexColumns:
    """Columns of records.parquet, each loaded when it is first asked for. Threads may share it.

    names: of the columns that hold names, what the codes in the arrays count.
    """

    def __init__(self, index: Path, count: int) -> None:
        self.names: dict[str, list[str]] = {}
        self._path = index
        self._count = count
        self._columns: dict[str, np.ndarray] = {}
        self._lock = threading.RLock()

    def __getitem__(self, name: str) -> np.ndarray:
        found = self._columns.get(name)
        if found is None:
            with self._lock:
                found = self._columns.get(name)
                if found is None:
                    found = self._columns[name] = self._load(name)
        return found

    def _load(self, name: str) -> np.ndarray:
        if name in _NUMBERS:
            values = tables.numbers(self._path, name, _NUMBERS[name], self._count)
        elif name == "split":
            values, names = tables.codes(self._path, name, np.uint8, self._count)
            values = np.array([CODES[split] for split in names] or [0], np.uint8)[values]
        else:
            values, self.names[name] = tables.codes(self._path, name, _CODES[name], self._count)
        values.flags.writeable = False
        return values
