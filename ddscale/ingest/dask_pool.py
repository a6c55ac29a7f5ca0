"""Tasks on Dask workers that come and go, hang and die."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from multiprocessing import resource_tracker
from typing import Any

import dask
from distributed import Client, Future, KilledWorker, LocalCluster

from ddscale.ingest.pool import Finished, TookTooLong, WorkerDied

LOOK_S = 2.0
"""How often the scheduler is asked who works and on what."""
NOBODY_S = 300.0
"""How long tasks wait for a worker when there is none."""
_ENDING_S = 60.0

_CONTINUES = "Then run the same ingest again: it continues."


class OnDask:
    """Tasks as Dask futures. limit_s: how long one may run before its worker is ended; None: for ever."""

    def __init__(self, client: Client, limit_s: float | None = None) -> None:
        self._client = client
        self._address = str(client.scheduler_info()["address"])
        self._limit_s = limit_s
        self._tasks: dict[str, tuple[int, Future]] = {}  # by Dask's key, in order of submission
        self._done: queue.SimpleQueue[Future] = queue.SimpleQueue()
        self._given_up: deque[Finished] = deque()
        self._begun: dict[tuple[str, str], float] = {}  # (worker, key) -> when first seen to run
        self._threads = 0
        self._looked = float("-inf")
        self._unmanned_since: float | None = None
        self._look()

    @property
    def capacity(self) -> int:
        """One waits behind each that runs, so that no worker idles while its next task is sent."""
        self._look()
        return 2 * max(self._threads, 1)

    def submit(self, name: int, work: Callable[..., Any], *arguments: Any) -> None:
        future = self._client.submit(work, *arguments, pure=False)
        self._tasks[str(future.key)] = name, future
        future.add_done_callback(self._done.put)

    def next(self) -> Finished | None:
        """See `Pool`. Raises OSError when the scheduler is gone, or has had no worker for NOBODY_S."""
        self._look()
        if self._given_up:
            return self._given_up.popleft()
        try:
            future = self._done.get(timeout=LOOK_S)
        except queue.Empty:
            return None
        if str(future.key) not in self._tasks:
            return None  # it was given up
        name, _ = self._tasks.pop(str(future.key))
        if future.cancelled():
            raise self._gone("it has dropped what it was given")
        error = future.exception()
        return Finished(name, WorkerDied(str(error)) if isinstance(error, KilledWorker) else error)

    def _look(self) -> None:
        """Ask the scheduler, now and then, who is there and what runs for how long."""
        now = time.monotonic()
        if now - self._looked < LOOK_S:
            return
        self._looked = now
        try:
            threads, processing = self._client.nthreads(), self._client.processing()
        except OSError as error:
            raise self._gone(str(error)) from error
        self._threads = sum(threads.values())
        if self._threads or self._unmanned_since is None:
            self._unmanned_since = None if self._threads else now
        elif now - self._unmanned_since > NOBODY_S:
            raise OSError(
                f"The Dask scheduler at {self._address} has had no workers for {NOBODY_S / 60:.0f} minutes. Start "
                f"some with `dask worker {self._address}`. {_CONTINUES}"
            )
        self._note_begun(threads, processing, now)
        if self._limit_s is not None:
            self._give_up([place for place, begun in self._begun.items() if now - begun > self._limit_s])

    def _note_begun(
        self, threads: dict[str, int], processing: dict[str, Collection[str]], now: float
    ) -> None:
        """Told from what the scheduler knows: a worker whose reader hangs may not answer."""
        turn = {key: place for place, key in enumerate(self._tasks)}
        running: dict[tuple[str, str], float] = {}
        for worker, keys in processing.items():
            # A worker takes tasks in order of their submission; those beyond its threads wait.
            mine = sorted((key for key in keys if key in turn), key=turn.__getitem__)
            for key in mine[: threads.get(worker, 0)]:
                running[worker, key] = self._begun.get((worker, key), now)
        self._begun = running

    def _give_up(self, overdue: list[tuple[str, str]]) -> None:
        hanging = [(worker, key) for worker, key in overdue if not self._tasks[key][1].done()]
        if not hanging:
            return
        for _, key in hanging:
            name, future = self._tasks.pop(key)
            future.cancel(reason="it took too long")
            self._given_up.append(Finished(name, TookTooLong(f"after {self._limit_s:g} s")))
        self._end({worker for worker, _ in hanging})

    def _end(self, workers: Collection[str]) -> None:
        """End worker processes whatever they are doing: what a task that was given up writes later would be taken
        for the store's. Other tasks of theirs are done elsewhere."""
        known = self._client.scheduler_info(n_workers=-1)["workers"]
        watched = [worker for worker in workers if known.get(worker, {}).get("nanny")]
        alone = [worker for worker in workers if worker in known and worker not in watched]
        if watched:
            self._client.restart_workers(watched, timeout=_ENDING_S, raise_for_error=False)
        if alone:
            self._client.run(_exit, workers=alone, wait=False)
        patience = time.monotonic() + _ENDING_S
        while left := sorted(set(workers) & set(self._client.nthreads())):
            if time.monotonic() > patience:
                raise OSError(
                    f"A task took more than {self._limit_s:g} s on {', '.join(left)}, and these Dask workers cannot be "
                    f"ended. End them by hand, and start them without `--no-nanny`. {_CONTINUES}"
                )
            time.sleep(0.2)

    def _gone(self, why: str) -> OSError:
        return OSError(
            f"The Dask scheduler at {self._address} cannot be reached any more ({why}). Start it and its workers anew. "
            f"{_CONTINUES}"
        )


