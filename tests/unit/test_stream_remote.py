"""Stores behind a URL: the same windows in the same order, through a cache that processes of a node share."""

from __future__ import annotations

import functools
import http.server
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import fsspec
import numpy as np
import pytest

from ddscale.store import ArrayRecording, describe, open_store, verify, write_store
from ddscale.store.remote import RemoteFolder
from ddscale.store.shard_cache import ShardCache, default_folder
from ddscale.store.shard_files import ReadError
from ddscale.stream.loader import Loader
from ddscale.stream.settings import StreamSettings

T, G = 64, 24


@pytest.fixture(scope="module", params=["tar", "zarr"])
def local(request, tmp_path_factory) -> Path:
    """Eight recordings of ten windows, each in a shard of its own."""
    rng = np.random.default_rng(0)
    names = [f"C{c}" for c in range(6)]
    recordings = [
        ArrayRecording("aa", f"s{i}", f"r{i}", names, [(0, rng.integers(-20_000, 20_000, (6, 10 * T)) * 0.1)])
        for i in range(8)
    ]
    path = tmp_path_factory.mktemp("remote") / request.param
    write_store(path, recordings, sfreq=64.0, backend=request.param, record_s=10, shard_mb=0.008, chunk_s=1.0)
    return path


@pytest.fixture
def cache(tmp_path) -> ShardCache:
    return ShardCache(tmp_path / "cache", 1.0)


def settings(address, folder, **given) -> StreamSettings:
    cache = {"folder": str(folder), "max_gb": given.pop("max_gb", 1.0)}
    return StreamSettings(**{"stores": [str(address)], "window_samples": T, "cache": cache, **given})


def windows(given, steps=8):
    with Loader(given, global_batch_size=G, micro_batch_size=8) as loader:
        assert not loader.faults
        return [
            (int(batch.positions[i]), batch.window(i).numpy().tobytes(), bool(batch.valid[i]))
            for step, _ in zip(loader, range(steps), strict=False)
            for batch in step
            for i in range(8)
        ]


def in_memory(local) -> str:
    fs = fsspec.filesystem("memory")
    fs.put(str(local), "/bucket/store", recursive=True)
    return "memory://bucket/store"


@pytest.fixture
def over_http(local):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(local.parent))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/{local.name}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("shuffle", ["global", "block"])
@pytest.mark.parametrize("protocol", ["file", "memory"])
def test_the_same_windows_in_the_same_order_as_from_the_folder(local, tmp_path, protocol, shuffle):
    url = f"file://{local}" if protocol == "file" else in_memory(local)
    expected = windows(settings(local, tmp_path / "unused", shuffle=shuffle, block_shards=2))
    assert windows(settings(url, tmp_path / "cache", shuffle=shuffle, block_shards=2)) == expected
    assert not (tmp_path / "unused").exists()


def test_over_http(local, over_http, tmp_path):
    assert windows(settings(over_http, tmp_path / "cache")) == windows(settings(local, tmp_path))


def test_a_run_goes_on_from_the_other_place(local, tmp_path):
    here, there = settings(local, tmp_path), settings(f"file://{local}", tmp_path / "cache")
    with Loader(here, global_batch_size=G, micro_batch_size=8) as loader:
        next(loader)
        state = loader.state()
        expected = [batch.flat.clone() for batch in next(loader)]
    with Loader(there, global_batch_size=G, micro_batch_size=8) as loader:
        loader.restore(state)
        assert all((a == b.flat).all() for a, b in zip(expected, next(loader), strict=True))
        assert loader.state()["stores"] == [
            {"path": f"file://{local}", "fingerprint": open_store(local).fingerprint}
        ]


def test_an_open_store_crosses_to_another_process(local, cache):
    store = open_store(f"file://{local}", cache)
    again = pickle.loads(pickle.dumps(store))
    assert again.address == f"file://{local}"
    assert again.origin.cache == cache
    assert np.array_equal(again.read(3, 5, 50), open_store(local).read(3, 5, 50))


# -- the cache ---------------------------------------------------------------------------------------------------


