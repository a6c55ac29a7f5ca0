"""Micro-batches on the host: windows of different channel counts packed one after another, nothing padded.

B samples, T samples of a window, C channels of a recording.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


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
    in_flight: Any = field(default=None, repr=False)
    """CUDA event after which `flat` has been copied to the device; set by `materialise`."""

    def __len__(self) -> int:
        return len(self.rows)

    def window(self, sample: int) -> torch.Tensor:
        """The (T, C) window of one sample as stored, a view into `flat`."""
        place = int((self.rows == sample).nonzero()[0, 0])
        group = next(g for g in self.groups if g.first <= place < g.first + g.count)
        size = self.window_samples * group.channels
        start = group.offset + (place - group.first) * size
        return self.flat[start : start + size].view(self.window_samples, group.channels)
