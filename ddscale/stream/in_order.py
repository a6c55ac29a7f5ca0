"""Every window of a split once, in the order in which it lies in the stores: for what is computed window by window."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from ddscale.store import Store
from ddscale.stream.collation import Collator, HostBatch, Slot
from ddscale.stream.order import Assignments
from ddscale.stream.positions import Positions
from ddscale.stream.readers import ReadAhead
from ddscale.stream.settings import StreamSettings
from ddscale.stream.windows import Located, WindowIndex


class InOrder:
    """An `Order` that shuffles nothing: the window at a position is the one of that number.

    Seeds are all 0, so that of recordings with more channels than the model takes every window keeps the same ones.
    """

    def __init__(self, index: WindowIndex) -> None:
        self._index = index

    def at(self, positions: NDArray[np.int64]) -> Assignments:
        """Everything decided about some positions: int64 array, 0 <= position < windows."""
        return Assignments(
            positions, positions, self._index.locate(positions), np.zeros(len(positions), np.int64)
        )


def batches_in_order(
    index: WindowIndex, stores: Sequence[Store], settings: StreamSettings, batch_size: int
) -> Iterator[tuple[HostBatch, Located]]:
    """Batches of windows and where they lie; the last is filled up with `valid` False behind its windows.

    index: over these stores. A batch's buffer is filled anew once the next is asked for.
    Raises OSError naming the record when a window cannot be read within `settings.retry_s`.
    """
    count = -(-len(index) // batch_size)
    order = InOrder(index)
    collator = Collator(
        stores,
        order,
        Positions(0, len(index), batch_size, batch_size, 0, 1),
        index.datasets,
        settings.window_samples,
        short_trials=settings.short_trials,
        retry_s=settings.retry_s,
        reads_at_once=settings.reads_at_once,
    )
    size = batch_size * settings.window_samples * index.max_channels
    slots = [Slot(size, stores[0].dtype) for _ in range(1 + max(1, settings.reader_threads))]
    ahead = ReadAhead(collator, slots, settings.reader_threads, count)
    try:
        for _ in range(count):
            batch, faults = ahead.take()
            if faults:
                raise OSError(f"{faults[0].record} could not be read: {faults[0].cause}")
            positions = batch.positions.numpy()
            yield batch, index.locate(positions[positions >= 0])
            ahead.release()
    finally:
        collator.stop()
        ahead.close()
        collator.close()
