"""Micro-batches on the host: windows of different channel counts packed one after another, nothing padded.

B windows of a micro-batch, T samples of a window, C channels of a recording.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ddscale.store import Store
from ddscale.stream.order import Assignments
from ddscale.stream.unreadable import Fault
from ddscale.stream.window_reads import WindowRead, WindowReads
from ddscale.stream.windows import Located


@dataclass(frozen=True)
class Group:
    """Windows of one channel count, contiguous in the packed buffer."""

    channels: int
    first: int
    """Packed number of the group's first window."""
    count: int
    offset: int
    """Element of the packed buffer where the group begins; window j of it at offset + j * T * channels."""


@dataclass(frozen=True)
class Packing:
    """Where each sample of a micro-batch lies in its packed buffer.

    rows: (B,) int64, packed place -> sample; ascending within a group.
    offsets: (B,) int64, sample -> first element of its window.
    """

    groups: tuple[Group, ...]
    rows: NDArray[np.int64]
    offsets: NDArray[np.int64]
    size: int


def pack(channels: NDArray[np.integer], window_samples: int) -> Packing:
    """Plan a packed buffer: windows grouped by ascending channel count, in sample order within a group.

    channels: (B,) channel count of each sample's recording.
    """
    rows = np.argsort(channels, kind="stable").astype(np.int64)
    sizes = channels[rows].astype(np.int64) * window_samples
    starts = np.concatenate([[0], np.cumsum(sizes)])
    offsets = np.empty(len(rows), np.int64)
    offsets[rows] = starts[:-1]
    counts, firsts, repeats = np.unique(channels[rows], return_index=True, return_counts=True)
    groups = tuple(
        Group(channels=int(c), first=int(first), count=int(n), offset=int(starts[first]))
        for c, first, n in zip(counts, firsts, repeats, strict=True)
    )
    return Packing(groups, rows, offsets, int(starts[-1]))


@dataclass
class HostBatch:
    """One micro-batch of a rank on the host, samples in the order of their positions.

    `flat` is a view of a buffer that is filled again once the loader is asked for its next step:
    `materialise` copies out of it, anything else that keeps it must clone.
    """

    flat: torch.Tensor
    """Packed windows, time-major (T, C) each: int16 in steps of the store, or float32 µV; pinned under CUDA."""
    groups: tuple[Group, ...]
    """The packed windows by channel count."""
    rows: torch.Tensor
    """(B,) int64: sample number of each packed window."""
    window_samples: int
    """T."""
    channels: torch.Tensor
    """(B,) int64 channels of each sample's recording."""
    positions: torch.Tensor
    """(B,) int64 position in the global order; -1 where a validation batch was filled up."""
    mask_seeds: torch.Tensor
    """(B,) int64, not negative: seed of everything random about the sample."""
    datasets: torch.Tensor
    """(B,) int64 number of the dataset in `Loader.datasets`; -1 where a validation batch was filled up."""
    valid: torch.Tensor
    """(B,) bool: False for a window that could not be read, or fills up a validation batch; its values are 0."""
    images: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    """(B,) int64 row of each sample's picture in `Loader.pictures`, that is in all stores' pictures one after another;
    -1 where none was shown. Left out: none anywhere."""
    lengths: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    """(B,) int64 samples of each window that were recorded; the rest, of a short trial, is 0. Left out: all."""
    short_trials: Literal["pad", "stretch"] = "pad"
    """What `materialise` makes of windows with fewer samples than T."""
    in_flight: Any = field(default=None, repr=False)
    """CUDA event after which `flat` has been copied to the device; set by `materialise`."""

    def __post_init__(self) -> None:
        if not len(self.images):
            self.images = torch.full((len(self),), -1, dtype=torch.int64)
        if not len(self.lengths):
            self.lengths = torch.full((len(self),), self.window_samples, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.rows)

    def window(self, sample: int) -> torch.Tensor:
        """The (T, C) window of one sample as stored, a view into `flat`."""
        place = int((self.rows == sample).nonzero()[0, 0])
        group = next(g for g in self.groups if g.first <= place < g.first + g.count)
        size = self.window_samples * group.channels
        start = group.offset + (place - group.first) * size
        return self.flat[start : start + size].view(self.window_samples, group.channels)


class Slot:
    """A buffer that micro-batches are read into, again and again; pinned when there is a CUDA device."""

    def __init__(self, elements: int, dtype: str):
        self.flat = torch.empty(elements, dtype=getattr(torch, dtype), pin_memory=torch.cuda.is_available())
        self.values = self.flat.numpy()
        self.batch: HostBatch | None = None

    def wait_until_copied(self) -> None:
        """Return once no device copies from the buffer any more."""
        if self.batch is not None and self.batch.in_flight is not None:
            self.batch.in_flight.synchronize()


