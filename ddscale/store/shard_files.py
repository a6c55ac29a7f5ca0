"""Open shard files, shared by threads and limited in number."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LIMIT = 256
"""Files kept open at once; far below the usual limit of 1,024 per process."""


@dataclass
class _OpenFile:
    descriptor: int
    index: Any
    users: int = 0
    dismissed: bool = False


class ShardFiles:
    """Descriptors of shard files, opened on demand, the longest unused closed first.

    index_of: what to read from a freshly opened file and keep beside its descriptor.
    """

    def __init__(self, index_of: Callable[[int, int], Any] | None = None, limit: int = LIMIT) -> None:
        self._index_of = index_of
        self._limit = limit
        self._lock = threading.Lock()
        self._open: OrderedDict[int, _OpenFile] = OrderedDict()

    @contextlib.contextmanager
    def opened(self, code: int, path: Path) -> Iterator[tuple[int, Any]]:
        """The descriptor (for positioned reads only) and index of shard `code`, while the block lasts."""
        file = self._acquire(code)
        if file is None:
            file = self._add(code, path)
        try:
            yield file.descriptor, file.index
        finally:
            self._release(file)

    def _acquire(self, code: int) -> _OpenFile | None:
        with self._lock:
            file = self._open.get(code)
            if file is not None:
                file.users += 1
                self._open.move_to_end(code)
            return file

    def _add(self, code: int, path: Path) -> _OpenFile:
        # Opened outside the lock: on a network file system this takes as long as many reads.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
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
