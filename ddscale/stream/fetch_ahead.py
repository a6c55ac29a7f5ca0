"""Shards of remote stores fetched before their windows are asked for: the order says which come next."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ddscale.store import Store
from ddscale.store.shard_files import ReadError
from ddscale.stream.order import Order
from ddscale.stream.settings import StreamSettings

_log = logging.getLogger(__name__)

_PER_SHARD = 16
"""Positions looked at for each shard of a block: one that none of them hits is fetched when it is read."""
_PAUSE_S = 5.0


class FetchAhead:
    """A thread that keeps the node's cache a block ahead of the position; harmless when it fails.

    position: of the next global batch. rank: ranks of a node begin at different shards, and so share the work.
    """

    def __init__(
        self,
        stores: Sequence[Store],
        order: Order,
        settings: StreamSettings,
        position: Callable[[], int],
        rank: int,
    ) -> None:
        self._stores = tuple(stores)
        self._order = order
        self._position = position
        self._rank = rank
        mixed = 1 if settings.weights is None else sum(weight > 0 for weight in settings.weights.values())
        shards = sum(len(store.shard_names) for store in stores)
        self._shards = min(shards, settings.block_shards * mixed)
        self._ahead = max(1, len(order) * self._shards // shards)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, name="ddscale-fetch-ahead", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread; what it is fetching is finished first."""
        self._stopped.set()
        self._thread.join()

    def _work(self) -> None:
        try:
            while not self._stopped.is_set():
                self._fetch()
                self._stopped.wait(_PAUSE_S)
        except ReferenceError:
            return  # the loader was dropped
        except Exception:
            _log.exception("Fetching ahead has ended; shards are fetched as they are read.")

    def _fetch(self) -> None:
        coming = self._coming()
        first = self._rank * len(coming) // 8 % max(1, len(coming))  # ranks of a node are often eight
        for store, code in coming[first:] + coming[:first]:
            if self._stopped.is_set():
                return
            try:
                self._stores[store].fetch(code)
            except ReadError:
                return  # told when it is read

    def _coming(self) -> list[tuple[int, int]]:
        """(store, shard) of the next block's length of positions that the cache lacks, in the order they come."""
        count = min(self._ahead, _PER_SHARD * self._shards)
        positions: NDArray[np.int64] = self._position() + np.arange(count) * self._ahead // count
        at = self._order.at(positions).located
        found: dict[tuple[int, int], None] = {}
        for store, row in zip(at.store.tolist(), at.row.tolist(), strict=True):
            if self._stores[store].origin is not None:
                found[store, int(self._stores[store].shard[row])] = None
        return [(store, code) for store, code in found if not self._stores[store].holds(code)]
