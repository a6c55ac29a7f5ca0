"""The order of windows: a pure function of position, the same on any number of ranks, threads and platforms.

Permutation, repetition and mixture are grain's MapDataset, whose elements here are window numbers: asked for
any position it computes the answer there, so that seeking costs nothing. An epoch of a dataset is one pass
over its windows; positions simply run on into the next, which is permuted anew.
"""

from __future__ import annotations

import difflib
import functools
from dataclasses import dataclass
from fractions import Fraction
from math import gcd, lcm

import numpy as np
from absl import logging as absl_logging
from numpy.typing import NDArray

from ddscale.stream.hashing import mask_seeds, named_seed, stream
from ddscale.stream.settings import StreamSettings
from ddscale.stream.windows import Located, WindowIndex

_verbosity = absl_logging.get_verbosity()
absl_logging.set_verbosity(
    absl_logging.ERROR
)  # grain warns at import that jax, which nobody needs, is missing
import grain  # noqa: E402

absl_logging.set_verbosity(_verbosity)

_MOST_WINDOWS = 2**32 - 1  # grain permutes 32-bit numbers

# grain finds a permuted number by trying 16-bit ones until one is small enough: 3 µs for 100,000 windows or more,
# 20 for 1,000, 200 for 100 and 10,000 for 2. Fewer than this are permuted by the epoch instead.
_FEW_WINDOWS = 2**14


@dataclass(frozen=True)
class Assignments:
    """What is at some positions: arrays of one length."""

    positions: NDArray[np.int64]
    windows: NDArray[np.int64]
    """Window number in the index."""
    located: Located
    """Where those windows are."""
    mask_seeds: NDArray[np.int64]
    """63-bit hash of (seed, position)."""


class Order:
    """position -> window, for all positions from 0 on.

    Without weights every window comes exactly once per len(self) positions. With weights datasets come in exactly
    those proportions, evenly spread, each dataset every window once per pass of its own.
    Raises ValueError for weights that do not fit the datasets, and for more windows than can be permuted.
    """

    def __init__(self, index: WindowIndex, settings: StreamSettings):
        self._index = index
        self._seed = settings.seed
        if settings.weights is None:
            chosen = {"": range(len(index))}
        else:
            shares = _shares_of_datasets(settings.weights, index)
            chosen = {name: index.windows_of(index.datasets.index(name)) for name in shares}
        edges = index.shard_edges() if settings.shuffle == "block" else None
        endless = []
        for name, windows in chosen.items():
            if len(windows) > _MOST_WINDOWS:
                raise ValueError(
                    f"{len(windows):,} windows, and at most {_MOST_WINDOWS:,} can be permuted: "
                    "raise data.window_samples, lower data.overlap, or split the data by data.weights."
                )
            seed = named_seed("ddscale order", settings.seed, name, bits=32)
            if edges is None:
                shuffled = _shuffle(windows, seed)
            else:
                shuffled = _BlockShuffle(windows, edges, settings.block_shards, seed)
            endless.append(shuffled.repeat())
        self._windows_per_epoch = sum(len(windows) for windows in chosen.values())
        if settings.weights is None:
            self._windows = endless[0]
        else:
            mixture = _ExactMixture(list(shares.values()))
            self._windows = grain.MapDataset.select_from_datasets(endless, mixture)

    def __len__(self) -> int:
        """Windows that can be drawn; without weights also the positions of one epoch."""
        return self._windows_per_epoch

    def windows_at(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Window number at each position, int64."""
        windows = self._windows
        return np.array([windows[position] for position in positions.tolist()], np.int64)

    def at(self, positions: NDArray[np.int64]) -> Assignments:
        """Everything decided about some positions.

        positions: int64 array (n,), not negative, in any order.
        """
        windows = self.windows_at(positions)
        return Assignments(positions, windows, self._index.locate(windows), mask_seeds(self._seed, positions))


def _shuffle(windows: range, seed: int) -> grain.MapDataset:
    """Window numbers in an order that is another in each epoch; seed: 32 bits."""
    if len(windows) < _FEW_WINDOWS:
        return _FewShuffled(windows, seed)
    return _Windows(windows).shuffle(seed=seed)


class _Windows(grain.MapDataset):
    """A source of window numbers: grain's own range keeps statistics, which take a quarter of the order's time."""

    def __init__(self, windows: range):
        super().__init__([])
        self._first, self._count = windows.start, len(windows)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> int:  # type: ignore[override]
        return self._first + index % self._count


class _FewShuffled(grain.MapDataset):
    """What grain's shuffle does, for few windows: those of an epoch sorted by a hash of seed, epoch and place."""

    def __init__(self, windows: range, seed: int):
        super().__init__([])
        self._windows = windows
        self._seed = seed
        # Two, so that readers on both sides of the end of an epoch do not take turns computing them.
        self._epoch = functools.lru_cache(maxsize=2)(self._permute)

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, index: int) -> int:  # type: ignore[override]
        epoch, place = divmod(index, len(self._windows))
        return self._windows.start + int(self._epoch(epoch)[place])

    def _permute(self, epoch: int) -> NDArray[np.uint16]:
        return _permutation(len(self._windows), "few", self._seed, epoch).astype(np.uint16)


