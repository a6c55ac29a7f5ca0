"""Open shard files, shared by threads and limited in number, and reads of them that come whole."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

LIMIT = 256
"""Files kept open at once; far below the usual limit of 1,024 per process."""


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
    users: int = 0
    dismissed: bool = False


class ShardFiles:
    """Descriptors of shard files, opened on demand, the longest unused closed first.

    open_file: shard number -> descriptor for positioned reads, which is closed here.
    index_of: what to read from a freshly opened file and keep beside its descriptor.
    """

    def __init__(
        self,
        open_file: Callable[[int], int],
        index_of: Callable[[int, int], Any] | None = None,
        limit: int = LIMIT,
    ) -> None:
        self._open_file = open_file
        self._index_of = index_of
        self._limit = limit
        self._lock = threading.Lock()
        self._open: OrderedDict[int, _OpenFile] = OrderedDict()

    @contextlib.contextmanager
    def opened(self, code: int) -> Iterator[tuple[int, Any]]:
        """The descriptor (for positioned reads only) and index of shard `code`, while the block lasts.

        When reading fails in the block, the next one opens the file anew: a handle may have gone stale, after a
        file server's fail-over for instance, though the file is sound.
        """
        file = self._acquire(code)
        if file is None:
            file = self._add(code)
        try:
            yield file.descriptor, file.index
        except (OSError, ValueError):
            self._dismiss(code, file)
            raise
        finally:
            self._release(file)

    def _acquire(self, code: int) -> _OpenFile | None:
        with self._lock:
            file = self._open.get(code)
            if file is not None:
                file.users += 1
                self._open.move_to_end(code)
            return file

    def _add(self, code: int) -> _OpenFile:
        # Opened outside the lock: on a network file system this takes as long as many reads.
        descriptor = self._open_file(code)
        try:
            index = self._index_of(code, descriptor) if self._index_of else None
        except BaseException:
            os.close(descriptor)
            raise
        with self._lock:
            known = self._open.get(code)
            if known is not None:  # another thread was quicker
                os.close(descriptor)
                known.users += 1
                return known
            file = self._open[code] = _OpenFile(descriptor, index, users=1)
            while len(self._open) > self._limit:
                _, oldest = self._open.popitem(last=False)
                oldest.dismissed = True
                if oldest.users == 0:
                    os.close(oldest.descriptor)
            return file

    def _dismiss(self, code: int, file: _OpenFile) -> None:
        with self._lock:
            file.dismissed = True
            if self._open.get(code) is file:
                del self._open[code]

    def _release(self, file: _OpenFile) -> None:
        with self._lock:
            file.users -= 1
            if file.dismissed and file.users == 0:
                os.close(file.descriptor)

    def close(self) -> None:
        """Close every file; those in use, as soon as they no longer are."""
        with self._lock:
            for file in self._open.values():
                file.dismissed = True
                if file.users == 0:
                    os.close(file.descriptor)
            self._open.clear()


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
