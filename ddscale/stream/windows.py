"""Which windows there are: counted per record, found again by number, never listed one by one.

R kept records. A window is known by its number; records are in the order dataset name, store, row of the
store's index, and windows of a record in time, so that a dataset is one range of numbers and so is a shard.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddscale.store import Store
from ddscale.store.identity import SPLITS
from ddscale.stream.settings import StreamSettings


@dataclass(frozen=True)
class Located:
    """Windows found: arrays of one length."""

    store: NDArray[np.int64]
    """Number of the store in the recipe's list."""
    row: NDArray[np.int64]
    """Row of the record in its store's index."""
    start: NDArray[np.int64]
    """First sample of the window within its record."""
    dataset: NDArray[np.int64]
    """Number in `WindowIndex.datasets`."""
    channels: NDArray[np.int64]
    """Channels of the record."""
    length: NDArray[np.int64]
    """Samples to read: those of a window, or fewer of a trial that is shorter."""


class WindowIndex:
    """The windows of one split of several stores.

    Holds 12 bytes per record (window count so far, row) and nothing per window; the columns it needs besides
    stay in the stores, shared by all indexes over them.
    Raises ValueError for stores that do not go together, a rate the recipe does not want, an empty split, and
    (unless trials are cut) records that are all shorter than a window.
    """

    def __init__(self, stores: Sequence[Store], split: str, settings: StreamSettings):
        if split not in SPLITS:
            raise ValueError(f"No split {split!r}; a store has {', '.join(SPLITS)}.")
        _check_stores(stores, settings)
        self.split = split
        self.window_samples = settings.window_samples
        self.hop_samples = settings.hop_samples
        self.trials = settings.cut == "trials"
        self.sfreq = float(stores[0].sfreq)
        self.datasets: list[str] = sorted({name for store in stores for name in store.dataset_names})
        self._stores = tuple(stores)
        self._first_row = np.concatenate([[0], np.cumsum([len(store.samples) for store in stores])])

        unmatched = set(settings.blocklist)
        kept = []
        for store in stores:
            wanted = (store.split == SPLITS.index(split)) & self._usable(store)
            if settings.blocklist:
                blocked, matched = _blocked(store, settings.blocklist)
                wanted &= ~blocked
                unmatched -= matched
            kept.append(np.flatnonzero(wanted))
        self.unmatched_blocklist = sorted(unmatched)
        row_type = np.int32 if self._first_row[-1] < 2**31 else np.int64
        self._rows = np.concatenate(
            [(rows + first).astype(row_type) for rows, first in zip(kept, self._first_row, strict=False)]
        )
        if not len(self._rows):
            raise ValueError(self._why_empty(settings))
        number = self._of_records(self._dataset_numbers)
        if (number[1:] < number[:-1]).any():
            by_dataset = np.argsort(number, kind="stable")
            self._rows, number = self._rows[by_dataset], number[by_dataset]
        samples = self._of_records(lambda store: store.samples)
        if self.trials:
            self._ends = np.arange(1, len(samples) + 1)
        else:
            self._ends = np.cumsum((samples - self.window_samples) // self.hop_samples + 1, dtype=np.int64)
        records_until = np.searchsorted(number, np.arange(len(self.datasets) + 1))
        self._bounds = np.where(records_until > 0, self._ends[records_until - 1], 0)

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def records(self) -> int:
        """Records that give at least one window."""
        return len(self._rows)

    @property
    def max_channels(self) -> int:
        """Most channels of any record that gives windows."""
        return int(self._of_records(lambda store: store.channels).max())

    def windows_of(self, dataset: int) -> range:
        """Window numbers of one dataset."""
        return range(int(self._bounds[dataset]), int(self._bounds[dataset + 1]))

    def locate(self, windows: NDArray[np.int64]) -> Located:
        """Find windows by number.

        windows: int64 array (n,), each 0 <= number < len(self). About a binary search each, no Python per window.
        """
        record = np.searchsorted(self._ends, windows, side="right")
        before = np.where(record > 0, self._ends[record - 1], 0)
        global_row = self._rows[record].astype(np.int64)
        store = np.searchsorted(self._first_row, global_row, side="right") - 1
        row = global_row - self._first_row[store]
        channels = np.empty(len(windows), np.int64)
        length = np.full(len(windows), self.window_samples, np.int64)
        for i, opened in enumerate(self._stores):
            here = store == i
            channels[here] = opened.channels[row[here]]
            if self.trials:
                length[here] = np.minimum(opened.samples[row[here]], self.window_samples)
        return Located(
            store=store,
            row=row,
            start=(windows - before) * self.hop_samples,
            dataset=np.searchsorted(self._bounds, windows, side="right") - 1,
            channels=channels,
            length=length,
        )

    def shard_edges(self) -> NDArray[np.int64]:
        """Window numbers where another shard begins, with 0 and len(self) at the ends: ascending int64."""
        codes = self._of_records(lambda store: store.shard)
        first_rows_passed = np.searchsorted(self._first_row, self._rows, side="right")
        new = np.flatnonzero((np.diff(codes) != 0) | (np.diff(first_rows_passed) != 0)) + 1
        return np.concatenate([[0], self._ends[new - 1], [len(self)]]).astype(np.int64)

    def _usable(self, store: Store) -> NDArray[np.bool_]:
        """Records that windows can be cut from."""
        usable: NDArray[np.bool_] = store.is_trial if self.trials else store.samples >= self.window_samples
        return usable

    def _dataset_numbers(self, store: Store) -> NDArray[np.int16]:
        own = np.array([self.datasets.index(name) for name in store.dataset_names], np.int16)
        return own[store.dataset]

    def _why_empty(self, settings: StreamSettings) -> str:
        names = ", ".join(store.address for store in self._stores)
        if self.trials and not any(store.is_trial.any() for store in self._stores):
            return (
                f"{names} holds no trials, only continuous recordings: set data.cut: sliding, or ingest a source that "
                "says what was presented when (`events`, for example)."
            )
        if self.trials and not any(
            ((store.split == SPLITS.index(self.split)) & store.is_trial).any() for store in self._stores
        ):
            return (
                f"Split {self.split!r} of {names} has no trial. Set the ingest recipe's splits so that pictures or "
                "subjects fall into it (splits.val_images, splits.test_images), and run the ingest again."
            )
        lengths = [
            np.where(store.split == SPLITS.index(self.split), store.samples, 0) for store in self._stores
        ]
        longest = max(int(samples.max(initial=0)) for samples in lengths)
        if longest == 0:
            counts = {
                name: sum(int((store.split == code).sum()) for store in self._stores)
                for code, name in enumerate(SPLITS)
            }
            there = ", ".join(f"{name} {count}" for name, count in counts.items())
            return (
                f"Split {self.split!r} of {names} has no record (records by split: {there}). Ingest more subjects, "
                "or set the ingest recipe's split fractions or subjects so that some fall into it."
            )
        if self.trials or longest >= self.window_samples:
            return (
                f"The blocklist leaves no record in split {self.split!r} of {names}: "
                "ingest other subjects or shorten data.blocklist."
            )
        at = next(i for i, samples in enumerate(lengths) if samples.max(initial=0) == longest)
        row = int(lengths[at].argmax())
        key = self._stores[at].key(row)
        return (
            f"No record of split {self.split!r} in {names} is as long as a window ({self.window_samples} samples, "
            f"{self.window_samples / self.sfreq:g} s): the longest, {key}, has {longest} ({longest / self.sfreq:g} s). "
            f"Set data.window_samples to at most {longest}, or ingest longer recordings."
        )

    def _of_records(self, column: Callable[[Store], NDArray[Any]]) -> NDArray[Any]:
        """A column of the stores for every kept record."""
        columns = [column(store) for store in self._stores]
        if len(columns) == 1:
            return columns[0][self._rows]
        values = np.empty(len(self._rows), columns[0].dtype)
        for i, one in enumerate(columns):
            here = (self._rows >= self._first_row[i]) & (self._rows < self._first_row[i + 1])
            values[here] = one[self._rows[here] - self._first_row[i]]
        return values


def _blocked(store: Store, blocklist: Sequence[str]) -> tuple[NDArray[np.bool_], set[str]]:
    """Which rows of a store the blocklist covers, and which of its entries cover any."""
    blocked, matched = np.zeros(len(store.samples), bool), set()
    for entry in blocklist:
        # A store may refuse names it cannot rule out; those of other stores' datasets it can.
        if entry.partition("/")[0] in store.dataset_names:
            hit = store.rows_matching([entry])
            blocked |= hit
            if hit.any():
                matched.add(entry)
    return blocked, matched


def _check_stores(stores: Sequence[Store], settings: StreamSettings) -> None:
    if not stores:
        raise ValueError("No store to read: name at least one in data.stores.")
    first = stores[0]
    for number, store in enumerate(stores):
        for earlier in stores[:number]:
            if store.fingerprint == earlier.fingerprint:
                raise ValueError(
                    f"{earlier.address} and {store.address} are the same store (fingerprint {store.fingerprint[:16]}): "
                    "name it once. To see a dataset more often give it a weight."
                )
        if settings.sfreq is not None and not math.isclose(store.sfreq, settings.sfreq, rel_tol=1e-9):
            raise ValueError(
                f"Store {store.address} was built at {store.sfreq:g} Hz and the recipe asks for {settings.sfreq:g} Hz: "
                f"ingest again with preprocessing.sfreq: {settings.sfreq:g}, or set data.sfreq: {store.sfreq:g} "
                f"(a window then lasts {settings.window_samples / store.sfreq:g} s)."
            )
        for what, unit, remedy in (
            ("sfreq", " Hz", "preprocessing.sfreq"),
            ("dtype", "", "storage.dtype"),
            ("step", " µV", "storage.step_uV"),
            ("unit", "", "sources"),
        ):
            here, there = getattr(store, what), getattr(first, what)
            if here != there:
                raise ValueError(
                    f"Stores {first.address} and {store.address} cannot be read together: {what} {there}{unit} and "
                    f"{here}{unit}. Ingest one of them again with the other's {remedy}, or train on one."
                )
