"""Reading the windows of a micro-batch, again and again while the storage fails. T samples, C channels."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from ddscale.store import Store
from ddscale.store.retrying import delays
from ddscale.store.shard_files import ReadError


class WindowRead(NamedTuple):
    """A window to be read."""

    sample: int
    """Its place in the micro-batch."""
    store: int
    """Number of its store."""
    row: int
    start: int
    out_TC: np.ndarray
    """Where its samples go."""


class Unread(NamedTuple):
    """A window that could not be read."""

    window: WindowRead
    error: ReadError


class WindowReads:
    """Reads windows for all reader threads of a loader.

    at_once: reads of a micro-batch under way at a time; they share the threads of the loader's micro-batches.

    A read that the storage fails is tried again: the failed ones of a micro-batch together, for `retry_s` in all,
    so that an outage costs a micro-batch that long and not each of its windows. A shard that stays unreadable
    meanwhile is not waited for again until a read of it succeeds.
    """

    def __init__(self, stores: Sequence[Store], retry_s: float, at_once: int) -> None:
        self._stores = tuple(stores)
        self._retry_s = retry_s
        self._at_once = at_once
        self._pool = ThreadPoolExecutor(at_once, "ddscale-reads") if at_once > 1 else None
        self._stopped = threading.Event()
        self._given_up: set[tuple[int, int]] = set()

    def stop(self) -> None:
        """Wait for no storage any more: nobody wants the windows."""
        self._stopped.set()

    def close(self) -> None:
        """End the threads, once no reader calls any more."""
        if self._pool is not None:
            self._pool.shutdown()

    def __call__(self, windows: Iterable[WindowRead]) -> list[Unread]:
        """Fill every window's `out_TC`; those that could not be read. Other failures are raised and name the record."""
        began = time.monotonic()
        failed, lost = self._read_at_once(list(windows)), []
        for delay in delays(self._retry_s):
            lost += [one for one in failed if not self._may_recover(one)]
            failed = [one for one in failed if self._may_recover(one)]
            if not failed or self._stopped.wait(delay):
                break
            failed = self._read_at_once([one.window for one in failed])
            if time.monotonic() - began > self._retry_s:  # failing itself may take long
                break
        if not self._stopped.is_set():
            self._given_up |= {self._shard(one.window) for one in failed if one.error.transient}
        return sorted(lost + failed, key=lambda one: one.window.sample)

    def _may_recover(self, unread: Unread) -> bool:
        return unread.error.transient and self._shard(unread.window) not in self._given_up

    def _read_at_once(self, windows: list[WindowRead]) -> list[Unread]:
        # Windows of a shard one after another, as they lie: a file is opened once, and a disk need not go back.
        windows = sorted(windows, key=lambda window: (window.store, window.row, window.start))
        if self._pool is None or len(windows) < 2:
            return self._read(windows)
        size = -(-len(windows) // self._at_once)
        parts = [windows[first : first + size] for first in range(0, len(windows), size)]
        return [one for part in self._pool.map(self._read, parts) for one in part]

    def _read(self, windows: Iterable[WindowRead]) -> list[Unread]:
        failed = []
        for window in windows:
            store = self._stores[window.store]
            start, stop = window.start, window.start + len(window.out_TC)
            try:
                store.read_into(window.row, start, stop, window.out_TC)
            except ReadError as error:
                failed.append(Unread(window, error))
            except Exception as error:
                error.add_note(f"while reading samples {start} to {stop} of record {store.key(window.row)}")
                raise
            else:
                if self._given_up:
                    self._given_up.discard(self._shard(window))
        return failed

    def _shard(self, window: WindowRead) -> tuple[int, int]:
        return window.store, int(self._stores[window.store].shard[window.row])
