"""The loader: what each rank iterates over, step after step, from any position on."""

from __future__ import annotations

import functools
import logging
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddscale.store import Store, open_store
from ddscale.store.shard_cache import ShardCache, default_folder
from ddscale.stream import cache_fit
from ddscale.stream.collation import Collator, HostBatch, Slot
from ddscale.stream.fetch_ahead import FetchAhead
from ddscale.stream.hashing import named_seed
from ddscale.stream.order import Order
from ddscale.stream.pictures import StorePictures, has_pictures
from ddscale.stream.positions import Positions, check_batches
from ddscale.stream.readers import ReadAhead
from ddscale.stream.settings import StreamSettings
from ddscale.stream.unreadable import Fault, Unreadable
from ddscale.stream.windows import Located, WindowIndex

_log = logging.getLogger(__name__)


class Loader:
    """The windows of one rank, as lists of micro-batches, one list a step; endless.

    Global batch number k is positions k * G ... (k + 1) * G - 1 after the start; rank r of W takes r, r + W, r + 2W...
    of them, and its micro-batches are consecutive pieces of that. Epochs follow each other without any boundary.

        with Loader(settings, "train", global_batch_size=64, micro_batch_size=16, rank=0, world_size=2) as loader:
            for micro_batches in loader:
                for batch in micro_batches:
                    x_BTC = materialise(batch, device, loader.step_uv, settings.n_channels, settings.normalisation)

    A step's buffers are filled anew once the next step is asked for.

    stores: opened already, to share them between loaders; by default those the settings name.
    Raises ValueError for stores, split, weights or batch sizes that do not fit, with what to change.
    """

    settings: StreamSettings
    datasets: list[str]
    """Names that `HostBatch.datasets` counts."""
    step_uv: float
    """µV of one step of the windows' integers; 1.0 for float32 stores."""
    sfreq: float
    """Hz."""
    window_s: float
    """Seconds in a window."""
    windows_per_epoch: int
    """Windows of the split; without weights also positions of one epoch."""
    samples_seen: int
    """Positions handed out so far, of all ranks together; the position of the next global batch."""
    waited_s: float
    """Seconds that the caller has waited for data so far."""
    pictures: StorePictures | None
    """What `HostBatch.images` counts; None when no store has pictures."""

    def __init__(
        self,
        settings: StreamSettings,
        split: str = "train",
        *,
        global_batch_size: int,
        micro_batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        start_position: int = 0,
        stores: Sequence[Store] | None = None,
        _windows: int | None = None,
        _to_the_end: bool = False,
    ):
        check_batches(global_batch_size, micro_batch_size, rank, world_size)
        if start_position < 0:
            raise ValueError(f"Position {start_position}: positions count from 0.")
        self.settings = settings
        self._stores = open_stores(settings) if stores is None else stores
        index = WindowIndex(self._stores, split, settings)
        self._order = Order(index, settings)
        if rank == 0 and index.unmatched_blocklist:
            _log.warning(
                "data.blocklist: nothing in the stores is called %s. Check the spelling.",
                ", ".join(index.unmatched_blocklist),
            )
        self.split = split
        self.datasets = index.datasets
        self.step_uv = float(self._stores[0].step) if self._stores[0].dtype == "int16" else 1.0
        self.sfreq = index.sfreq
        self.preprocessing: dict[str, Any] = dict(self._stores[0].manifest.content.filters)
        self.unit = self._stores[0].unit
        self.stores = tuple(self._stores)
        self.window_s = settings.window_samples / index.sfreq
        self.windows_per_epoch = len(self._order)
        self.samples_seen = start_position
        self.waited_s = 0.0
        self._unreadable = Unreadable(settings, rank)
        self.pictures = StorePictures(self._stores) if has_pictures(self._stores) else None
        self._global_batch_size = global_batch_size
        self._micro_batch_size = micro_batch_size
        self._micro_batches = global_batch_size // (world_size * micro_batch_size)
        self._rank, self._world_size = rank, world_size
        self._to_the_end = _to_the_end
        self._end = None if _windows is None else min(_windows, self.windows_per_epoch)
        self._max_channels = index.max_channels
        self._slots: list[Slot] = []
        self._ahead: ReadAhead[Slot, tuple[HostBatch, list[Fault]]] | None = None
        if self._end is None:
            cache_fit.check(self._stores, settings)
        elif rank == 0 and any(store.origin is not None for store in self._stores):
            advice = cache_fit.held_out(self._stores, self.locate(np.arange(self._end)), settings)
            if advice:
                _log.warning("%s", advice)

    @property
    def faults(self) -> list[Fault]:
        """Records this rank could not read, each once."""
        return self._unreadable.faults

    @property
    def unreadable_windows(self) -> int:
        """Windows this rank replaced by zeros."""
        return self._unreadable.windows

    @property
    def beyond_limit(self) -> str | None:
        """Why too much was unreadable, once it was. The step that crosses a limit is still handed out, so that ranks
        can agree on the end and keep a checkpoint; asking for another one raises OSError with this, unless the loader
        was asked to go `to_the_end`."""
        return self._unreadable.beyond_limit

    @classmethod
    def fixed(
        cls,
        settings: StreamSettings,
        split: str = "val",
        *,
        windows: int,
        micro_batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        stores: Sequence[Store] | None = None,
        to_the_end: bool = False,
    ) -> Loader:
        """The same windows whenever it is iterated, one micro-batch a step, for validation.

        windows: how many in all; a sample drawn by the seed from the whole split in natural proportions (whatever the
        mixture that is trained on), or the whole split when it has fewer.
        to_the_end: when too much is unreadable, go on all the same; for ranks that validate together, where an end of
        one would leave the others waiting, and who ask `beyond_limit` afterwards.
        Every rank has the same number of batches: the last are filled up with `valid` False, position -1.
        """
        if windows < 1:
            raise ValueError(f"validation on {windows} windows: ask for at least 1.")
        natural = settings.model_copy(update={"weights": None, "shuffle": "global"})
        return cls(
            natural,
            split,
            global_batch_size=world_size * micro_batch_size,
            micro_batch_size=micro_batch_size,
            rank=rank,
            world_size=world_size,
            stores=stores,
            _windows=windows,
            _to_the_end=to_the_end,
        )

    def __iter__(self) -> Loader:
        if self._end is not None:
            self._go_to(0)
        return self

    def __next__(self) -> list[HostBatch]:
        asked = time.perf_counter()
        if self.beyond_limit is not None and not self._to_the_end:
            self.close()
            raise OSError(self.beyond_limit)
        if self._ahead is None:
            self._ahead = self._read_ahead()
        self._ahead.release()
        step = []
        try:
            for _ in range(self._micro_batches):
                batch, faults = self._ahead.take()
                step.append(batch)
                self._unreadable.note(len(batch), faults)
                if faults and self.beyond_limit is not None:
                    # The run is to end: the others must not wait for this rank's storage any longer.
                    self._collator.stop()
        except BaseException:
            self.close()
            raise
        self.samples_seen += self._global_batch_size
        self.waited_s += time.perf_counter() - asked
        return step

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, JSON-able: how far it is, and what the order depends on."""
        return {
            "samples_seen": self.samples_seen,
            "stores": [{"path": store.address, "fingerprint": store.fingerprint} for store in self._stores],
            "order": self._order_settings(),
            "probe": self._probe,
        }

    def of_windows(self) -> dict[str, Any]:
        """What a model that is trained on these windows has to say of them, JSON-able.

        preprocessing: only where all stores were filtered alike.
        """
        filters = [dict(store.content.filters) for store in self._stores]
        known = bool(filters[0]) and all(others == filters[0] for others in filters)
        return {
            "sfreq": self.sfreq,
            "normalisation": self.settings.normalisation.model_dump(mode="json"),
            "stores": self.state()["stores"],
            **({"preprocessing": filters[0]} if known else {}),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken; the number of ranks and the batch size may have changed since.

        Raises ValueError when positions would now mean other windows: another store, other settings, another grain.
        """
        before = [entry["fingerprint"] for entry in state["stores"]]
        now = [store.fingerprint for store in self._stores]
        if before != now:
            raise ValueError(
                f"The stores are not those of the checkpoint. Then: {_name_stores(state['stores'])}. "
                f"Now: {_name_stores(self.state()['stores'])}. The order of windows rests on them: "
                "give data.stores as they were, or start a new run from the checkpoint's weights."
            )
        mine = self._order_settings()
        changed = [
            f"data.{key} was {state['order'].get(key)!r} and is {value!r}"
            for key, value in mine.items()
            if state["order"].get(key) != value
        ]
        # Said only where it is not the default, so that runs begun before there were trials can be resumed.
        if "cut" in state["order"] and "cut" not in mine:
            changed.append(f"data.cut was {state['order']['cut']!r} and is {self.settings.cut!r}")
        if changed:
            raise ValueError(
                f"The order of windows is not the checkpoint's: {'; '.join(changed)}. "
                "Set it back to resume, or start a new run from the checkpoint's weights."
            )
        if state["probe"] != self._probe:
            raise ValueError(
                "The same settings no longer give the checkpoint's order of windows, so grain's permutation or "
                "ddscale's blocks must have changed: install the versions of grain and ddscale in the run's "
                "environment.json to resume this run."
            )
        self._go_to(int(state["samples_seen"]))

    def locate(self, positions: NDArray[np.int64]) -> Located:
        """Where the windows at some positions (int64, not negative) lie: store, row of its index, first sample."""
        return self._order.at(positions).located

    def close(self) -> None:
        """Stop reading ahead and end the reader threads; iterating again starts them anew."""
        if self._ahead is not None:
            self._closing()
            self._ahead = None

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _go_to(self, position: int) -> None:
        self.close()
        self.samples_seen = position

    def _read_ahead(self) -> ReadAhead[Slot, tuple[HostBatch, list[Fault]]]:
        settings, end = self.settings, self._end
        threads = settings.reader_threads
        if not self._slots:
            # A step in the caller's hands, and another being read: or the device would wait for all but the first
            # micro-batches of every step.
            count = self._micro_batches + (max(settings.prefetch, self._micro_batches) if threads else 0)
            size = self._micro_batch_size * settings.window_samples * self._max_channels
            self._slots = [Slot(size, self._stores[0].dtype) for _ in range(count)]
        self._collator = collator = Collator(
            self._stores,
            self._order,
            Positions(
                self.samples_seen,
                end,
                self._global_batch_size,
                self._micro_batch_size,
                self._rank,
                self._world_size,
            ),
            self.datasets,
            settings.window_samples,
            None if self.pictures is None else self.pictures.rows_of_records,
            settings.short_trials,
            0.0 if self.beyond_limit is not None else settings.retry_s,
            settings.reads_at_once,
        )
        last = None if end is None else -(-(end - self.samples_seen) // self._global_batch_size)
        ahead = ReadAhead(collator, self._slots, threads, last)
        # A loader that is dropped without close() must not leave threads behind, nor must the end of the program.
        fetching = None
        if end is None and any(store.origin is not None for store in self._stores):
            me = weakref.proxy(self)  # the thread must not keep the loader alive
            fetching = FetchAhead(
                self._stores, self._order, settings, lambda: int(me.samples_seen), self._rank
            )
        self._closing = weakref.finalize(self, _end_reading, collator, ahead, fetching)
        return ahead

    def _order_settings(self) -> dict[str, Any]:
        keys = ["window_samples", "overlap", "weights", "shuffle", "seed"]
        if self.settings.shuffle == "block":
            keys.append("block_shards")
        if self.settings.cut == "trials":
            keys += ["cut", "short_trials"]
        ours = {key: getattr(self.settings, key) for key in keys}
        return {"split": self.split, **ours, "blocklist": sorted(set(self.settings.blocklist))}

    @functools.cached_property
    def _probe(self) -> int:
        """A hash of the order's beginning: notices a permutation that changed underneath."""
        return named_seed(*self._order.windows_at(np.arange(64)).tolist(), bits=32)


def _end_reading(
    collator: Collator, ahead: ReadAhead[Slot, tuple[HostBatch, list[Fault]]], fetching: FetchAhead | None
) -> None:
    collator.stop()
    if fetching is not None:
        fetching.stop()
    ahead.close()
    collator.close()


def open_stores(settings: StreamSettings, check_index: bool = True) -> list[Store]:
    """The stores the settings name, in that order; takes and raises what `open_store` does."""
    cache = ShardCache(
        Path(settings.cache.folder) if settings.cache.folder else default_folder(), settings.cache.max_gb
    )
    return [open_store(path, cache, check_index) for path in settings.stores]


def _name_stores(entries: Sequence[Mapping[str, str]]) -> str:
    return ", ".join(f"{entry['path']} ({entry['fingerprint'][:16]})" for entry in entries)