class Assigning(Protocol):
    """What decides which window is at a position: an `Order`, or one that shuffles nothing."""

    def at(self, positions: NDArray[np.int64]) -> Assignments: ...


class Collator:
    """Reads the windows of a micro-batch into a slot; called by several reader threads at once.

    image_rows: of each store, (R,) row of each record's picture among those of all stores; -1 without.
    retry_s: how long failing reads of a micro-batch are tried again.
    positions_of: number of a micro-batch -> (B,) int64 positions, -1 where there is none (filled up with zeros).
    """

    def __init__(
        self,
        stores: Sequence[Store],
        order: Assigning,
        positions_of: Callable[[int], NDArray[np.int64]],
        datasets: Sequence[str],
        window_samples: int,
        image_rows: Sequence[NDArray[np.integer]] | None = None,
        short_trials: Literal["pad", "stretch"] = "pad",
        retry_s: float = 0.0,
        reads_at_once: int = 1,
    ):
        self._stores = tuple(stores)
        self._order = order
        self._positions_of = positions_of
        self._datasets = tuple(datasets)
        self._window_samples = window_samples
        self._image_rows = image_rows
        self._short_trials = short_trials
        self._read = WindowReads(stores, retry_s, reads_at_once)

    def __call__(self, number: int, slot: Slot) -> tuple[HostBatch, list[Fault]]:
        """Fill the slot with micro-batch `number`; also says which windows could not be read."""
        slot.wait_until_copied()
        positions = self._positions_of(number)
        real = positions >= 0
        assigned = self._order.at(positions[real])
        channels = np.ones(len(positions), np.int64)
        channels[real] = assigned.located.channels
        datasets = np.full(len(positions), -1, np.int64)
        datasets[real] = assigned.located.dataset
        seeds = np.zeros(len(positions), np.int64)
        seeds[real] = assigned.mask_seeds
        images = np.full(len(positions), -1, np.int64)
        if self._image_rows is not None:
            images[real] = self._image_rows_of(assigned.located)
        lengths = np.full(len(positions), self._window_samples, np.int64)
        lengths[real] = assigned.located.length
        packing = pack(channels, self._window_samples)

        valid = real.copy()
        faults = []
        windows = []
        at = assigned.located
        sources = zip(
            np.flatnonzero(real).tolist(),
            at.store.tolist(),
            at.row.tolist(),
            at.start.tolist(),
            at.channels.tolist(),
            at.length.tolist(),
            packing.offsets[real].tolist(),
            strict=True,
        )
        T, values = self._window_samples, slot.values
        for sample, store, row, start, C, length, offset in sources:
            out_TC = values[offset : offset + T * C].reshape(T, C)
            out_TC[length:] = 0
            windows.append(WindowRead(sample, store, row, start, out_TC[:length]))
        for window, error in self._read(windows):
            window.out_TC[...] = 0
            valid[window.sample] = False
            faults.append(
                Fault(
                    int(positions[window.sample]),
                    self._datasets[datasets[window.sample]],
                    self._stores[window.store].key(window.row),
                    str(error),
                )
            )
        for sample in np.flatnonzero(~real).tolist():
            offset = int(packing.offsets[sample])
            values[offset : offset + T] = 0
        slot.batch = HostBatch(
            flat=slot.flat[: packing.size],
            groups=packing.groups,
            rows=torch.from_numpy(packing.rows),
            window_samples=T,
            channels=torch.from_numpy(channels),
            positions=torch.from_numpy(positions),
            mask_seeds=torch.from_numpy(seeds),
            datasets=torch.from_numpy(datasets),
            valid=torch.from_numpy(valid),
            images=torch.from_numpy(images),
            lengths=torch.from_numpy(lengths),
            short_trials=self._short_trials,
        )
        return slot.batch, faults

    def stop(self) -> None:
        """Wait for no failing storage any more."""
        self._read.stop()

    def close(self) -> None:
        """End what reads, once no thread calls any more."""
        self._read.close()

    def _image_rows_of(self, at: Located) -> NDArray[np.int64]:
        assert self._image_rows is not None
        found = np.empty(len(at.row), np.int64)
        for store, rows in enumerate(self._image_rows):
            here = at.store == store
            found[here] = rows[at.row[here]]
        return found
