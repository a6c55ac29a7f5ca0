"""One run at a time in a run folder, also where the file system knows no locks.

Lustre mounted without `flock`, and some network file systems, refuse the call. There an owner file is created
exclusively, and its owner writes a beat into it every so often. Whoever finds the file watches it: one that beats has
a living owner, one that does not belongs to a process that is gone, and is taken over. No clocks are compared, since
those of nodes and file servers differ.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ddscale.training.tolerance import warn

LOCK, OWNER = ".lock", ".owner"
BEAT_S = 10.0
DEAD_AFTER_S = 60.0
"""Time without a beat after which an owner counts as gone: several beats, and longer than a file server fails over."""

_HELD = (errno.EWOULDBLOCK, errno.EACCES)
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)


@contextlib.contextmanager
def only_run_in(folder: Path) -> Iterator[None]:
    """Own the run folder; raises ValueError naming the owner when another living process trains into it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    with path.open("a+", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _HELD:
                lock.seek(0)
                raise _taken(path, lock.read().encode()) from None
            if error.errno not in _NO_LOCKS:
                raise OSError(
                    error.errno, f"{error.strerror}, when locking the run folder", str(path)
                ) from error
            with _owner_file(folder / OWNER):
                yield
            return
        with contextlib.suppress(OSError):  # for whoever finds it locked; the lock itself holds without
            lock.truncate(0)
            lock.write(_mine("locked"))
            lock.flush()
        yield


@contextlib.contextmanager
def _owner_file(path: Path) -> Iterator[None]:
    token = uuid.uuid4().hex
    while not _create(path, _mine(token)):
        _bury(path, _watched_to_death(path))
    ended = threading.Event()
    beating = threading.Thread(target=_beat, args=(path, token, ended), name="run owner", daemon=True)
    beating.start()
    try:
        yield
    finally:
        ended.set()
        beating.join()
        with contextlib.suppress(OSError):
            if token in _read(path).decode(errors="replace"):
                path.unlink()


def _create(path: Path, text: str) -> bool:
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    return True


def _watched_to_death(path: Path) -> bytes:
    """What a file that does not beat holds; raises ValueError once it beats."""
    seen = _read(path)
    warn(
        f"{path} says that {_who(seen)} trains here: watching for {DEAD_AFTER_S:.0f} s whether it still does"
    )
    until = time.monotonic() + DEAD_AFTER_S
    while time.monotonic() < until:
        time.sleep(BEAT_S / 4)
        now = _read(path)
        if not now:  # its owner has just ended in order
            break
        if now != seen:
            raise _taken(path, now)
    return seen


def _bury(path: Path, watched: bytes) -> None:
    """Remove a dead owner's file, and no other's: of several that do so at once, one is first to create its own."""
    grave = path.with_name(f"{path.name}-{uuid.uuid4().hex}")
    try:
        os.rename(path, grave)
    except FileNotFoundError:
        return
    if _read(grave) != watched:
        with contextlib.suppress(FileExistsError):
            os.link(grave, path)
    grave.unlink()


def _beat(path: Path, token: str, ended: threading.Event) -> None:
    count, failing = 0, False
    while not ended.wait(BEAT_S):
        count += 1
        try:
            content = _read(path)
            if not content:
                _create(path, _mine(token, count))
            elif token.encode() in content:
                _overwrite(path, _mine(token, count))
            else:
                warn(
                    f"{_who(content)} has taken over the run folder, for this process was not heard of: it ends"
                )
                os._exit(1)
            failing = False
        except OSError as error:
            if not failing:
                warn(f"{path} cannot be written ({error}): another run could take this one for dead")
            failing = True


def _overwrite(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.pwrite(descriptor, text.encode(), 0)
    finally:
        os.close(descriptor)


def _read(path: Path) -> bytes:
    # Opened anew each time: that is when network file systems look at what others have written.
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def _mine(token: str, count: int = 0) -> str:
    """One line, as long for every count, so that it can be overwritten in place."""
    job = os.environ.get("SLURM_JOB_ID") or os.environ.get("JOB_UID")
    owner = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "job": job,
        "token": token,
        "beat": f"{count:012}",
    }
    return json.dumps(owner) + "\n"


def _who(content: bytes) -> str:
    try:
        owner: dict[str, Any] = json.loads(content)
        job = f", job {owner['job']}" if owner["job"] else ""
        return f"process {owner['pid']} on {owner['host']}{job}"
    except (ValueError, KeyError, TypeError):
        return "a process that left no name"


def _taken(path: Path, content: bytes) -> ValueError:
    return ValueError(
        f"another run is training into {path.parent}: {_who(content)}, as {path.name} says. Stop it, or name another "
        "`run:`."
    )
