"""Open shard files, shared by threads and limited in number, and reads of them that come whole."""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import os
import resource
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

MOST_OPEN = 8192
"""Files kept open at once by a process, where the system lets it: the shards of some 70,000 hours."""
ROOM = 512
"""Descriptors left to everything else: sockets, libraries, checkpoints."""
MOST_INDEX_BYTES = 1 << 28
"""Lists of chunks kept beside the files: one of Zarr's takes tens of kilobytes."""


class ReadError(OSError):
    """Data of a store that could not be read; says which, and the remedy."""

    def __init__(self, message: str, transient: bool) -> None:
        super().__init__(message)
        self.transient = transient
        """Whether the same read may succeed later: the storage failed, not what lies there."""


@dataclass
class _OpenFile:
    descriptor: int
    index: Any
    index_bytes: int
    users: int = 0
    dismissed: bool = False


_Key = tuple[int, int]


class OpenFiles:
    """The open files of all stores that share it, the longest unused closed first."""

    def __init__(self, most: int | None = None) -> None:
        """most: files; by default what the process may have."""
        self._most = most
        # Entered again when a store is garbage-collected meanwhile, whose files are closed then.
        self._lock = threading.RLock()
        self._open: OrderedDict[_Key, _OpenFile] = OrderedDict()
        self._index_bytes = 0

    def __len__(self) -> int:
        return len(self._open)

    def acquire(self, key: _Key) -> _OpenFile | None:
        with self._lock:
            file = self._open.get(key)
            if file is not None:
                file.users += 1
                self._open.move_to_end(key)
            return file

    def add(self, key: _Key, descriptor: int, index: Any) -> _OpenFile:
        with self._lock:
            known = self._open.get(key)
            if known is not None:  # another thread was quicker
                os.close(descriptor)
                known.users += 1
                return known
            file = _OpenFile(descriptor, index, getattr(index, "nbytes", 0), users=1)
            self._open[key] = file
            self._index_bytes += file.index_bytes
            most = self._most or _most_open()
            while len(self._open) > most or (self._index_bytes > MOST_INDEX_BYTES and len(self._open) > 1):
                self.dismiss(*next(iter(self._open.items())))
            return file

    def dismiss(self, key: _Key, file: _OpenFile) -> None:
        """Close the file, or have it closed by the last who uses it; the next to ask opens it anew."""
        with self._lock:
            if self._open.get(key) is file:
                del self._open[key]
                self._index_bytes -= file.index_bytes
            if not file.dismissed:
                file.dismissed = True
                if file.users == 0:
                    os.close(file.descriptor)

    def release(self, file: _OpenFile) -> None:
        with self._lock:
            file.users -= 1
            if file.dismissed and file.users == 0:
                os.close(file.descriptor)

    def close_of(self, owner: int) -> None:
        """Close one store's files; those in use, as soon as they no longer are."""
        with self._lock:
            for key, file in [item for item in self._open.items() if item[0][0] == owner]:
                self.dismiss(key, file)

    def make_room(self) -> None:
        """Close half of the files: others of this process take more descriptors than were left to them."""
        with self._lock:
            for key, file in list(itertools.islice(self._open.items(), len(self._open) // 2 + 1)):
                self.dismiss(key, file)


_OF_PROCESS = OpenFiles()
_owners = itertools.count()


class ShardFiles:
    """Descriptors of a store's shard files, opened on demand.

    open_file: shard number -> descriptor for positioned reads, which is closed here.
    index_of: what to read from a freshly opened file and keep beside its descriptor.
    shared_with: by default the other stores of the process.
    """

    def __init__(
        self,
        open_file: Callable[[int], int],
        index_of: Callable[[int, int], Any] | None = None,
        shared_with: OpenFiles = _OF_PROCESS,
    ) -> None:
        self._open_file = open_file
        self._index_of = index_of
        self._files = shared_with
        self._owner = next(_owners)
        weakref.finalize(self, shared_with.close_of, self._owner)

    @contextlib.contextmanager
    def opened(self, code: int) -> Iterator[tuple[int, Any]]:
        """The descriptor (for positioned reads only) and index of shard `code`, while the block lasts.

        When reading fails in the block, the next one opens the file anew: a handle may have gone stale, after a
        file server's fail-over for instance, though the file is sound.
        """
        key = self._owner, code
        file = self._files.acquire(key) or self._add(key)
        try:
            yield file.descriptor, file.index
        except (OSError, ValueError):
            self._files.dismiss(key, file)
            raise
        finally:
            self._files.release(file)

    def _add(self, key: _Key) -> _OpenFile:
        _, code = key
        # Opened outside the lock: on a network file system this takes as long as many reads.
        try:
            descriptor = self._open_file(code)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            self._files.make_room()
            descriptor = self._open_file(code)
        try:
            index = self._index_of(code, descriptor) if self._index_of else None
        except BaseException:
            os.close(descriptor)
            raise
        return self._files.add(key, descriptor, index)

    def close(self) -> None:
        """Close every file; those in use, as soon as they no longer are."""
        self._files.close_of(self._owner)


@functools.cache
def _most_open() -> int:
    """How many descriptors shards may take; raises the limit of the process as far as it is allowed to.

    The usual limit of 1,024 is for the sake of programs that call select(); nothing here does.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_OPEN + ROOM
    if soft != resource.RLIM_INFINITY and soft < wanted:
        raised = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
            soft = raised
    if soft == resource.RLIM_INFINITY:
        return MOST_OPEN
    return min(MOST_OPEN, max(soft - ROOM, soft // 4))


def read_whole(descriptor: int, out: np.ndarray, offset: int) -> None:
    """Fill the C-contiguous array from byte `offset` on. A read may come short, as network file systems' do.

    Raises ValueError when the file ends before.
    """
    count = os.preadv(descriptor, [out.data], offset)
    if count == out.nbytes:
        return
    left = out.data.cast("B")
    while count < len(left):
        more = os.preadv(descriptor, [left[count:]], offset + count)
        if more == 0:
            raise ValueError("it ends before the data does")
        count += more


def read_bytes(descriptor: int, length: int, offset: int) -> bytes:
    """So many bytes from `offset` on, however many reads that takes. Raises ValueError when the file ends before."""
    content = os.pread(descriptor, length, offset)
    while len(content) < length:
        more = os.pread(descriptor, length - len(content), offset + len(content))
        if not more:
            raise ValueError("it ends before the data does")
        content += more
    return content
