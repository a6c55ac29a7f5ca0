"""Which positions of the order a rank reads in which micro-batch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class Positions:
    """Number of a rank's micro-batch, counted from `start` -> its positions."""

    def __init__(
        self, start: int, end: int | None, global_batch: int, micro_batch: int, rank: int, world_size: int
    ):
        self._start, self._end = start, end
        self._global_batch = global_batch
        self._per_step = global_batch // (world_size * micro_batch)
        self._in_batch = rank + world_size * np.arange(micro_batch, dtype=np.int64)
        self._stride = world_size * micro_batch

    def __call__(self, number: int) -> NDArray[np.int64]:
        step, part = divmod(number, self._per_step)
        positions = self._start + step * self._global_batch + part * self._stride + self._in_batch
        return positions if self._end is None else np.where(positions < self._end, positions, -1)


def check_batches(global_batch_size: int, micro_batch_size: int, rank: int, world_size: int) -> None:
    """Raises ValueError, with sizes that would do, when a global batch cannot be divided among the ranks."""
    if micro_batch_size < 1 or global_batch_size < 1:
        raise ValueError(
            f"Batches of {global_batch_size} in pieces of {micro_batch_size}: both must be at least 1."
        )
    if not 0 <= rank < world_size:
        raise ValueError(f"Rank {rank} of {world_size}: ranks count from 0 to world size - 1.")
    at_once = world_size * micro_batch_size
    if global_batch_size % at_once:
        lower, upper = global_batch_size // at_once * at_once, -(-global_batch_size // at_once) * at_once
        near = f"{lower} or {upper}" if lower else f"{upper}"
        raise ValueError(
            f"A global batch of {global_batch_size} cannot be divided among {world_size} ranks in micro-batches of "
            f"{micro_batch_size} ({at_once} at once): set global_batch_size to {near}, or change micro_batch_size."
        )
