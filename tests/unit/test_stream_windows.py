"""Counting and finding windows, on stores that are only columns."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from ddscale.store.identity import SPLITS
from ddscale.stream.settings import StreamSettings
from ddscale.stream.windows import WindowIndex


class Columns:
    """A store without a signal. rows: (dataset, subject, split, samples, channels), a shard each."""

    sfreq, step, dtype, unit = 256.0, 0.1, "int16", "uV"

    def __init__(self, rows, name="a", **changed):
        self.address = f"stores/{name}"
        self.fingerprint = f"fingerprint-of-{name}"
        self.rows = rows
        self.dataset_names = sorted({row[0] for row in rows})
        self.dataset = np.array([self.dataset_names.index(row[0]) for row in rows], np.int16)
        self.split = np.array([SPLITS.index(row[2]) for row in rows], np.uint8)
        self.samples = np.array([row[3] for row in rows], np.int32)
        self.channels = np.array([row[4] for row in rows], np.int32)
        self.shard = np.arange(len(rows)) // 2
        for key, value in changed.items():
            setattr(self, key, value)

    def key(self, row):
        return f"{self.rows[row][0]}-r{row}-000000"

    def rows_matching(self, names):
        return np.array(
            [
                any(name in (f"{row[0]}/{row[1]}", f"{row[0]}/r{i}") for name in names)
                for i, row in enumerate(self.rows)
            ]
        )


def settings(**given) -> StreamSettings:
    return StreamSettings(**{"stores": ["a"], "window_samples": 100, **given})


ROWS = [
    ("sleep", "s1", "train", 1000, 8),
    ("sleep", "s1", "train", 99, 8),
    ("sleep", "s2", "val", 500, 8),
    ("sleep", "s3", "train", 100, 4),
    ("rest", "s1", "train", 250, 20),
]


def test_windows_are_counted_and_found():
    index = WindowIndex([Columns(ROWS)], "train", settings())
    assert index.datasets == ["rest", "sleep"]
    assert len(index) == 2 + 10 + 1
    assert index.records == 3
    assert index.max_channels == 20
    found = index.locate(np.arange(len(index)))
    assert found.row.tolist() == [4] * 2 + [0] * 10 + [3]
    assert found.start.tolist() == [0, 100, *range(0, 1000, 100), 0]
    assert found.dataset.tolist() == [0] * 2 + [1] * 11
    assert found.channels.tolist() == [20] * 2 + [8] * 10 + [4]
    assert list(index.windows_of(0)) == [0, 1]
    assert index.windows_of(1) == range(2, 13)


@pytest.mark.parametrize(
    ("overlap", "hop", "count"), [(0.0, 100, 10), (0.5, 50, 19), (0.75, 25, 37), (0.999, 1, 901)]
)
def test_overlap(overlap, hop, count):
    index = WindowIndex([Columns(ROWS[:1])], "train", settings(overlap=overlap))
    assert len(index) == count
    starts = index.locate(np.arange(count)).start
    assert (np.diff(starts) == hop).all()
    assert starts[-1] + 100 <= 1000 < starts[-1] + 100 + hop


def test_several_stores_are_one():
    other = Columns([("rest", "s9", "train", 300, 2), ("zoo", "s1", "train", 100, 3)], "b")
    index = WindowIndex([Columns(ROWS), other], "train", settings())
    found = index.locate(np.arange(len(index)))
    assert index.datasets == ["rest", "sleep", "zoo"]
    assert list(zip(found.store.tolist(), found.row.tolist(), strict=True)) == (
        [(0, 4)] * 2 + [(1, 0)] * 3 + [(0, 0)] * 10 + [(0, 3)] + [(1, 1)]
    )
    assert found.channels.tolist() == [20] * 2 + [2] * 3 + [8] * 10 + [4] + [3]


def test_any_subset_in_any_order_is_found_alike():
    rng = np.random.default_rng(0)
    rows = [
        (f"d{rng.integers(5)}", "s", "train", int(rng.integers(1, 700)), int(rng.integers(1, 64)))
        for _ in range(500)
    ]
    index = WindowIndex([Columns(rows[:300]), Columns(rows[300:], "b")], "train", settings(overlap=0.3))
    listed = []
    for dataset in index.datasets:
        for store, part in enumerate((rows[:300], rows[300:])):
            for row, (name, _, _, samples, channels) in enumerate(part):
                if name == dataset:
                    listed += [(store, row, start, channels) for start in range(0, samples - 99, 70)]
    asked = rng.permutation(len(index))
    found = index.locate(asked)
    assert len(listed) == len(index)
    assert list(zip(found.store, found.row, found.start, found.channels, strict=True)) == [
        listed[i] for i in asked
    ]


def test_shard_edges():
    index = WindowIndex([Columns(ROWS), Columns(ROWS[:2], "b")], "train", settings())
    # rest: a/2; sleep: a/0, a/1, and the other store's shard of the same name
    assert index.shard_edges().tolist() == [0, 2, 12, 13, 23]


def test_blocklist():
    def left(*blocklist):
        index = WindowIndex([Columns(ROWS)], "train", settings(blocklist=list(blocklist)))
        return len(index), index.unmatched_blocklist

    assert left("sleep/r0") == (3, [])
    assert left("sleep/s1") == (3, [])
    assert left("rest/s1", "sleep/s3") == (10, [])
    assert left("sleep/s2") == (13, [])  # in another split: known, and nothing of it is here
    assert left("sleep/r4", "elsewhere/s1") == (13, ["elsewhere/s1", "sleep/r4"])


@pytest.mark.parametrize(
    ("stores", "split", "given", "said"),
    [
        (
            [Columns(ROWS)],
            "train",
            {"sfreq": 200.0},
            r"a was built at 256 Hz.*asks for 200 Hz.*data.sfreq: 256",
        ),
        ([Columns(ROWS), Columns(ROWS, "b", sfreq=200.0)], "train", {}, r"sfreq 256.0 Hz and 200.0 Hz"),
        ([Columns(ROWS), Columns(ROWS, "b", step=0.2)], "train", {}, r"step 0.1 µV and 0.2 µV"),
        ([Columns(ROWS), Columns(ROWS, "b", dtype="float32")], "train", {}, r"dtype int16 and float32"),
        ([Columns(ROWS), Columns(ROWS)], "train", {}, r"are the same store"),
        ([Columns(ROWS)], "test", {}, r"'test'.*has no record.*train 4, val 1, test 0"),
        ([Columns(ROWS)], "train", {"window_samples": 1001}, r"sleep-r0-000000, has 1000 .*at most 1000"),
        ([Columns(ROWS)], "val", {"blocklist": ["sleep/r2"]}, r"blocklist leaves no record"),
        ([Columns(ROWS)], "validation", {}, r"No split 'validation'"),
        ([], "train", {}, r"at least one"),
    ],
)
def test_what_does_not_fit_is_said(stores, split, given, said):
    with pytest.raises(ValueError, match=said):
        WindowIndex(stores, split, settings(**given))


def test_millions_of_records_stay_compact():
    records = 2_000_000
    store = Columns(ROWS)
    store.samples = np.full(records, 350, np.int32)
    store.channels = np.full(records, 19, np.int32)
    store.dataset = np.zeros(records, np.int16)
    store.split = np.zeros(records, np.uint8)
    tracemalloc.start()
    index = WindowIndex([store], "train", settings())
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(index) == 3 * records
    assert kept < 13 * records
    assert peak < 60 * records
    found = index.locate(np.array([0, 3 * records - 1]))
    assert (found.row.tolist(), found.start.tolist()) == ([0, records - 1], [0, 200])
