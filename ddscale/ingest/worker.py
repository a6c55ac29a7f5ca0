"""What a worker process of this machine does before its first task; Dask calls `dask_setup` in each."""

from __future__ import annotations

import signal
from typing import Any


def dask_setup(worker: Any) -> None:
    """Leave Ctrl-C to the process that started the ingest: a terminal sends it to all, and each would complain."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
