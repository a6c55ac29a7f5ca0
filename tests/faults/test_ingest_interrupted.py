"""Killed at the worst moments, an ingest continues and ends with the very bytes of one that was not."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from ingesting import cohort, contents, crashing, recipe, tree

from ddscale.ingest import run
from ddscale.store import open_store, verify

# Runs an ingest whose process is killed, as by a power cut, in the middle of the n-th call of a function.
KILLED = """
import importlib, json, os, signal, sys
from ddscale import recipes
from ddscale.ingest import IngestRecipe, run
tree, module, function, call, when = json.loads(sys.argv[1])
module = importlib.import_module(module)
original, calls = getattr(module, function), 0
def killed(*arguments, **named):
    global calls
    calls += 1
    mine = calls  # shards are sealed by several threads
    if mine == call and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    value = original(*arguments, **named)
    if mine == call and when == "after":
        os.kill(os.getpid(), signal.SIGKILL)
    return value
setattr(module, function, killed)
run(recipes.check(tree, IngestRecipe, "killed"))
"""

MOMENTS = {
    "while a recording is written": ("ddscale.store.staging", "_encode", 7, "before"),
    "between a fragment and its sidecar": ("ddscale.store.staging", "sidecar_path", 3, "before"),
    "between two recordings": ("ddscale.ingest.processing", "stage", 4, "after"),
    "between a shard and the sign that it is whole": ("ddscale.store.sealing", "_sealed_path", 2, "before"),
    "after a shard": ("ddscale.store.sealing", "seal", 2, "after"),
    "between recordings.parquet and records.parquet": ("ddscale.store.tables", "write", 4, "before"),
    "between records.parquet and the manifest": ("ddscale.store.tables", "write", 4, "after"),
    "between the manifest and tidying up": ("shutil", "rmtree", 1, "before"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return cohort(tmp_path_factory.mktemp("recordings"))


@pytest.fixture(scope="module")
def undisturbed(folder, tmp_path_factory):
    """Backend -> contents of the store that an ingest without interruption makes."""
    found = {}
    for backend in ("tar", "zarr"):
        out = tmp_path_factory.mktemp("undisturbed") / backend
        run(recipe(folder, out, backend=backend))
        found[backend] = contents(out)
    return found


def kill(folder: Path, out: Path, backend: str, moment: str, call: int | None = None, **changes) -> None:
    module, function, usual_call, when = MOMENTS[moment]
    call = call or usual_call
    arguments = json.dumps([tree(folder, out, backend=backend, **changes), module, function, call, when])
    done = subprocess.run(
        [sys.executable, "-c", KILLED, arguments], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_ingest_continues_to_the_same_bytes(folder, undisturbed, tmp_path, moment):
    backend = ("tar", "zarr")[list(MOMENTS).index(moment) % 2]
    kill(folder, tmp_path / "store", backend, moment)
    if moment == "between the manifest and tidying up":
        assert "unfinished ingest" in verify(tmp_path / "store").problems[0]
    else:
        with pytest.raises(FileNotFoundError, match="Run the same `ddscale ingest` again"):
            open_store(tmp_path / "store")
    summary = run(recipe(folder, tmp_path / "store", backend=backend))
    assert summary.ok
    assert contents(tmp_path / "store") == undisturbed[backend]
    assert verify(tmp_path / "store").problems == []


def test_recordings_finished_before_the_kill_are_not_read_again(folder, tmp_path, monkeypatch):
    from ddscale.ingest import assembly

    kill(folder, tmp_path / "store", "tar", "between two recordings")
    read = []

    def counted(job, recording):
        read.append(recording.id)
        return original(job, recording)

    original = assembly.ingest_recording
    monkeypatch.setattr(assembly, "ingest_recording", counted)
    run(recipe(folder, tmp_path / "store"))
    assert read == ["sub3_run1", "sub3_run2"]


def test_a_published_store_stays_readable_until_the_next_publication(folder, tmp_path):
    first = shutil.copytree(folder, tmp_path / "first")
    shutil.rmtree(first / "sub1")
    run(recipe(first, tmp_path / "store"))
    before = open_store(tmp_path / "store")
    window_TC = before.read(0, 0, 100)
    kill(folder, tmp_path / "store", "tar", "while a recording is written", call=2)
    during = open_store(tmp_path / "store")
    assert during.fingerprint == before.fingerprint
    assert (during.read(0, 0, 100) == window_TC).all()
    assert run(recipe(folder, tmp_path / "store")).ok
    assert len(open_store(tmp_path / "store")) > len(before)
    assert verify(tmp_path / "store").problems == []


@pytest.mark.parametrize("moment", ["after a shard", "between records.parquet and the manifest"])
def test_a_withdrawal_that_was_killed_is_finished(folder, tmp_path, moment):
    blocklist = {"subjects": ["tests/sub2"]}
    run(recipe(folder, tmp_path / "store"))
    whole = shutil.copytree(tmp_path / "store", tmp_path / "whole")
    run(recipe(folder, whole, blocklist=blocklist))
    kill(folder, tmp_path / "store", "tar", moment, blocklist=blocklist)
    if moment == "after a shard":
        assert len(open_store(tmp_path / "store")) == 18  # nothing has happened yet
        with pytest.raises(ValueError, match="Put it back as it was"):
            run(recipe(folder, tmp_path / "store"))
    assert run(recipe(folder, tmp_path / "store", blocklist=blocklist)).ok
    assert contents(tmp_path / "store") == contents(whole)
    assert verify(whole).problems == []


def test_settings_may_not_change_while_an_ingest_is_unfinished(folder, tmp_path):
    kill(folder, tmp_path / "store", "tar", "between two recordings")
    with pytest.raises(
        ValueError, match=r"quality.amplitude_uV was 200.0, the recipe asks 90.0.*or remove .*staging"
    ):
        run(recipe(folder, tmp_path / "store", quality={"amplitude_uV": 90.0}))


def test_workers_do_not_show_in_the_store_and_a_crash_costs_one_recording(
    folder, undisturbed, tmp_path, monkeypatch
):
    from ddscale.ingest import running

    original = running.list_recordings

    def with_a_crash(source):
        listing = original(source)
        listing.recordings.insert(0, crashing())
        return listing

    monkeypatch.setattr(running, "list_recordings", with_a_crash)
    summary = run(recipe(folder, tmp_path / "store", workers=2))
    (crashed,) = summary.quarantined
    assert (crashed.recording, crashed.reason) == ("a_crash", "crashed")
    assert "crash.cnt ended the process that read it, twice" in crashed.detail
    found = contents(tmp_path / "store")
    expected = undisturbed["tar"]
    assert {name: found[name] for name in expected if name.endswith(".tar")} == {
        name: content for name, content in expected.items() if name.endswith(".tar")
    }
    assert found["records.parquet"] == expected["records.parquet"]
    assert verify(tmp_path / "store").problems == []


def test_a_cluster_that_is_there_already_is_used(folder, undisturbed, tmp_path):
    from distributed import LocalCluster

    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster:
        assert run(
            recipe(
                folder, tmp_path / "store", workers=None, scheduler=cluster.scheduler_address, backend="zarr"
            )
        ).ok
    assert contents(tmp_path / "store") == undisturbed["zarr"]


@pytest.mark.parametrize("after_s", [0.0, 0.5])
def test_ctrl_c_while_workers_start_ends_as_quietly_as_later(folder, undisturbed, tmp_path, after_s):
    script = tmp_path / "begin.py"
    script.write_text(f"""
