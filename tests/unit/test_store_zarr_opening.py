"""What opening one shard of a Zarr store costs does not grow with the store."""

from __future__ import annotations

import numpy as np

from ddscale.store import ArrayRecording, open_store, write_store


class Counted(np.ndarray):
    """An array that counts how often NumPy goes over it."""

    passes = 0

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        Counted.passes += 1
        plain = [np.asarray(value) if isinstance(value, Counted) else value for value in inputs]
        return getattr(ufunc, method)(*plain, **kwargs)


def test_the_index_is_not_searched_for_every_shard_that_is_opened(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    recordings = [
        ArrayRecording(
            "a",
            "anna",
            f"r{number}",
            ["Cz", "Pz", "Oz"][: 2 + number % 2],
            [(640 * i, rng.normal(0, 20, (2 + number % 2, 640))) for i in range(4)],
        )
        for number in range(6)
    ]
    write_store(tmp_path / "store", recordings, sfreq=64, backend="zarr", record_s=10, shard_mb=0.008)
    store = open_store(tmp_path / "store")
    shard = store.shard
    monkeypatch.setitem(store._index._columns, "shard", shard.view(Counted))
    monkeypatch.setattr(Counted, "passes", 0)
    for row in range(len(store)):
        store.read(row, 0, 640)
    assert len(store.shard_names) > 6
    assert Counted.passes <= 1
    first = [int(np.argmax(shard == code)) for code in range(len(store.shard_names))]
    assert store._first_of_shard.tolist() == first