async def _exit() -> None:
    os._exit(1)


@contextlib.contextmanager
def connected(scheduler: str) -> Iterator[Client]:
    """A client of a scheduler that is there already.

    Raises OSError when it does not answer or nobody works for it.
    """
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
def local_cluster(workers: int) -> Iterator[Client]:
    """A client of worker processes on this machine, ended with it."""
    settings = {
        # The death of a worker is blamed on the one task it ran: none waits at a worker, none is tried again
        # by Dask itself.
        "distributed.scheduler.allowed-failures": 0,
        "distributed.scheduler.worker-saturation": 1.0,
        # A reader that holds the interpreter keeps its worker silent: the limit of a task decides, not that.
        "distributed.scheduler.worker-ttl": None,
        # Tasks hold nothing that could be spilled; a pause would wait for ever for memory to come back.
        "distributed.worker.memory.target": False,
        "distributed.worker.memory.spill": False,
        "distributed.worker.memory.pause": False,
        "distributed.worker.memory.terminate": 0.95,
        # An orphan must not outlive an ingest that was killed.
        "distributed.comm.timeouts.connect": "30s",
        "distributed.admin.tick.limit": "1h",
    }
    with dask.config.set(settings), contextlib.ExitStack() as running:
        with _interrupts_wait():
            cluster = LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                processes=True,
                dashboard_address=None,
                silence_logs=logging.CRITICAL,
                preload=["ddscale.ingest.worker"],
            )
            running.enter_context(cluster)
            client = running.enter_context(Client(cluster))
        yield client


@contextlib.contextmanager
def _interrupts_wait() -> Iterator[None]:
    """Ctrl-C takes effect when this is left: a cluster that is half started cannot be ended in order.

    A terminal sends it to all processes. Those that are started meanwhile inherit that it is held back, so that none
    meets it before it has come to `ddscale.ingest.worker`.
    """
    usual = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(usual):
        yield  # nobody is interrupted here
        return
    # Starting it would let go of what is held back here, in the very thread that starts the others.
    resource_tracker.ensure_running()
    came: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    held_back = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held_back)
        signal.signal(signal.SIGINT, usual)
    if came:
        signal.raise_signal(signal.SIGINT)