import sys; sys.path.insert(0, {str(Path(__file__).resolve().parents[1])!r})
from pathlib import Path
from ingesting import recipe
from ddscale.ingest import run
if __name__ == "__main__":
    try:
        run(recipe(Path({str(folder)!r}), Path({str(tmp_path / "store")!r}), workers=2))
    except KeyboardInterrupt:
        sys.exit(130)
""")
    with (tmp_path / "stderr").open("w") as stderr:
        process = subprocess.Popen([sys.executable, str(script)], stderr=stderr, start_new_session=True)
    deadline = time.monotonic() + 60
    # The first is Python's own, which keeps account of what processes share.
    while len(workers := psutil.Process(process.pid).children(recursive=True)) < 2:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(after_s)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert (tmp_path / "stderr").read_text() == ""
    while any(worker.is_running() and worker.status() != "zombie" for worker in workers):
        assert time.monotonic() < deadline + 60, "worker processes outlive the ingest"
        time.sleep(0.1)
    assert run(recipe(folder, tmp_path / "store")).ok
    assert contents(tmp_path / "store") == undisturbed["tar"]


def test_ctrl_c_ends_all_processes_and_leaves_a_store_that_continues(folder, undisturbed, tmp_path):
    slow = f"""
import sys; sys.path.insert(0, {str(Path(__file__).resolve().parents[1])!r})
from pathlib import Path
from ingesting import recipe
from ddscale.ingest import run
import time
def report(done, total, name):
    print(done, flush=True)
    if done == 2:
        time.sleep(60)
if __name__ == "__main__":
    try:
        run(recipe(Path({str(folder)!r}), Path({str(tmp_path / "store")!r}), workers=2),
            on_progress=report)
    except KeyboardInterrupt:
        sys.exit(130)
"""
    script = tmp_path / "slow.py"
    script.write_text(slow)
    with (tmp_path / "stderr").open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, str(script)],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            start_new_session=True,
        )
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == "2":
            break
    workers = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert (tmp_path / "stderr").read_text() == ""
    deadline = time.monotonic() + 20
    while any(worker.is_running() and worker.status() != "zombie" for worker in workers):
        assert time.monotonic() < deadline, "worker processes outlive the ingest"
        time.sleep(0.1)
    assert (tmp_path / "store" / ".staging").is_dir()
    assert run(recipe(folder, tmp_path / "store")).ok
    assert contents(tmp_path / "store") == undisturbed["tar"]
