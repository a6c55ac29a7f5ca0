"""Windows that cannot be read: named, counted, survived up to a limit; anything else stops the run and says where."""

from __future__ import annotations

import itertools
import threading
import types
from pathlib import Path

import numpy as np
import pytest

from ddscale.store import ArrayRecording, open_store, write_store
from ddscale.store.shard_files import ReadError
from ddscale.stream import window_reads
from ddscale.stream.device import materialise
from ddscale.stream.loader import Loader
from ddscale.stream.settings import StreamSettings
from ddscale.stream.unreadable import Fault, Unreadable
from ddscale.training.faults import UnreadableRecords

T, G = 64, 16


@pytest.fixture(params=["tar", "zarr"])
def store(request, tmp_path) -> Path:
    """Six recordings of ten windows, each in a shard of its own."""
    rng = np.random.default_rng(0)
    recordings = [
        ArrayRecording(
            "aa",
            f"s{i}",
            f"r{i}",
            [f"C{c}" for c in range(6)],
            [(0, rng.integers(-20_000, 20_000, (6, 10 * T)) * 0.1)],
        )
        for i in range(6)
    ]
    path = tmp_path / "store"
    write_store(path, recordings, sfreq=64.0, backend=request.param, record_s=10, shard_mb=0.008, chunk_s=1.0)
    assert len(open_store(path).shard_names) == 6
    return path


def settings(path, **given) -> StreamSettings:
    return StreamSettings(**{"stores": [str(path)], "window_samples": T, **given})


def damage(path: Path, shard: int, how: str) -> None:
    file = path / open_store(path).shard_names[shard]
    if how == "missing":
        file.unlink()
    elif how == "empty":
        file.write_bytes(b"")
    else:
        file.write_bytes(file.read_bytes()[:1500])


def read(loader, steps):
    for _ in range(steps):
        next(loader)


def readers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("ddscale-reader")]


@pytest.mark.parametrize("how", ["missing", "empty", "truncated"])
@pytest.mark.parametrize("threads", [0, 2])
def test_a_damaged_shard_becomes_invalid_zeros(store, how, threads):
    with Loader(settings(store, reader_threads=0), global_batch_size=G, micro_batch_size=4) as loader:
        whole = [
            batch.window(i).clone()
            for step in itertools.islice(loader, 8)
            for batch in step
            for i in range(4)
        ]
    damage(store, 2, how)
    seen, unread = 0, set()
    with Loader(settings(store, reader_threads=threads), global_batch_size=G, micro_batch_size=4) as loader:
        for step in itertools.islice(loader, 8):
            for batch in step:
                x_BTC = materialise(batch, "cpu", loader.step_uv, 6, loader.settings.normalisation)
                for i, valid in enumerate(batch.valid.tolist()):
                    if valid:
                        assert (batch.window(i) == whole[seen]).all()
                    else:
                        assert not batch.window(i).any()
                        assert not x_BTC[i].any()
                        unread.add(int(batch.positions[i]))
                    seen += 1
        assert loader.unreadable_windows == len(unread) > 10, "more than one epoch of the record's windows"
        (fault,) = loader.faults
    assert fault.position in unread
    assert fault.position == min(unread)
    assert (fault.dataset, fault.record) == ("aa", "aa-r2-000000")
    assert "aa-r2-000000" in fault.cause
    assert "ddscale verify" in fault.cause


@pytest.mark.parametrize("threads", [0, 2])
def test_too_many_damaged_records_stop_the_run(store, threads):
    for shard in range(4):
        damage(store, shard, "missing")
    loader = Loader(
        settings(store, reader_threads=threads, max_unreadable=2), global_batch_size=G, micro_batch_size=4
    )
    with pytest.raises(
        OSError, match=r"max_unreadable is 2. The first: aa-r\d-000000: Cannot read.*ddscale verify"
    ):
        read(loader, 10)
    assert len(loader.faults) >= 3
    assert not readers()


def test_no_damage_is_tolerated_when_none_is_allowed(store):
    damage(store, 0, "missing")
    with Loader(settings(store, max_unreadable=0), global_batch_size=60, micro_batch_size=60) as loader:
        (batch,) = next(loader)
        assert batch.valid.sum() == 50, (
            "the step that crosses the limit is handed out, so that ranks can agree"
        )
        assert loader.beyond_limit
        with pytest.raises(OSError, match="max_unreadable is 0"):
            next(loader)