def shards_in(cache) -> set[str]:
    return {
        str(path.relative_to(cache.folder).as_posix()).split("/", 1)[1]
        for path in cache.folder.rglob("*")
        if path.is_file()
        and ".locks" not in path.parts
        and path.name not in ("manifest.json", "records.parquet")
    }


def read_everything(url, cache, fetched):
    fetch = RemoteFolder.fetch

    def counted(self, name, target):
        time.sleep(0.02)  # long enough for the others to want the same
        fetch(self, name, target)
        with open(fetched, "a") as file:
            file.write(f"{name}\n")

    RemoteFolder.fetch = counted
    store = open_store(url, cache)
    for row in range(len(store)):
        store.read(row, 0, 100)


def test_processes_that_share_a_cache_fetch_each_file_once(local, cache, tmp_path):
    given = (f"file://{local}", cache, tmp_path / "fetched")
    start = multiprocessing.get_context("spawn")
    both = [start.Process(target=read_everything, args=given) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
        assert process.exitcode == 0
    fetched = (tmp_path / "fetched").read_text().split()
    shards = open_store(local).shard_names
    assert sorted(name for name in fetched if name != "manifest.json") == sorted(["records.parquet", *shards])
    assert shards_in(cache) == set(shards)


def test_threads_wait_for_each_other(local, cache, monkeypatch):
    fetched, fetch = [], RemoteFolder.fetch

    def slow(self, name, target):
        fetched.append(name)
        time.sleep(0.1)
        fetch(self, name, target)

    store = open_store(f"file://{local}", cache)
    monkeypatch.setattr(RemoteFolder, "fetch", slow)
    threads = [threading.Thread(target=store.read, args=(0, 0, 10)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert fetched == [store.shard_names[store.shard[0]]]


def test_what_was_not_used_for_longest_makes_room(local, tmp_path):
    store = open_store(local)
    sizes = {name: (local / name).stat().st_size for name in store.shard_names}
    index = sum((local / name).stat().st_size for name in ("manifest.json", "records.parquet"))
    room = index + 3 * max(sizes.values()) + 10
    cache = ShardCache(tmp_path / "cache", room / 1e9)
    remote = open_store(f"file://{local}", cache)
    for row in range(8):
        if row:
            time.sleep(0.01)
            remote.close()
            remote.read(0, 0, 5)  # in use all the while
        time.sleep(0.01)
        assert np.array_equal(remote.read(row, 0, 100), store.read(row, 0, 100))
        there = sum(
            p.stat().st_size for p in cache.folder.rglob("*") if p.is_file() and ".locks" not in p.parts
        )
        assert there <= room
    names = [store.shard_names[code] for code in store.shard]
    assert shards_in(cache) == {names[0], names[6], names[7]}


def test_a_cache_smaller_than_a_shard_says_so(local, tmp_path):
    index = sum((local / name).stat().st_size for name in ("manifest.json", "records.parquet"))
    store = open_store(f"file://{local}", ShardCache(tmp_path / "cache", (index + 100) / 1e9))
    with pytest.raises(OSError, match=r"no room for file://.*data\.cache\.max_gb: .*Raise it"):
        store.read(0, 0, 5)


KILLED = """
import os, signal, sys
from pathlib import Path
from ddscale.store import open_store
from ddscale.store.remote import RemoteFolder
from ddscale.store.shard_cache import ShardCache
store = open_store(sys.argv[1], ShardCache(Path(sys.argv[2]), 1.0))
def half(self, name, target):
    target.write_bytes(b"half of it")
    os.kill(os.getpid(), signal.SIGKILL)
RemoteFolder.fetch = half
store.read(int(sys.argv[3]), 0, 5)
"""


@pytest.mark.parametrize("next_row", [0, 1])
def test_a_killed_download_leaves_nothing_that_is_taken_for_a_shard(local, cache, next_row):
    url = f"file://{local}"
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(KILLED), url, str(cache.folder), "0"])
    assert done.returncode == -signal.SIGKILL
    (partial,) = cache.folder.rglob(".*.tmp")
    store, original = open_store(url, cache), open_store(local)
    assert np.array_equal(store.read(next_row, 0, 100), original.read(next_row, 0, 100))
    assert not partial.exists(), "whoever fetches next, be it another shard, takes it away"


def test_a_shard_that_comes_through_damaged_is_fetched_again(local, cache, monkeypatch, caplog):
    store, original = open_store(f"file://{local}", cache), open_store(local)
    fetched, fetch = [], RemoteFolder.fetch

    def spoilt(self, name, target, times=1):
        fetch(self, name, target)
        if name != store.shard_names[0]:
            return
        fetched.append(name)
        if len(fetched) <= times:
            content = bytearray(target.read_bytes())
            content[int(store._column("offset")[0]) + 40] ^= 1
            target.write_bytes(content)

    monkeypatch.setattr(RemoteFolder, "fetch", spoilt)
    if original.content.backend == "tar":
        assert np.array_equal(store.read(0, 0, 100), original.read(0, 0, 100))
        assert len(fetched) == 2
        # Damaged where it comes from: as from a local folder, with a warning.
        fetched.clear()
        monkeypatch.setattr(RemoteFolder, "fetch", functools.partialmethod(spoilt, times=2))
        store.close()
        (store.path / store.shard_names[0]).unlink()
        assert not np.array_equal(store.read(0, 0, 100), original.read(0, 0, 100))
        assert "checksums of the index" in caplog.text
    else:
        with pytest.raises(ReadError, match="checksum of chunk 0"):
            store.read(0, 0, 100)


def test_a_short_transfer_is_tried_again(local, cache, monkeypatch):
    waits, fetch = [], RemoteFolder.fetch
    store = open_store(f"file://{local}", cache)
    monkeypatch.setattr(time, "sleep", waits.append)

    def short(self, name, target):
        fetch(self, name, target)
        if len(waits) < 2:
            target.write_bytes(target.read_bytes()[:-1])

    monkeypatch.setattr(RemoteFolder, "fetch", short)
    assert np.array_equal(store.read(0, 0, 100), open_store(local).read(0, 0, 100))
    assert waits == [1.0, 2.0]


def test_a_store_that_was_ingested_anew_is_not_mixed_with_the_old_one(local, cache, tmp_path):
    shutil.copytree(local, tmp_path / "store")
    url = f"file://{tmp_path}/store"
    open_store(url, cache).read(0, 0, 5)
    shutil.rmtree(tmp_path / "store")
    names = [f"C{c}" for c in range(6)]
    one = ArrayRecording("aa", "s0", "r0", names, [(0, np.full((6, 10 * T), 7.0))])
    write_store(tmp_path / "store", [one], sfreq=64.0, backend=open_store(local).content.backend, record_s=10)
    assert (open_store(url, cache).read(0, 0, 5) == 70).all()


def test_the_next_blocks_shards_are_fetched_before_they_are_read(local, tmp_path):
    given = settings(f"file://{local}", tmp_path / "cache", shuffle="block", block_shards=2, reader_threads=0)
    with Loader(given, global_batch_size=4, micro_batch_size=4) as loader:
        next(loader)
        (store,) = loader.stores
        at = loader.locate(np.arange(4, 24))  # a block is 20 windows of two shards
        coming = set(store.shard[at.row].tolist())
        assert len(coming) == 4
        later = set(range(8)) - coming
        deadline = time.monotonic() + 60
        while not all(store.holds(code) for code in coming) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert all(store.holds(code) for code in coming)
        assert not any(store.holds(code) for code in later)
    assert not [thread for thread in threading.enumerate() if thread.name == "ddscale-fetch-ahead"]


def test_pictures_come_through_the_cache(tmp_path, cache, monkeypatch):
    import io

    from PIL import Image

    from ddscale.store import ImageFile, StagedTrial

    pictures = []
    for i in range(3):
        content = io.BytesIO()
        Image.new("RGB", (8, 8), (i, 0, 0)).save(content, "PNG")
        pictures.append(ImageFile("aa", f"p{i}", "png", f"p{i}.png", content.getvalue, stated="train"))
    one = ArrayRecording("aa", "s", "r", ["C"], [(0, np.ones((1, T)))], trials=[StagedTrial(image="p1")])
    write_store(tmp_path / "store", [one], sfreq=64.0, record_s=10, images=pictures)
    store, original = open_store(f"file://{tmp_path}/store", cache), open_store(tmp_path / "store")
    fetched, fetch = [], RemoteFolder.fetch
    monkeypatch.setattr(
        RemoteFolder, "fetch", lambda self, name, target: fetched.append(name) or fetch(self, name, target)
    )
    assert [store.read_image(row) for row in range(3)] == [original.read_image(row) for row in range(3)]
    assert fetched == ["images/aa-000000.tar"]
    assert store.fingerprint == original.fingerprint


# -- what is said ------------------------------------------------------------------------------------------------


def test_orders_that_the_cache_cannot_serve_are_refused(local, tmp_path):
    url, folder = f"file://{local}", tmp_path / "cache"
    gb = float(open_store(local).lengths().sum()) / 1e9
    index = sum((local / name).stat().st_size for name in ("manifest.json", "records.parquet")) / 1e9

    def loader(**given):
        return Loader(settings(url, folder, **given), global_batch_size=G, micro_batch_size=8)

    with pytest.raises(
        ValueError, match=r"shuffle: global .*Set data.shuffle: block, or data.cache.max_gb to"
    ):
        loader(max_gb=index + 0.0001 if index + 0.0001 < gb else gb * 0.9)
    with pytest.raises(ValueError, match=r"block_shards: 4 .*Set data.block_shards to at most [123], or"):
        loader(max_gb=gb * 0.9, shuffle="block", block_shards=4)
    loader(max_gb=gb * 0.9, shuffle="block", block_shards=3).close()


def test_held_out_windows_that_fill_the_cache_are_told(local, tmp_path, caplog):
    gb = float(open_store(local).lengths().sum()) / 1e9
    given = settings(f"file://{local}", tmp_path / "cache", max_gb=gb * 0.9, shuffle="block", block_shards=1)
    Loader.fixed(given, "train", windows=80, micro_batch_size=8).close()
    assert "80 held-out windows lie in 8 shards" in caplog.text


def test_a_missing_package_is_named_with_the_url():
    for protocol, package in (("s3", "s3fs"), ("gs", "gcsfs")):
        try:
            __import__(package)
        except ImportError:
            with pytest.raises(
                ModuleNotFoundError, match=f"{protocol}://bucket/store.*needs {package}.*pip install"
            ):
                open_store(f"{protocol}://bucket/store")
    with pytest.raises(ValueError, match="nonsense://bucket.*use s3://"):
        open_store("nonsense://bucket")


def test_no_store_at_the_url(tmp_path, cache, local):
    with pytest.raises(FileNotFoundError, match=f"No store at file://{tmp_path}/none"):
        open_store(f"file://{tmp_path}/none", cache)
    shutil.copytree(local, tmp_path / "half")
    with (tmp_path / "half" / "records.parquet").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ValueError, match=r"records.parquet is not what it should be.*half-published"):
        open_store(f"file://{tmp_path}/half", cache)


def test_a_shard_that_is_not_there_is_named_by_its_url(tmp_path, cache, local):
    shutil.copytree(local, tmp_path / "store")
    store = open_store(f"file://{tmp_path}/store", cache)
    (tmp_path / "store" / store.shard_names[0]).unlink()
    with pytest.raises(
        ReadError, match=f"Cannot fetch file://{tmp_path}/store/{store.shard_names[0]}: it is not"
    ) as e:
        store.read(0, 0, 5)
    assert not e.value.transient


def test_a_cache_that_cannot_be_written_is_named(local, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=f"{tmp_path}/file"):
        open_store(f"file://{local}", ShardCache(tmp_path / "file", 1.0))


def test_inspecting_and_verifying(local):
    assert describe(f"file://{local}")["totals"] == describe(local)["totals"]
    assert describe(f"file://{local}")["store"] == f"file://{local}"
    with pytest.raises(ValueError, match=r"s3://bucket/store is not a local folder.*Copy it"):
        verify("s3://bucket/store")


def test_the_default_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "ddscale"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert str(os.getuid()) in default_folder().name
