"""What a hung rank says of itself."""

from __future__ import annotations

import faulthandler
import os
import threading
import time

import numpy as np
import pytest

from ddscale.store.shard_files import read_whole
from ddscale.training import watchdog as watchdog_module
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