@pytest.mark.parametrize("threads", [0, 3])
def test_any_other_failure_names_the_record_and_leaves_no_thread(store, threads):
    opened = open_store(store)
    readable = opened.read_into

    def fail_once(row, start, stop, out_TC):
        if row == 3:
            raise ZeroDivisionError("a bug")
        readable(row, start, stop, out_TC)

    opened.read_into = fail_once
    loader = Loader(
        settings(store, reader_threads=threads), global_batch_size=G, micro_batch_size=4, stores=[opened]
    )
    with pytest.raises(ZeroDivisionError, match="a bug") as caught:
        read(loader, 10)
    assert any("aa-r3-000000" in note for note in caught.value.__notes__)
    assert not readers()
    opened.read_into = readable
    assert len(next(loader)) == 4, "the loader goes on where it stopped"
    loader.close()


def test_validation_windows_that_cannot_be_read(store):
    damage(store, 1, "missing")
    with Loader.fixed(settings(store), "train", windows=60, micro_batch_size=8) as loader:
        valid = [bool(v) for (batch,) in loader for v in batch.valid]
    assert len(valid) == 64
    assert sum(valid) == 50


class Storage:
    """A store whose reads fail as storage does: `fails(row)` says which."""

    def __init__(self, store, monkeypatch, fails):
        self.opened = open_store(store)
        self.waits = []
        readable = self.opened.read_into

        def read_into(row, start, stop, out_TC):
            if fails(row):
                raise ReadError(f"Cannot read record {row}: Input/output error.", transient=True)
            readable(row, start, stop, out_TC)

        self.opened.read_into = read_into
        monkeypatch.setattr(window_reads, "threading", types.SimpleNamespace(Event=self._event))

    def _event(self):
        self._set = False
        return self

    def wait(self, delay):
        if not self._set:
            self.waits.append(delay)
        return self._set

    def set(self):
        self._set = True

    def is_set(self):
        return self._set

    def loader(self, path, **given):
        given = settings(path, reader_threads=0, **given)
        return Loader(given, global_batch_size=G, micro_batch_size=4, stores=[self.opened])


def test_an_outage_shorter_than_the_patience_loses_nothing(store, monkeypatch):
    tries = []
    storage = Storage(store, monkeypatch, lambda row: tries.append(row) or 10 < len(tries) < 15)
    with Loader(settings(store, reader_threads=0), global_batch_size=G, micro_batch_size=4) as loader:
        whole = [batch.flat.clone() for step in itertools.islice(loader, 4) for batch in step]
    with storage.loader(store) as loader:
        read = [batch.flat.clone() for step in itertools.islice(loader, 4) for batch in step]
    assert all((one == other).all() for one, other in zip(whole, read, strict=True))
    assert not loader.faults
    assert storage.waits == [1.0, 2.0]


def test_a_shard_that_stays_unreadable_is_waited_for_once(store, monkeypatch):
    failing = {2}
    storage = Storage(store, monkeypatch, failing.__contains__)
    with storage.loader(store, retry_s=60.0) as loader:
        read(loader, 4)
        assert sum(storage.waits) == 60
        assert loader.unreadable_windows > 1
        failing.clear()
        lost = loader.unreadable_windows
        read(loader, 8)  # it is read again...
        assert loader.unreadable_windows == lost
        failing.add(2)
        read(loader, 8)  # ...and so waited for again
    assert sum(storage.waits) == 120


def test_a_disk_that_is_gone_costs_a_micro_batch_one_wait_and_stops_the_run(store, monkeypatch):
    storage = Storage(store, monkeypatch, lambda row: True)
    told = UnreadableRecords()
    with storage.loader(store, retry_s=30.0, max_unreadable_fraction=0.015) as loader:
        read(loader, 1)
        # Four micro-batches of four: 16 windows of at most six records, far from max_unreadable.
        assert sum(storage.waits) <= 4 * 30
        *faults, limit = told.new(loader, None)
        assert {fault["record"] for fault in faults} == {fault.record for fault in loader.faults}
        assert (
            "16 of its last 16 windows, and data.max_unreadable_fraction allows 0.015 of 1000"
            in limit["limit"]
        )
        assert told.new(loader, None) == []
        assert told.windows(loader, None) == 16
        with pytest.raises(OSError, match="max_unreadable_fraction"):
            read(loader, 1)


