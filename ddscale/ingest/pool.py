"""Where the work of an ingest is done: in this process, on processes of this machine, or on a Dask cluster.

All three take tasks and hand back what became of them, one at a time, in whatever order they finish.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from distributed import Client, Future


class WorkerDied(RuntimeError):
    """The process that ran a task is gone: it crashed, or was ended for using too much memory."""


@dataclass(frozen=True)
class Finished:
    """What became of a task: its value, or the error it ended with."""

    name: int
    value: Any = None
    error: BaseException | None = None


class Pool(Protocol):
    """capacity: how many tasks should be under way to keep every worker busy, and no more."""

    capacity: int

    def submit(self, name: int, work: Callable[..., Any], *arguments: Any) -> None: ...

    def next(self) -> Finished:
        """Wait for the next task to finish; call only while some are under way."""
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
            return Finished(name, work(*arguments))
        except Exception as error:
            return Finished(name, error=error)


class OnDask:
    """Tasks as Dask futures."""

    def __init__(self, client: Client) -> None:
        from distributed import as_completed

        self._client = client
        self._names: dict[Future, int] = {}
        self._completed = as_completed()
        threads = sum(client.nthreads().values())
        # One waits behind each that runs, so that no worker idles while its next task is sent.
        self.capacity = 2 * max(threads, 1)

    def submit(self, name: int, work: Callable[..., Any], *arguments: Any) -> None:
        future = self._client.submit(work, *arguments, pure=False)
        self._names[future] = name
        self._completed.add(future)

    def next(self) -> Finished:
        from distributed import KilledWorker

        future = next(self._completed)
        name = self._names.pop(future)
        error = future.exception()
        if error is None:
            return Finished(name, future.result())
        if isinstance(error, KilledWorker):
            return Finished(name, error=WorkerDied(str(error)))
        return Finished(name, error=error)


@contextlib.contextmanager
def open_pool(workers: int | None, scheduler: str | None, tasks: int) -> Iterator[Pool]:
    """A pool for about so many tasks. workers: processes, None for one per core, 0 for none; scheduler: see recipe.

    Raises OSError when the scheduler cannot be reached.
    """
    if scheduler is not None:
        with _connected(scheduler) as client:
            yield OnDask(client)
        return
    count = min(_cores() if workers is None else workers, tasks)
    if count == 0:
        yield InProcess()
        return
    with _local_cluster(count) as client:
        yield OnDask(client)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def _connected(scheduler: str) -> Iterator[Client]:
    from distributed import Client

    try:
        client = Client(scheduler, timeout=30)
    except (OSError, ValueError) as error:
        raise OSError(
            f"No Dask scheduler answers at {scheduler} ({error}). Start one with `dask scheduler`, or leave out "
            "`scheduler:` to work on this machine."
        ) from error
    with client:
        if not client.nthreads():
            raise OSError(f"The Dask scheduler at {scheduler} has no workers. Start some with `dask worker`.")
        yield client


@contextlib.contextmanager
def _local_cluster(workers: int) -> Iterator[Client]:
    import dask
    from distributed import Client, LocalCluster

    settings = {
        # The death of a worker is blamed on the one task it ran: none waits at a worker, none is tried again
        # by Dask itself.
        "distributed.scheduler.allowed-failures": 0,
        "distributed.scheduler.worker-saturation": 1.0,
        # Tasks hold nothing that could be spilled; a pause would wait for ever for memory to come back.
        "distributed.worker.memory.target": False,
        "distributed.worker.memory.spill": False,
        "distributed.worker.memory.pause": False,
        "distributed.worker.memory.terminate": 0.95,
        # An orphan must not outlive an ingest that was killed.
        "distributed.comm.timeouts.connect": "30s",
        "distributed.admin.tick.limit": "1h",
    }
    with (
        dask.config.set(settings),
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
            silence_logs=logging.CRITICAL,
            preload=["ddscale.ingest.worker"],
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client
