"""One run in a folder: with locks, and on file systems that have none."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import subprocess
import sys
import threading

import pytest

from ddscale.training import ownership
from ddscale.training.ownership import OWNER, only_run_in

CODES = [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK]


@pytest.fixture
def no_locks(monkeypatch, request):
    code = getattr(request, "param", errno.ENOSYS)

    def flock(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(ownership, "BEAT_S", 0.05)
    monkeypatch.setattr(ownership, "DEAD_AFTER_S", 30.0)
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    yield
    assert not ended, "an owner found itself taken over"


def owner_files(folder) -> list[str]:
    return sorted(path.name for path in folder.glob(f"{OWNER}*"))


def leave_by_a_dead_owner(folder) -> None:
    dead = {"host": "node7", "pid": 4711, "job": "12", "token": "x", "beat": "000000000003"}
    (folder / f"{OWNER}-000007").write_text(json.dumps(dead) + "\n")


def test_the_holder_of_a_lock_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "815")
    me = f"process {os.getpid()} on {socket.gethostname()}, job 815"
    with (
        only_run_in(tmp_path),
        pytest.raises(ValueError, match=f"{tmp_path}: {me}.*Stop it"),
        only_run_in(tmp_path),
    ):
        pass
    with only_run_in(tmp_path):
        pass


@pytest.mark.parametrize("no_locks", CODES, indirect=True)
def test_without_locks_a_living_owner_keeps_others_out(no_locks, tmp_path):
    with only_run_in(tmp_path):
        me = f"process {os.getpid()} on {socket.gethostname()}"
        with (
            pytest.raises(ValueError, match=f"another run is training into {tmp_path}: {me}"),
            only_run_in(tmp_path),
        ):
            pass
        assert owner_files(tmp_path) == [".owner-000001"]
    with only_run_in(tmp_path):  # at once: the first has said that it ended
        assert owner_files(tmp_path) == [".owner-000002"]


def test_without_locks_the_file_of_a_dead_owner_is_taken_over(no_locks, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ownership, "DEAD_AFTER_S", 0.2)
    leave_by_a_dead_owner(tmp_path)
    with only_run_in(tmp_path):
        assert owner_files(tmp_path) == [".owner-000008"]
        assert json.loads((tmp_path / ".owner-000008").read_text())["pid"] == os.getpid()
    assert "process 4711 on node7, job 12 trains here: watching" in capsys.readouterr().err


def test_of_several_that_take_over_at_once_one_wins(no_locks, tmp_path, monkeypatch):
    leave_by_a_dead_owner(tmp_path)
    won, refused, told = [], [], threading.Event()
    at_once, watch = threading.Barrier(6), ownership._watch_to_death

    def watch_together(path) -> None:
        if path.name.endswith("7"):
            at_once.wait(60)
        else:
            watch(path)

    monkeypatch.setattr(ownership, "_watch_to_death", watch_together)

    def take() -> None:
        try:
            with only_run_in(tmp_path):
                won.append(1)
                told.wait(60)
        except ValueError as error:
            refused.append(error)

    rivals = [threading.Thread(target=take) for _ in range(6)]
    for rival in rivals:
        rival.start()
    try:
        for rival in rivals:
            while rival.is_alive() and len(won) + len(refused) < len(rivals):
                rival.join(0.05)
    finally:
        told.set()
    assert len(won) == 1
    assert len(refused) == 5


def test_one_held_up_while_others_came_and_went_does_not_take_over(no_locks, tmp_path, monkeypatch):
    leave_by_a_dead_owner(tmp_path)
    create, watch, living = ownership._create, ownership._watch_to_death, only_run_in(tmp_path)

    def held_up(path, text) -> bool:
        monkeypatch.setattr(ownership, "_create", create)
        (tmp_path / f"{OWNER}-000007").unlink()
        path.write_text(ownership._mine("y", ownership._ENDED))
        living.__enter__()
        assert owner_files(tmp_path) == [".owner-000009"]
        return create(path, text)

    monkeypatch.setattr(ownership, "_watch_to_death", lambda path: path.name.endswith("7") or watch(path))
    monkeypatch.setattr(ownership, "_create", held_up)
    with pytest.raises(ValueError, match="another run is training"), only_run_in(tmp_path):
        pass
    assert owner_files(tmp_path) == [".owner-000009"]
    living.__exit__(None, None, None)


def test_an_owner_that_was_taken_for_dead_ends(tmp_path):
    script = (
        "import fcntl, os, sys, time\n"
        "from pathlib import Path\n"
        "from ddscale.training import ownership\n"
        "def flock(*_): raise OSError(38, 'Function not implemented')\n"
        "fcntl.flock, ownership.BEAT_S = flock, 0.05\n"
        "folder = Path(sys.argv[1])\n"
        "with ownership.only_run_in(folder):\n"
        '    (folder / ".owner-000002").write_text(\'{"host": "other", "pid": 1, "job": null}\')\n'
        "    time.sleep(60)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=50
    )
    assert done.returncode == 1
    assert "process 1 on other has taken over the run folder" in done.stderr


def test_another_failure_names_the_file(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", flock)
    with (
        pytest.raises(OSError, match=r"Input/output error, when locking the run folder.*\.lock"),
        only_run_in(tmp_path),
    ):
        pass