def test_reads_that_take_long_to_fail_use_up_the_patience(store, monkeypatch):
    clock = itertools.count(0, 25)
    monkeypatch.setattr(window_reads, "time", types.SimpleNamespace(monotonic=lambda: next(clock)))
    storage = Storage(store, monkeypatch, lambda row: True)
    with storage.loader(store, retry_s=60.0, max_unreadable_fraction=1) as loader:
        read(loader, 1)
    first = storage.waits[:3]
    assert first == [1.0, 2.0, 4.0]
    assert sum(storage.waits) < 60


def test_the_fraction_is_of_recent_windows(store, monkeypatch):
    failing = set()
    storage = Storage(store, monkeypatch, failing.__contains__)
    with storage.loader(store, retry_s=0, max_unreadable_fraction=0.02) as loader:
        failing.add(1)
        read(loader, 6)  # about 16 of 96
        assert 10 < loader.unreadable_windows <= 20
        failing.clear()
        read(loader, 1000 // G + 1)
        failing.add(1)
        read(loader, 6)
        assert loader.unreadable_windows > 20
        assert loader.beyond_limit is None


def test_the_last_thousand_windows_are_looked_at_and_no_older_ones():
    met = Unreadable(StreamSettings(stores=["s"], window_samples=T, max_unreadable_fraction=0.05), rank=0)
    lost = [Fault(position, "aa", "aa-r0-000000", "gone") for position in range(50)]
    met.note(50, lost)
    met.note(900, [])
    assert met.beyond_limit is None
    met.note(50, lost[:1])
    assert "51 of its last 1000 windows" in met.beyond_limit
    met = Unreadable(StreamSettings(stores=["s"], window_samples=T, max_unreadable_fraction=0.05), rank=0)
    met.note(50, lost)
    met.note(1000, [])
    met.note(50, lost[:1])
    assert met.beyond_limit is None


def test_closing_does_not_wait_for_the_storage(store):
    opened = open_store(store)
    readable, failed = opened.read_into, threading.Event()
    loader = Loader(
        settings(store, reader_threads=2, retry_s=1e6),
        global_batch_size=G,
        micro_batch_size=4,
        stores=[opened],
    )
    next(loader)

    def fail(*_):
        failed.set()
        raise ReadError("gone", transient=True)

    opened.read_into = fail
    loader._ahead.release()
    assert failed.wait(60)
    closing = threading.Thread(target=loader.close, daemon=True)
    closing.start()
    closing.join(60)
    assert not closing.is_alive()
    assert not readers()
    opened.read_into = readable
    next(loader)
    loader.close()


@pytest.mark.parametrize("to_the_end", [False, True])
def test_fixed_windows_beyond_the_limit_end_there_unless_asked_to_go_to_the_end(store, to_the_end):
    damage(store, 0, "missing")
    given = settings(store, max_unreadable=0)
    with Loader.fixed(given, "train", windows=60, micro_batch_size=6, to_the_end=to_the_end) as loader:
        if to_the_end:
            assert len(list(loader)) == 10
            assert UnreadableRecords().new(loader)[-1] == {"limit": loader.beyond_limit}
        else:
            with pytest.raises(OSError, match="max_unreadable is 0"):
                list(loader)


def test_beyond_the_limit_no_storage_is_waited_for(store, monkeypatch):
    storage = Storage(store, monkeypatch, lambda row: True)
    given = settings(store, reader_threads=0, retry_s=60.0, max_unreadable=1)
    with Loader.fixed(
        given, "train", windows=60, micro_batch_size=2, stores=[storage.opened], to_the_end=True
    ) as loader:
        # Peers that validate together would wait for each of 30 micro-batches, and again the next time.
        for _ in range(2):
            assert len(list(loader)) == 30
            assert not any(valid for (batch,) in loader for valid in batch.valid)
    assert sum(storage.waits) == 60
