"""How long a failing storage is waited for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from ddscale.store.shard_files import ReadError

Result = TypeVar("Result")

PATIENCE_S = 60.0
"""A file server's fail-over or a restarted connection takes seconds to a minute."""


def delays(total_s: float) -> Iterator[float]:
    """Seconds to wait before each further try: 1, 2, 4... and the rest of `total_s`."""
    delay, left = 1.0, total_s
    while left > 0:
        # What would be left for the last try alone is waited for with this one.
        wait = left if left < 1.5 * delay else delay
        yield wait
        left -= wait
        delay *= 2


def patiently(call: Callable[[], Result], total_s: float = PATIENCE_S) -> Result:
    """What `call` returns; a transient ReadError is tried again until `total_s` have been waited."""
    for delay in delays(total_s):
        try:
            return call()
        except ReadError as error:
            if not error.transient:
                raise
        time.sleep(delay)
    return call()
