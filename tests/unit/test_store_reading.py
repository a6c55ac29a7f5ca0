"""Reading windows back, from either backend, and refusing stores that cannot be trusted."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from ddscale.store import ArrayRecording, describe, open_store, write_store
from ddscale.store.identity import subject_hash
from ddscale.store.shard_files import OpenFiles, ReadError, ShardFiles

SFREQ = 64.0


def recordings(seed: int = 0) -> list[ArrayRecording]:
    rng = np.random.default_rng(seed)

    def record(start: int, channels: int, samples: int) -> tuple[int, np.ndarray]:
        return start, rng.normal(0, 20, (channels, samples))

    return [
        ArrayRecording("b", "anna", "r1", ["Cz", "Pz", "Oz"], [record(0, 3, 640), record(900, 3, 333)]),
        ArrayRecording("a", "anna", "r1", ["Cz", "Pz"], [record(640 * i, 2, 640) for i in range(5)]),
        ArrayRecording("a", "berta", "r2", ["Cz", "Pz"], [record(0, 2, 100)]),
    ]


@pytest.fixture(scope="module", params=["tar", "zarr"])
def path(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("store") / request.param
    write_store(
        folder,
        recordings(),
        sfreq=SFREQ,
        backend=request.param,
        record_s=10,
        shard_mb=0.008,
        chunk_s=1.5,
        val_subjects=["a/berta"],
    )
    return folder


def original(store, row) -> np.ndarray:
    """(T, C) of what was written as this row, in steps."""
    key = store.table(["key"])["key"][row].as_py()
    dataset, recording, index = key.split("-")
    (found,) = [r for r in recordings() if (r.dataset, r.id) == (dataset, recording)]
    return np.rint(found.records[int(index)][1].T.astype(np.float32) / 0.1).astype(np.int16)


def test_columns_say_what_was_written(path):
    store = open_store(path)
    assert len(store) == 8
    assert store.dataset_names == ["a", "b"]
    assert store.dataset.tolist() == [0] * 6 + [1] * 2
    assert store.samples.tolist() == [640] * 5 + [100, 640, 333]
    assert store.channels.tolist() == [2] * 6 + [3] * 2
    assert store.split.tolist() == [0] * 5 + [1] + [0] * 2
    assert store.start.tolist() == [0, 640, 1280, 1920, 2560, 0, 0, 900]
    assert (store.samples.dtype, store.dataset.dtype, store.split.dtype) == (np.int32, np.int16, np.uint8)
    # Records of a shard adjoin.
    assert np.count_nonzero(np.diff(store.shard)) == len(store.shard_names) - 1
    assert [channel.name for channel in store.channels_of(7)] == ["Cz", "Pz", "Oz"]


def test_any_window_comes_back_as_written(path):
    store = open_store(path)
    rng = np.random.default_rng(1)
    for row in range(len(store)):
        expected_TC = original(store, row)
        samples = len(expected_TC)
        windows = [(0, samples), (0, 1), (samples - 1, samples), *np.sort(rng.integers(0, samples, (20, 2)))]
        for start, stop in windows:
            if start < stop:
                assert np.array_equal(store.read(row, start, stop), expected_TC[start:stop])


def test_threads_share_a_store_and_a_few_open_files(path):
    store = open_store(path)
    files = store._files._files = OpenFiles(most=1)
    jobs = np.random.default_rng(2).integers(0, len(store), 400).tolist()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda row: store.read(row, 10, 90), jobs))
    for row, window_TC in zip(jobs, found, strict=True):
        assert np.array_equal(window_TC, original(store, row)[10:90])
    assert len(files) == 1
    store.close()
    assert np.array_equal(store.read(0, 0, 5), original(store, 0)[:5])  # opens again


def test_a_store_crosses_to_another_process_as_its_path(path):
    store = open_store(path)
    store.read(0, 0, 10)
    again = pickle.loads(pickle.dumps(store))
    assert again.fingerprint == store.fingerprint
    assert np.array_equal(again.read(3, 5, 50), store.read(3, 5, 50))


def test_what_does_not_fit_is_refused(path):
    store = open_store(path)
    for start, stop in ((-1, 5), (5, 5), (600, 641)):
        with pytest.raises(ValueError, match="has samples 0 to 640"):
            store.read_into(0, start, stop, np.empty((5, 2), np.int16))
    for wrong in (np.empty((5, 3), np.int16), np.empty((5, 2), np.float32), np.empty((2, 5), np.int16).T):
        with pytest.raises(ValueError, match="C-contiguous"):
            store.read_into(0, 0, 5, wrong)


def test_both_backends_have_the_same_index_but_for_the_place(tmp_path):
    tables = []
    for backend in ("tar", "zarr"):
        write_store(tmp_path / backend, recordings(), sfreq=SFREQ, backend=backend, record_s=10)
        columns = [
            "key",
            "dataset",
            "subject",
            "recording",
            "split",
            "start",
            "samples",
            "channels",
            "crc32c",
        ]
        tables.append(open_store(tmp_path / backend).table(columns).to_pylist())
    assert tables[0] == tables[1]


def test_float32_stores_keep_microvolts(tmp_path):
    for backend in ("tar", "zarr"):
        write_store(
            tmp_path / backend, recordings(), sfreq=SFREQ, backend=backend, dtype="float32", record_s=10
        )
        store = open_store(tmp_path / backend)
        assert (store.dtype, store.step) == ("float32", 1.0)
        expected_TC = recordings()[1].records[2][1].T.astype(np.float32)
        assert np.array_equal(store.read(2, 3, 77), expected_TC[3:77])


def test_a_grown_store_keeps_its_shards_and_changes_its_fingerprint(path, tmp_path):
    grown = tmp_path / "grown"
    shutil.copytree(path, grown)
    before = {shard: (grown / shard).read_bytes() for shard in open_store(grown).shard_names}
    fingerprint = open_store(grown).fingerprint
    more = ArrayRecording("a", "carla", "r3", ["Cz", "Pz"], [(0, np.ones((2, 200)) * 7)])
    write_store(
        grown,
        [more],
        sfreq=SFREQ,
        backend=open_store(path).content.backend,
        record_s=10,
        shard_mb=0.008,
        chunk_s=1.5,
    )
    store = open_store(grown)
    assert len(store) == 9
    assert store.fingerprint != fingerprint
    assert all((grown / shard).read_bytes() == content for shard, content in before.items())
    row = store.table(["recording"])["recording"].to_pylist().index("r3")
    assert store.read(row, 0, 200).tolist() == [[70, 70]] * 200
    assert set(store.shard_names) > set(before)


def test_subjects_are_found_by_name_by_hash_and_recordings_by_id(path):
    store = open_store(path)
    assert store.rows_matching([]).sum() == 0
    assert np.flatnonzero(store.rows_matching(["a/anna"])).tolist() == [0, 1, 2, 3, 4]
    assert np.flatnonzero(store.rows_matching([f"a/{subject_hash('a', 'berta')}"])).tolist() == [5]
    assert np.flatnonzero(store.rows_matching(["b/r1", "a/r2"])).tolist() == [5, 6, 7]
    assert store.rows_matching(["c/nobody"]).sum() == 0
    with pytest.raises(ValueError, match="names nobody"):
        store.rows_matching(["anna"])


def test_a_name_that_another_salt_may_hide_is_not_passed_over(tmp_path):
    write_store(tmp_path / "store", recordings(), sfreq=SFREQ, record_s=10, salt="secret")
    store = open_store(tmp_path / "store")
    with pytest.raises(ValueError, match="another salt"):
        store.rows_matching(["a/anna"])
    assert store.rows_matching(["a/anna"], salt="secret").sum() == 5


def test_no_file_of_a_store_holds_a_subjects_name(path):
    for file in path.rglob("*"):
        if file.is_file():
            assert b"berta" not in file.read_bytes(), file


def test_the_description_adds_up(path):
    found = describe(path)
    assert found["totals"]["records"] == 8
    assert found["datasets"]["a"]["hours"] == pytest.approx((5 * 640 + 100) / SFREQ / 3600, abs=1e-6)
    assert found["datasets"]["a"]["subjects_by_split"] == {"train": 1, "val": 1}
    assert found["datasets"]["b"]["hours_by_channels"].keys() == {"3"}
    json.dumps(found)


def test_a_damaged_shard_is_named_with_record_and_remedy(path, tmp_path):
    damaged = tmp_path / "damaged"
    shutil.copytree(path, damaged)
    shard = damaged / open_store(damaged).shard_names[0]
    shard.write_bytes(shard.read_bytes()[:600])
    with pytest.raises(OSError, match=r"a-r1-000000.*ddscale verify"):
        open_store(damaged).read(0, 0, 640)
    shard.unlink()
    with pytest.raises(OSError, match=f"{shard.name}: it is not there"):
        open_store(damaged).read(0, 0, 640)


def test_a_flipped_bit_in_a_zarr_chunk_does_not_pass(tmp_path):
    write_store(tmp_path / "store", recordings(), sfreq=SFREQ, backend="zarr", record_s=10)
    shard = tmp_path / "store" / open_store(tmp_path / "store").shard_names[0]
    content = bytearray(shard.read_bytes())
    content[50] ^= 1
    shard.write_bytes(content)
    with pytest.raises(OSError, match="checksum of chunk 0"):
        open_store(tmp_path / "store").read(0, 0, 10)


def test_a_half_published_store_is_refused(path, tmp_path):
    half = tmp_path / "half"
    shutil.copytree(path, half)
    with (half / "records.parquet").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ValueError, match="not the index"):
        open_store(half)
    (half / ".staging").mkdir()
    with pytest.raises(ValueError, match=r"half-published.*ddscale ingest"):
        open_store(half)
    (half / "records.parquet").unlink()
    with pytest.raises(FileNotFoundError, match="lost its index"):
        open_store(half)
    (half / "manifest.json").unlink()
    with pytest.raises(FileNotFoundError, match="has not finished"):
        open_store(half)


def test_what_is_no_store_is_said_to_be_none(path, tmp_path):
    with pytest.raises(FileNotFoundError, match="No store at .*nowhere"):
        open_store(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="not a local folder"):
        write_store("s3://bucket/store", recordings(), sfreq=SFREQ)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        open_store(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match="not the manifest of a ddscale store"):
        open_store(tmp_path)
    tree = json.loads((path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(tree | {"version": 99}))
    with pytest.raises(ValueError, match="store format 99"):
        open_store(tmp_path)


def test_a_descriptor_in_use_outlives_its_dismissal(tmp_path):
    for name in "ab":
        (tmp_path / name).write_bytes(name.encode() * 10)
    files = ShardFiles(lambda code: os.open(tmp_path / "ab"[code], os.O_RDONLY), shared_with=OpenFiles(1))
    with files.opened(0) as (descriptor, _):
        with files.opened(1):
            pass
        assert os.pread(descriptor, 2, 0) == b"aa"
    with pytest.raises(OSError):
        os.pread(descriptor, 2, 0)


def test_one_name_is_looked_up_without_reading_them_all(path, monkeypatch):
    store = open_store(path)
    expected = store.table(["key"])["key"].to_pylist()
    monkeypatch.setattr(store, "table", None)
    assert [store.key(row) for row in range(len(store))] == expected


def test_a_record_is_told_by_its_row_while_the_index_cannot_be_read(path, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(path, broken)
    store = open_store(broken)
    store.read(0, 0, 5)
    (broken / "records.parquet").unlink()
    assert store.key(3) == "row 3"


def failing_reads(monkeypatch, path, fails):
    """Reads of shards of the store raise EIO while `fails(descriptor)`; everything else is read as it is."""

    def guarded(read):
        def guard(descriptor, *rest):
            try:
                ours = os.readlink(f"/proc/self/fd/{descriptor}").startswith(f"{path}/")
            except OSError:
                ours = False
            if ours and fails(descriptor):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return read(descriptor, *rest)

        return guard

    for name in ("pread", "preadv"):
        monkeypatch.setattr(os, name, guarded(getattr(os, name)))


def test_a_handle_that_went_stale_is_opened_anew(path, monkeypatch):
    store = open_store(path)
    files = store._files._files = OpenFiles()
    for row in range(len(store)):
        store.read(row, 0, 5)
    stale = {file.descriptor for file in files._open.values()}
    assert len(stale) == len(store.shard_names)
    # A closed number is given to the next file that is opened: it must not look stale, too.
    closed = os.close
    monkeypatch.setattr(os, "close", lambda descriptor: descriptor in stale or closed(descriptor))
    failing_reads(monkeypatch, path, stale.__contains__)
    for row in range(len(store)):
        assert np.array_equal(store.read(row, 0, 5), original(store, row)[:5])
    for descriptor in stale:
        closed(descriptor)


def test_reading_outlasts_a_failing_storage(path, monkeypatch):
    waits, tries = [], []
    monkeypatch.setattr(time, "sleep", waits.append)
    failing_reads(monkeypatch, path, lambda descriptor: tries.append(descriptor) or len(tries) <= 5)
    store = open_store(path)
    assert np.array_equal(store.read(0, 0, 5), original(store, 0)[:5])
    assert waits == [1.0, 2.0]
    tries[:] = []
    failing_reads(monkeypatch, path, lambda _: True)
    with pytest.raises(ReadError, match="Input/output error") as caught:
        store.read(0, 0, 5)
    assert caught.value.transient
    assert sum(waits[2:]) == 60


def test_damage_is_not_waited_for(path, tmp_path, monkeypatch):
    monkeypatch.setattr(time, "sleep", None)
    damaged = tmp_path / "damaged"
    shutil.copytree(path, damaged)
    shard = damaged / open_store(damaged).shard_names[0]
    shard.write_bytes(shard.read_bytes()[:600])
    with pytest.raises(ReadError) as caught:
        open_store(damaged).read(0, 0, 640)
    assert not caught.value.transient
    shard.unlink()
    with pytest.raises(ReadError) as caught:
        open_store(damaged).read(0, 0, 640)
    assert not caught.value.transient
    shutil.rmtree(damaged)  # as when the mount is gone: it may come back
    gone = open_store(path)
    gone.read(0, 0, 640)
    gone.close()
    gone.path = damaged
    with pytest.raises(ReadError) as caught:
        gone.read_into(0, 0, 640, np.empty((640, 2), np.int16))
    assert caught.value.transient


def test_stores_share_the_descriptors_that_a_process_may_have(tmp_path):
    for name in "ab":
        (tmp_path / name).write_bytes(name.encode() * 10)

    def open_one(code):
        return os.open(tmp_path / "ab"[code], os.O_RDONLY)

    shared = OpenFiles(most=3)
    one, other = (ShardFiles(open_one, shared_with=shared) for _ in range(2))
    for files, code in ((one, 0), (one, 1), (other, 0), (other, 1), (one, 0)):
        with files.opened(code) as (descriptor, _):
            assert os.pread(descriptor, 2, 0) == (b"aa", b"bb")[code]
        assert len(shared) <= 3
    del other
    assert len(shared) == 1, "a store that is dropped leaves no file open"
    one.close()
    assert len(shared) == 0


def test_a_process_without_descriptors_left_closes_shards_it_may_need_again(tmp_path):
    for code in range(4):
        (tmp_path / str(code)).write_bytes(b"x")
    left = []

    def open_one(code):
        if len(shared) > 2:
            left.append(len(shared))
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return os.open(tmp_path / str(code), os.O_RDONLY)

    shared = OpenFiles(most=100)
    files = ShardFiles(open_one, shared_with=shared)
    for code in range(4):
        with files.opened(code) as (descriptor, _):
            assert os.pread(descriptor, 1, 0) == b"x"
    assert left == [3]
    files.close()


@pytest.mark.parametrize(("soft", "hard", "shards"), [(1024, 524288, 8192), (1024, 1024, 512), (64, 64, 16)])
def test_the_limit_of_descriptors_is_raised_as_far_as_allowed(soft, hard, shards):
    code = (
        f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, min({hard}, "
        "resource.getrlimit(resource.RLIMIT_NOFILE)[1])));"
        "from ddscale.store.shard_files import _most_open; print(_most_open())"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(said.stdout) == shards


def test_reads_that_come_short_are_continued(path, monkeypatch):
    """Network file systems may give fewer bytes than were asked for."""
    expected = [original(open_store(path), row) for row in range(8)]
    pread, preadv, short = os.pread, os.preadv, []

    def some(descriptor, length, offset):
        short.append(length)
        return pread(descriptor, min(length, 37), offset)

    def some_into(descriptor, buffers, offset):
        short.append(1)
        return preadv(descriptor, [memoryview(buffers[0]).cast("B")[:37]], offset)

    monkeypatch.setattr(os, "pread", some)
    monkeypatch.setattr(os, "preadv", some_into)
    store = open_store(path)
    for row, expected_TC in enumerate(expected):
        assert np.array_equal(store.read(row, 0, len(expected_TC)), expected_TC)
    assert len(short) > 100