def _permutation(count: int, *owner: object) -> NDArray[np.int64]:
    """0 ... count - 1 in an order that belongs to `owner`: sorted by a hash."""
    keys = stream(named_seed("ddscale permutation", *owner, bits=64), np.arange(count))
    return np.argsort(keys, kind="stable")


class _ExactMixture(grain.transforms.DatasetSelectionMap):
    """position -> (dataset, position in it), datasets evenly interleaved in the proportions of whole numbers.

    grain's own `mix` rounds proportions to hundredths of the smallest; these are exact: over sum(shares)
    positions each dataset comes share times, and over any stretch it is off by a few positions at most.
    Datasets are the leaves of a balanced tree; each node sends every k-th position to its left half, by the
    floor of k times its proportion, so that a position costs log2(datasets) steps.
    """

    def __init__(self, shares: list[int]):
        sums = [0]
        for share in shares:
            sums.append(sums[-1] + share)
        self._sums = sums

    def __len__(self) -> int:
        return 2**63 - 1

    def __getitem__(self, index: int) -> tuple[int, int]:
        sums, low, high = self._sums, 0, len(self._sums) - 1
        while high - low > 1:
            middle = (low + high) // 2
            left, both = sums[middle] - sums[low], sums[high] - sums[low]
            to_left = index * left // both
            if (index + 1) * left // both > to_left:
                index, high = to_left, middle
            else:
                index, low = index - to_left, middle
        return low, index


class _BlockShuffle(grain.MapDataset):
    """Window numbers shuffled in blocks of shards: shards permuted, windows permuted within each few of them.

    A block's shards come from anywhere, so that it holds recordings of many datasets and people, each epoch others.
    windows: the window numbers of a dataset. edges: window numbers where shards begin, ascending.
    Like grain's shuffle, positions beyond the end continue with the next epoch's permutation. A new epoch costs
    one permutation of the shards (thousands), whatever the number of windows.
    """

    def __init__(self, windows: range, edges: NDArray[np.int64], block_shards: int, seed: int):
        inner = edges[(edges > windows.start) & (edges < windows.stop)].tolist()
        self._firsts = np.array([windows.start, *inner], np.int64)
        self._lengths = np.diff(self._firsts, append=windows.stop)
        self._length = len(windows)
        self._block_shards = block_shards
        self._seed = seed
        super().__init__([])
        self._epoch = functools.lru_cache(maxsize=4)(self._lay_out_epoch)
        self._within = functools.lru_cache(maxsize=64)(self._shuffle_block)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> int:  # type: ignore[override]
        epoch, index = divmod(index, self._length)
        shards, starts = self._epoch(epoch)
        block = (int(starts.searchsorted(index, side="right")) - 1) // self._block_shards
        first, shuffled = self._within(epoch, block)
        place = shuffled[index - first]
        at = int(starts.searchsorted(place, side="right")) - 1
        return int(self._firsts[shards[at]]) + place - int(starts[at])

    def _lay_out_epoch(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Shards in the order of an epoch, and the index at which each begins."""
        shards = _permutation(len(self._firsts), "shards", self._seed, epoch)
        return shards, np.cumsum(self._lengths[shards]) - self._lengths[shards]

    def _shuffle_block(self, epoch: int, block: int) -> tuple[int, grain.MapDataset]:
        """The index at which a block begins, and the indices of the block, shuffled."""
        _, starts = self._epoch(epoch)
        edges = [*starts[:: self._block_shards].tolist(), self._length]
        first, stop = edges[block : block + 2]
        seed = named_seed("ddscale block", self._seed, epoch, block, bits=32)
        return first, _shuffle(range(first, stop), seed)


def _shares_of_datasets(weights: dict[str, float], index: WindowIndex) -> dict[str, int]:
    """Whole-number shares of the datasets with a weight, in the order of their names.

    A weight means what it says in decimals: 0.1 is one tenth, not the nearest binary number.
    """
    unknown = sorted(set(weights) - set(index.datasets))
    if unknown:
        near = difflib.get_close_matches(unknown[0], index.datasets, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else f" There are: {', '.join(index.datasets)}."
        raise ValueError(f"data.weights names {', '.join(map(repr, unknown))}, which no store has.{hint}")
    present = [name for i, name in enumerate(index.datasets) if len(index.windows_of(i))]
    unsaid = [name for name in present if name not in weights]
    if unsaid:
        raise ValueError(
            f"data.weights does not say how much of {', '.join(unsaid)}: give each a weight, 0 to leave it out."
        )
    empty = sorted(name for name, weight in weights.items() if weight and name not in present)
    if empty:
        raise ValueError(
            f"data.weights wants windows of {', '.join(empty)}, which has none in split {index.split!r}: "
            "set its weight to 0, or ingest it so that the split has recordings of it."
        )
    exact = {name: Fraction(repr(weights[name])) for name in sorted(weights) if weights[name]}
    common = lcm(*(weight.denominator for weight in exact.values()))
    whole = {name: int(weight * common) for name, weight in exact.items()}
    shared = gcd(*whole.values())
    return {name: share // shared for name, share in whole.items()}
