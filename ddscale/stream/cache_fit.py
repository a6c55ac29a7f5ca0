"""Does the node's cache hold what an order of windows needs of remote stores at a time?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ddscale.store import Store
from ddscale.stream.settings import StreamSettings
from ddscale.stream.windows import Located


def check(stores: Sequence[Store], settings: StreamSettings) -> None:
    """Refuse an order that would fetch shards again and again: ValueError with the remedy."""
    remote = [store for store in stores if store.origin is not None]
    if not remote:
        return
    whole, most = sum(map(shard_gb, remote)), settings.cache.max_gb
    if whole <= most:
        return
    names = ", ".join(store.address for store in remote)
    if settings.shuffle == "global":
        raise ValueError(
            f"data.shuffle: global draws windows from all of {names} ({whole:,.3g} GB), and data.cache.max_gb is "
            f"{most:g}: nearly every window would have its shard fetched again. Set data.shuffle: block, or "
            f"data.cache.max_gb to {whole * 1.05:.3g}."
        )
    # Ranks are at the end of one block while others are in the next one.
    mixed = 1 if settings.weights is None else sum(weight > 0 for weight in settings.weights.values())
    of_one = max(shard_gb(store) / len(store.shard_names) for store in remote)
    needed = 2 * mixed * settings.block_shards * of_one
    if needed > most:
        fitting = int(most / (2 * mixed * of_one))
        lower = f"Set data.block_shards to at most {fitting}, or" if fitting else "Set"
        raise ValueError(
            f"Blocks of data.block_shards: {settings.block_shards} shards of {names} need {needed:.3g} GB (this one "
            f"and the next{f', of {mixed} datasets' if mixed > 1 else ''}), and data.cache.max_gb is {most:g}. {lower} "
            f"data.cache.max_gb to {needed:.3g}."
        )


def held_out(stores: Sequence[Store], at: Located, settings: StreamSettings) -> str | None:
    """What to tell a person whose held-out windows lie in so many shards that they push the others out."""
    needed, shards = 0.0, 0
    for number, store in enumerate(stores):
        if store.origin is not None:
            used = len(np.unique(store.shard[at.row[at.store == number]]))
            needed += used * shard_gb(store) / len(store.shard_names)
            shards += used
    if needed <= settings.cache.max_gb / 2:
        return None
    return (
        f"The {len(at.row):,} held-out windows lie in {shards:,} shards of {needed:,.3g} GB, and data.cache.max_gb is "
        f"{settings.cache.max_gb:g}: validation will push out what training reads, and fetch much of it again. "
        f"Validate on fewer windows, or set data.cache.max_gb to {2 * needed:.3g}."
    )


def shard_gb(store: Store) -> float:
    """Size of all shards with EEG, from the index: headers and notes, a few per cent, are left out."""
    return float(store.lengths().sum(dtype=np.int64)) / 1e9
