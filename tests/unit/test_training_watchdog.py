"""What a hung rank says of itself."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time

import numpy as np
import pytest

from ddscale.store.shard_files import read_whole
from ddscale.training import ranks as ranks_module
from ddscale.training import watchdog as watchdog_module
from ddscale.training.ranks import session
from ddscale.training.watchdog import Watchdog


@pytest.fixture
def written(monkeypatch):
    """Set once a watchdog's file holds the stacks."""
    dump, done = faulthandler.dump_traceback, threading.Event()

    def dumped(*args, **settings):
        dump(*args, **settings)
        done.set()

    monkeypatch.setattr(faulthandler, "dump_traceback", dumped)
    return done


def test_a_hung_read_names_its_rank_and_file(tmp_path, monkeypatch, capsys, written):
    shard = tmp_path / "anna-000000.tar"
    shard.write_bytes(bytes(64))
    begun, answer = threading.Event(), threading.Event()
    monkeypatch.setattr(os, "preadv", lambda *_: begun.set() or (answer.wait(60) and 64))
    descriptor = os.open(shard, os.O_RDONLY)
    reader = threading.Thread(target=read_whole, args=(descriptor, np.empty(64, np.uint8), 0))
    reader.start()
    assert begun.wait(60)
    with Watchdog(tmp_path / "stalled", 3, minutes=0.01) as watchdog:
        watchdog.doing("step 7")
        assert written.wait(60)
    told = (tmp_path / "stalled" / "rank-00003.txt").read_text()
    answer.set()
    reader.join()
    os.close(descriptor)
    assert f"reads {shard}" in told
    assert "read_whole" in told
    assert "most recent call first" in told
    said = capsys.readouterr().err
    assert "warning: rank 3 (" in said
    assert "has been at step 7 for" in said
    assert "in wait (" in said


def test_a_run_that_gets_on_says_nothing(tmp_path, monkeypatch, capsys):
    now = 0.0
    monkeypatch.setattr(watchdog_module.time, "monotonic", lambda: now)
    with Watchdog(tmp_path / "stalled", 0, minutes=0.001) as watchdog:
        for step in range(40):
            watchdog.doing(f"step {step}")
            now += 0.05  # of the 0.06 s that are allowed; the watchdog looks every 0.015 s
            time.sleep(0.03)
    assert not (tmp_path / "stalled").exists()
    assert capsys.readouterr().err == ""


def test_stacks_that_cannot_be_written_are_told_all_the_same(tmp_path, capsys):
    (tmp_path / "stalled").write_text("a file where the folder belongs")
    said = ""
    with Watchdog(tmp_path / "stalled", 0, minutes=0.005):
        for _ in range(600):
            said += capsys.readouterr().err
            if "cannot be written" in said:
                break
            time.sleep(0.05)
    assert "rank 0 (" in said
    assert "cannot be written" in said


def test_a_collective_that_gave_up_says_where_to_look_and_what_to_set(monkeypatch, capsys):
    monkeypatch.setattr(ranks_module, "start", lambda: None)
    monkeypatch.setenv("RANK", "4")
    monkeypatch.setenv("DEEPSPEED_TIMEOUT", "7")
    with pytest.raises(SystemExit) as ended, session():
        raise RuntimeError("[unbound_buffer.cc:81] Timed out waiting 420000ms for recv operation to complete")
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert "error: rank 4 has waited 7 minutes" in said
    assert "DEEPSPEED_TIMEOUT sets another limit" in said


def test_a_peer_that_is_gone_is_told_with_what_was_seen_of_it(monkeypatch, capsys):
    monkeypatch.setattr(ranks_module, "start", lambda: None)
    monkeypatch.setenv("RANK", "4")
    with pytest.raises(SystemExit) as ended, session():
        raise RuntimeError(
            "NCCL error in: ProcessGroupNCCL.cpp:1, remote process exited\nncclRemoteError: Last error:\nnode7<5>"
        )
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert "error: rank 4 lost contact with another rank, which ended first (NCCL error in:" in said
    assert said.endswith("ncclRemoteError: Last error:; node7<5>)\n")


def test_what_nccl_does_not_find_on_its_own_node_is_not_called_a_lost_peer(monkeypatch):
    monkeypatch.setattr(ranks_module, "start", lambda: None)
    with pytest.raises(RuntimeError, match="Duplicate GPU detected"), session():
        raise RuntimeError(
            "NCCL error in: NCCLUtils.cpp:94, invalid usage\nncclInvalidUsage: Duplicate GPU detected"
        )


@pytest.mark.parametrize("limit", ["soon", "0", "2.5"])
def test_a_limit_that_is_no_number_of_minutes_is_refused(monkeypatch, limit):
    monkeypatch.setenv("DEEPSPEED_TIMEOUT", limit)
    with pytest.raises(ValueError, match=f"DEEPSPEED_TIMEOUT is '{limit}': give whole minutes"):
        ranks_module.start()


def test_more_ranks_than_cores_are_told(monkeypatch, capsys):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    monkeypatch.setattr(
        ranks_module, "_check_limit", lambda: sys.exit(0)
    )  # as far as this goes without peers
    for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "8"), ("LOCAL_SIZE", "8")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with pytest.raises(SystemExit):
        ranks_module.start()
    assert "8 ranks on" in (said := capsys.readouterr().err)
    assert "share 1 CPU cores" in said
    assert "--cpus-per-task" in said
