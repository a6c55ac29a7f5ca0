"""A folder on this node's disk that holds files of remote stores while they are in use, up to a size.

    FOLDER/
      <store>/manifest.json, records.parquet   kept
      <store>/<shard>                          whole files alone; the longest unused go first
      <store>/.<shard>.tmp                     being fetched
      .locks/<hash of the path>                held by whoever fetches that file; says how much room it will take
      .locks/room                              held while room is made

Any number of processes share it. Locks are the system's: they end with the process that holds them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ddscale.store import layout
from ddscale.store.shard_files import ReadError

_log = logging.getLogger(__name__)

_LOCKS = ".locks"
_POLL_S = 0.1
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


class _Remote(Protocol):
    url: str

    def size(self, name: str) -> int | None: ...

    def fetch(self, name: str, target: Path) -> None: ...


def default_folder() -> Path:
    """`ddscale` in XDG_CACHE_HOME where that is set, else of this user in the system's folder for temporary files."""
    home = os.environ.get("XDG_CACHE_HOME")
    return Path(home) / "ddscale" if home else Path(tempfile.gettempdir()) / f"ddscale-cache-{os.getuid()}"


@dataclass(frozen=True)
class ShardCache:
    """A cache in `folder` of at most `max_gb`; files that are open while they are evicted take room a little longer."""

    folder: Path
    max_gb: float

    @property
    def max_bytes(self) -> int:
        return int(self.max_gb * 1e9)

    def hold(
        self, remote: _Remote, name: str, target: Path, sound: Callable[[Path], bool] | None, insist: bool
    ) -> None:
        """Have the remote file `name` at `target`: fetched by one process of the node, the others wait for it.

        sound: fetched once more if not; then refused with `insist`, else kept with a warning: so it lies there.
        Raises ReadError.
        """
        with contextlib.suppress(FileNotFoundError):
            os.utime(target)  # it was used: the longest unused goes first
            return
        with self._failures_told(name):
            target.parent.mkdir(parents=True, exist_ok=True)
            with self._locked(hashlib.sha256(os.fspath(target).encode()).hexdigest()[:24]) as lock:
                if target.is_file():
                    return
                partial = target.with_name(f".{target.name}{layout.TEMPORARY}")
                size = remote.size(name)
                # What a killed process left of this file: the lock is ours now.
                os.ftruncate(lock, 0)
                partial.unlink(missing_ok=True)
                try:
                    self._reserve(lock, partial, size or 0, f"{remote.url}/{name}")
                    self._fetch(remote, name, partial, size, sound, insist)
                    _publish(partial, target)
                finally:
                    partial.unlink(missing_ok=True)
                    os.ftruncate(lock, 0)

    def _fetch(
        self,
        remote: _Remote,
        name: str,
        partial: Path,
        size: int | None,
        sound: Callable[[Path], bool] | None,
        insist: bool,
    ) -> None:
        for last in (False, True):
            remote.fetch(name, partial)
            came = partial.stat().st_size
            if size is not None and came != size:
                raise ReadError(
                    f"{remote.url}/{name} has {size} bytes and {came} came through.", transient=True
                )
            if sound is None or sound(partial):
                return
            if last and insist:
                raise ReadError(f"{remote.url}/{name} is not what it should be (checksum).", transient=False)
        _log.warning(
            "%s/%s: records do not have the checksums of the index, fetched twice. It is damaged there: copy it again.",
            remote.url,
            name,
        )

    @contextlib.contextmanager
    def _failures_told(self, name: str) -> Iterator[None]:
        try:
            yield
        except ReadError:
            raise
        except OSError as error:
            remedy = "set data.cache.folder to a folder on a disk of this node that can be written"
            if error.errno in _NO_LOCKS:
                remedy = "its file system has no locks: set data.cache.folder to a disk of this node"
            elif error.errno in (errno.ENOSPC, errno.EDQUOT):
                remedy = "lower data.cache.max_gb, make room, or set data.cache.folder to another disk"
            raise ReadError(
                f"{name} cannot be kept in the cache {self.folder} ({error}): {remedy}.", transient=True
            ) from error

    @contextlib.contextmanager
    def _locked(self, name: str) -> Iterator[int]:
        descriptor = self._open_lock(name)
        try:
            while not _try_lock(descriptor):  # a blocking call could not be interrupted by Ctrl-C in a thread
                time.sleep(_POLL_S)
            yield descriptor
        finally:
            os.close(descriptor)

    def _open_lock(self, name: str) -> int:
        folder = self.folder / _LOCKS
        folder.mkdir(parents=True, exist_ok=True)
        return os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)

    def _reserve(self, lock: int, partial: Path, size: int, what: str) -> None:
        """Make room for `size` bytes, and write into the lock's file that they are taken."""
        with self._locked("room"):
            reserved = self._reserved()
            shards, kept = self._files()
            used = kept + reserved + sum(size for _, size, _ in shards)
            for _, there, path in sorted(shards):
                if used + size <= self.max_bytes:
                    break
                path.unlink(missing_ok=True)
                used -= there
            if used + size > self.max_bytes:
                raise ReadError(
                    f"The cache {self.folder} has no room for {what} ({size / 1e9:.3g} GB): indexes take "
                    f"{kept / 1e9:.3g} GB of data.cache.max_gb: {self.max_gb:g}, and what is being fetched "
                    f"{reserved / 1e9:.3g}. Raise it.",
                    transient=reserved > 0,
                )
            os.pwrite(lock, f"{size} {partial}".encode(), 0)

    def _reserved(self) -> int:
        """Bytes that are being fetched; what killed processes left half-fetched is removed."""
        total = 0
        for path in (self.folder / _LOCKS).iterdir():
            said = path.read_text().split(" ", 1) if path.stat().st_size else []
            if len(said) < 2:
                continue
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                if _try_lock(descriptor):
                    Path(said[1]).unlink(missing_ok=True)
                    os.ftruncate(descriptor, 0)
                else:
                    total += int(said[0])
            finally:
                os.close(descriptor)
        return total

    def _files(self) -> tuple[list[tuple[int, int, Path]], int]:
        """(time of last opening in ns, bytes, path) of every shard; bytes of indexes."""
        shards, kept = [], 0
        for folder, folders, names in os.walk(self.folder):
            folders[:] = [name for name in folders if name != _LOCKS]
            for name in names:
                if name.endswith(layout.TEMPORARY):
                    continue  # counted by what it will be
                path = Path(folder, name)
                with contextlib.suppress(FileNotFoundError):
                    about = path.stat()
                    if name == layout.MANIFEST or name.endswith(".parquet"):
                        kept += about.st_size
                    else:
                        shards.append((about.st_mtime_ns, about.st_size, path))
        return shards, kept


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _publish(partial: Path, target: Path) -> None:
    descriptor = os.open(partial, os.O_RDONLY)
    try:
        os.utime(descriptor)  # some transports keep the origin's time of change
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.replace(partial, target)
    layout.sync_folder(target.parent)
