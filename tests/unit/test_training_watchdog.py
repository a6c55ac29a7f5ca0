"""What a hung rank says of itself."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from ddscale.store.shard_files import read_whole
from ddscale.training import ranks as ranks_module
from ddscale.training.ranks import session
from ddscale.training.watchdog import Watchdog


def appears(path: Path) -> str:
    """The file's text once it has any."""
    for _ in range(600):
        if path.is_file() and "most recent call first" in path.read_text():
            return path.read_text()
        time.sleep(0.05)
    raise AssertionError(f"{path} was not written")


def test_a_hung_read_names_its_rank_and_file(tmp_path, monkeypatch, capsys):
    shard = tmp_path / "anna-000000.tar"
    shard.write_bytes(bytes(64))
    answer = threading.Event()
    monkeypatch.setattr(os, "preadv", lambda *_: answer.wait(60) and 64)
    descriptor = os.open(shard, os.O_RDONLY)
    reader = threading.Thread(target=read_whole, args=(descriptor, np.empty(64, np.uint8), 0))
    with Watchdog(tmp_path / "stalled", 3, minutes=0.01) as watchdog:
        watchdog.doing("step 7")
        reader.start()
        told = appears(tmp_path / "stalled" / "rank-00003.txt")
    answer.set()
    reader.join()
    os.close(descriptor)
    assert f"reads {shard}" in told
    assert "read_whole" in told
    said = capsys.readouterr().err
    assert "warning: rank 3 (" in said
    assert "has been at step 7 for" in said
    assert "in appears (" in said or "in read_text (" in said or "in is_file (" in said or "in stat (" in said


def test_a_run_that_gets_on_says_nothing(tmp_path, capsys):
    with Watchdog(tmp_path / "stalled", 0, minutes=0.05) as watchdog:
        for step in range(40):
            watchdog.doing(f"step {step}")
            time.sleep(0.1)
    assert not (tmp_path / "stalled").exists()
    assert capsys.readouterr().err == ""


def test_stacks_that_cannot_be_written_are_told_all_the_same(tmp_path, capsys):
    (tmp_path / "stalled").write_text("a file where the folder belongs")
    with Watchdog(tmp_path / "stalled", 0, minutes=0.005):
        for _ in range(600):
            said = capsys.readouterr().err
            if "cannot be written" in said:
                break
            time.sleep(0.05)
    assert "rank 0 (" in said


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
