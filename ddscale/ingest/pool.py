"""Where the work of an ingest is done: in this process, on processes of this machine, or on a Dask cluster.

All three take tasks and say when they are done, one at a time, in whatever order they finish.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol


class WorkerDied(RuntimeError):
    """The process that ran a task is gone: it crashed, or was ended for using too much memory."""


class TookTooLong(RuntimeError):
    """A task ran longer than tasks may. Its process has been ended: nothing of it runs on."""


@dataclass(frozen=True)
class Finished:
    """A task that is done, with the error it ended with."""

    name: int
    error: BaseException | None = None


class Pool(Protocol):
    """Where tasks are done."""

    @property
    def capacity(self) -> int:
        """How many tasks should be under way now to keep every worker busy, and no more; workers come and go."""
        ...

    def submit(self, name: int, work: Callable[..., Any], *arguments: Any) -> None: ...

    def next(self) -> Finished | None:
        """Wait for the next task to finish, or a while: None. Call only while some are under way.

        Raises OSError when those who should do them are gone.
        """
        ...


class InProcess:
    """Runs a task when its result is asked for; a crash in one is the end of all."""

    capacity = 1

    def __init__(self) -> None:
        self._waiting: deque[tuple[int, Callable[..., Any], tuple[Any, ...]]] = deque()

    def submit(self, name: int, work: Callable[..., Any], *arguments: Any) -> None:
        self._waiting.append((name, work, arguments))

    def next(self) -> Finished:
        name, work, arguments = self._waiting.popleft()
        try:
            work(*arguments)
        except Exception as error:
            return Finished(name, error)
        return Finished(name)


@contextlib.contextmanager
def open_pool(
    workers: int | None, scheduler: str | None, tasks: int, limit_s: float | None = None
) -> Iterator[Pool]:
    """A pool for about so many tasks. workers: processes, None for one per core, 0 for none; scheduler: see recipe.

    limit_s: how long a task may run, seconds; none is ended in this process itself.
    Raises OSError when the scheduler cannot be reached.
    """
    count = min(_cores() if workers is None else workers, tasks)
    if scheduler is None and count == 0:
        yield InProcess()
        return
    # Dask takes a second to import.
    from ddscale.ingest import dask_pool

    started = dask_pool.local_cluster(count) if scheduler is None else dask_pool.connected(scheduler)
    with started as client:
        yield dask_pool.OnDask(client, limit_s)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
