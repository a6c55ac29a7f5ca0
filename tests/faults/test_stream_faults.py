"""Windows that cannot be read: named, counted, survived up to a limit; anything else stops the run and says where."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path

import numpy as np
import pytest

from ddscale.store import ArrayRecording, open_store, write_store
from ddscale.stream.device import materialise
from ddscale.stream.loader import Loader
from ddscale.stream.settings import StreamSettings

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
    with (
        Loader(settings(store, max_unreadable=0), global_batch_size=60, micro_batch_size=60) as loader,
        pytest.raises(OSError, match="max_unreadable is 0"),
    ):
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
