"""How the ranks of a run start, and what a launcher says when one of them ends."""

from __future__ import annotations

import os
import sys

import pytest

from ddscale.training import ranks as ranks_module
from ddscale.training.ranks import session


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
