"""One run at a time in a run folder, also where the file system knows no locks.

Lustre mounted without `flock`, and some network file systems, refuse the call. There the owner is whoever created the
owner file with the highest number, exclusively, and it writes a beat into that file every so often. Whoever comes
watches the file: one that beats has a living owner; one that does not belongs to a process that is gone, and the file
with the next number is then the newcomer's to create. The file with the highest number is never removed, so of
several that take over, one wins, however late the others are. No clocks are compared, since those of nodes and file
servers differ.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
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

_ENDED = "ended".ljust(12)
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
            with _owner_file(folder):
                yield
            return
        with contextlib.suppress(OSError):  # for whoever finds it locked; the lock itself holds without
            lock.truncate(0)
            lock.write(_mine("locked"))
            lock.flush()
        yield


@contextlib.contextmanager
def _owner_file(folder: Path) -> Iterator[None]:
    token = uuid.uuid4().hex
    number = _take(folder, token)
    path = _numbered(folder, number)
    ended = threading.Event()
    beating = threading.Thread(
        target=_beat, args=(folder, number, token, ended), name="run owner", daemon=True
    )
    beating.start()
    try:
        yield
    finally:
        ended.set()
        beating.join()
        with contextlib.suppress(OSError):
            _overwrite(path, _mine(token, _ENDED))


def _take(folder: Path, token: str) -> int:
    """The number of the owner file that is now this process's; raises ValueError when another owner lives."""
    while True:
        newest = _newest(folder)
        if newest and not _has_ended(_read(_numbered(folder, newest))):
            _watch_to_death(_numbered(folder, newest))
        number = newest + 1
        if not _create(_numbered(folder, number), _mine(token)):
            continue  # another was first: whether that one lives is the question now
        if _newest(folder) > number:  # several came and went while this process was held up
            _numbered(folder, number).unlink(missing_ok=True)
            continue
        for older in _numbers(folder):
            if older < number:
                _numbered(folder, older).unlink(missing_ok=True)
        return number


def _numbered(folder: Path, number: int) -> Path:
    return folder / f"{OWNER}-{number:06}"


def _numbers(folder: Path) -> list[int]:
    found = (re.fullmatch(rf"{re.escape(OWNER)}-(\d+)", name) for name in os.listdir(folder))
    return [int(match[1]) for match in found if match]


def _newest(folder: Path) -> int:
    return max(_numbers(folder), default=0)


def _create(path: Path, text: str) -> bool:
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    return True


def _watch_to_death(path: Path) -> None:
    """Return once the file has not beaten for long, or its owner has ended; raises ValueError when it beats."""
    seen = _read(path)
    warn(
        f"{path} says that {_who(seen)} trains here: watching for {DEAD_AFTER_S:.0f} s whether it still does"
    )
    until = time.monotonic() + DEAD_AFTER_S
    while time.monotonic() < until:
        time.sleep(BEAT_S / 4)
        now = _read(path)
        if not now or _has_ended(now):  # gone only when a newer owner has removed it
            return
        if now != seen:
            raise _taken(path, now)


def _beat(folder: Path, number: int, token: str, ended: threading.Event) -> None:
    path, count, failing = _numbered(folder, number), 0, False
    while not ended.wait(BEAT_S):
        count += 1
        try:
            newest = _newest(folder)
            if newest > number:
                who = _who(_read(_numbered(folder, newest)))
                warn(f"{who} has taken over the run folder, for this process was not heard of: it ends")
                os._exit(1)
            _overwrite(path, _mine(token, f"{count:012}"))
            failing = False
        except OSError as error:
            if not failing:
                warn(f"{path} cannot be written ({error}): another run could take this one for dead")
            failing = True


def _overwrite(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY, 0o644)
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


def _mine(token: str, beat: str = "0" * 12) -> str:
    """One line, as long for every beat, so that it can be overwritten in place."""
    job = os.environ.get("SLURM_JOB_ID") or os.environ.get("JOB_UID")
    owner = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "job": job,
        "token": token,
        "beat": beat,
    }
    return json.dumps(owner) + "\n"


def _has_ended(content: bytes) -> bool:
    return f'"beat": "{_ENDED}"'.encode() in content


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
