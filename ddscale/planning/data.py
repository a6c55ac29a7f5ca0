"""What a recipe's stores hold, where they are at hand: read from their indexes alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ddscale.store import layout, open_store
from ddscale.stream.settings import StreamSettings


@dataclass(frozen=True)
class DataAtHand:
    """windows: of one pass over the training split. channels: mean of a recording's, by windows. sfreq: Hz."""

    windows: int
    channels: float
    sfreq: float


def data_at_hand(settings: StreamSettings) -> DataAtHand | None:
    """One pass over the training windows; None where a store is not there, or lies behind a URL.

    Raises ValueError for stores that the recipe could not be trained on, as training would.
    """
    from ddscale.stream.windows import WindowIndex

    if any(layout.is_url(address) for address in settings.stores):
        return None
    try:
        stores = [open_store(address) for address in settings.stores]
    except FileNotFoundError:
        return None
    index = WindowIndex(stores, "train", settings)
    # A sample of windows is enough for a mean: there may be hundreds of millions.
    some = np.linspace(0, len(index) - 1, min(len(index), 10_000)).astype(np.int64)
    return DataAtHand(len(index), float(index.locate(some).channels.mean()), index.sfreq)
