"""Workers that come late, die or hang: the ingest uses those there are, loses nothing and says what it gave up."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from operator import truth
from pathlib import Path

import dask
import pytest
from distributed import Client, LocalCluster

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from ingesting import cohort, contents, hanging, killed_once, recipe, until_told

from ddscale.ingest import assembly, dask_pool, run, running
from ddscale.ingest.dask_pool import OnDask
from ddscale.ingest.pool import TookTooLong
from ddscale.sources.recording import Recording
from ddscale.store import verify

CONNECT = "distributed.comm.timeouts.connect"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return cohort(tmp_path_factory.mktemp("recordings"), subjects=2)


@pytest.fixture(scope="module")
def undisturbed(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "store"
    run(recipe(folder, out))
    return contents(out)


def cluster_of(workers: int) -> LocalCluster:
    return LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None)


def change_listing(monkeypatch, change: Callable[[list[Recording]], None]) -> None:
    original = running.list_recordings

    def changed(source):
        listing = original(source)
        change(listing.recordings)
        return listing

    monkeypatch.setattr(running, "list_recordings", changed)


def come_true(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def unopened():
    raise AssertionError("opened")


def finished(pool: OnDask):
    while (done := pool.next()) is None:
        pass
    return done


def test_workers_that_come_later_are_used(tmp_path, monkeypatch):
    monkeypatch.setattr(assembly, "ingest_recording", until_told)
    work = [(number, Recording("tests", "s", f"r{number}", "", 1, opener=unopened)) for number in range(9)]
    numbers: list[int] = []

    def begun() -> int:
        return len(list(tmp_path.glob("*.begun")))

    with cluster_of(1) as cluster, Client(cluster) as client:
        pool = OnDask(client)
        assert pool.capacity == 2
        ingest = threading.Thread(target=lambda: numbers.extend(assembly.process_all(tmp_path, pool, work)))
        ingest.start()
        try:
            come_true(lambda: begun() == 1)
            cluster.scale(3)
            come_true(lambda: begun() == 3)  # nothing has finished: only those that wait can be more
        finally:
            (tmp_path / "go").touch()
            ingest.join(60)
        assert pool.capacity == 6
    assert sorted(numbers) == list(range(9))


@pytest.mark.parametrize("own", [True, False], ids=["this machine", "a cluster"])
def test_a_recording_whose_worker_was_killed_is_done_by_another(
    folder, undisturbed, tmp_path, monkeypatch, own
):
    def change(recordings):
        recordings[1] = killed_once(recordings[1], tmp_path / "killed")

    change_listing(monkeypatch, change)
    if own:
        summary = run(recipe(folder, tmp_path / "store", workers=2))
    else:
        with cluster_of(2) as cluster:
            given = recipe(folder, tmp_path / "store", workers=None, scheduler=cluster.scheduler_address)
            summary = run(given)
    assert (tmp_path / "killed").exists()
    assert summary.ok
    assert contents(tmp_path / "store") == undisturbed


def test_a_recording_that_hangs_is_quarantined_and_the_others_go_on(
    folder, undisturbed, tmp_path, monkeypatch
):
    change_listing(monkeypatch, lambda recordings: recordings.insert(0, hanging()))
    # Long enough for the others on a busy machine, their workers' first imports included.
    given = recipe(folder, tmp_path / "store", workers=2, recording_limit_h=20 / 3600)
    summary = run(given)
    (hung,) = summary.quarantined
    assert (hung.recording, hung.reason) == ("a_hang", "timeout")
    assert hung.detail == (
        "hang.cnt was not done after 20 s: its reader hangs on it, or its disk does not answer. Exclude it, or raise "
        "`recording_limit_h`."
    )
    found = contents(tmp_path / "store")
    assert found["records.parquet"] == undisturbed["records.parquet"]
    assert verify(tmp_path / "store").problems == []
    # It is tried again by the next ingest, as a disk may answer by then.
    assert [recording.id for recording, _ in todo_of(given)] == ["a_hang"]


def todo_of(given):
    from ddscale.ingest import names, work
    from ddscale.store.manifest import Blocklist

    (source,) = given.sources
    recordings = running.list_recordings(source).recordings
    everybody = [f"{recording.dataset}/{recording.subject}" for recording in recordings]
    hashes = {name: names.hashed(name, given.salt) for name in everybody}
    state = work.read_state(Path(given.out))
    return work.steps(Path(given.out), recordings, state, Blocklist(), hashes)[0]


def test_who_waits_behind_one_that_hangs_is_not_blamed():
    with cluster_of(1) as cluster, Client(cluster) as client:
        pool = OnDask(client, limit_s=3)
        pool.submit(7, time.sleep, 1000)
        pool.submit(8, truth, 1)
        given_up, done = finished(pool), finished(pool)
    assert given_up.name == 7
    assert isinstance(given_up.error, TookTooLong)
    assert (done.name, done.error) == (8, None)


def test_without_workers_it_ends_and_names_the_scheduler(monkeypatch):
    monkeypatch.setattr(dask_pool, "NOBODY_S", 3)
    with cluster_of(0) as cluster:
        with (
            pytest.raises(OSError, match=f"{cluster.scheduler_address} has no workers"),
            dask_pool.connected(cluster.scheduler_address),
        ):
            pass
        # No nanny: nobody starts a worker that was ended anew.
        worker = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "dask",
                "worker",
                cluster.scheduler_address,
                "--no-nanny",
                "--no-dashboard",
            ],
            stderr=subprocess.DEVNULL,
        )
        try:
            with Client(cluster) as client:
                client.wait_for_workers(1, timeout=60)
                pool = OnDask(client, limit_s=1)
                pool.submit(0, time.sleep, 1000)
                pool.submit(1, time.sleep, 1001)
                assert isinstance(finished(pool).error, TookTooLong)
                assert worker.wait(60) == 1
                with pytest.raises(
                    OSError, match=rf"{cluster.scheduler_address} has had no workers.*it continues"
                ):
                    finished(pool), finished(pool)
        finally:
            worker.kill()
            worker.wait()


@pytest.mark.parametrize("before_looking", [True, False])
def test_a_scheduler_that_goes_away_is_named(tmp_path, monkeypatch, before_looking):
    monkeypatch.setattr(dask_pool, "LOOK_S", 0.1 if before_looking else 30)
    file = tmp_path / "scheduler.json"
    scheduler = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "dask",
            "scheduler",
            "--scheduler-file",
            str(file),
            "--port=0",
            "--no-dashboard",
        ],
        stderr=subprocess.DEVNULL,
    )
    try:
        come_true(file.exists)
        with Client(scheduler_file=str(file), timeout=60) as client, dask.config.set({CONNECT: "1s"}):
            pool = OnDask(client)
            pool.submit(0, time.sleep, 1000)
            address = client.scheduler_info()["address"]
            scheduler.kill()
            scheduler.wait()
            with pytest.raises(OSError, match=rf"{address} cannot be reached any more.*it continues"):
                finished(pool)
    finally:
        scheduler.kill()
        scheduler.wait()
