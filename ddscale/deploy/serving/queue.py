"""A bounded queue in front of one thread that draws: who has no place is told when to come again.

Places are taken before a body is read, so memory is bounded by their number times the longest body.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

_LONGEST_WAIT_S = 120


class QueueFullError(Exception):
    """No place is free."""

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(f"come again in {retry_after_s} s")
        self.retry_after_s = retry_after_s


class AbandonedError(Exception):
    """Raised inside the drawing thread when nobody waits for the picture any more."""


class Place:
    """One request's place, from before its body is read until its work has ended."""

    def __init__(self, thread: ThreadPoolExecutor) -> None:
        self._thread = thread
        self._left = threading.Event()
        self.work: Future[Any] | None = None

    def submit(self, function: Callable[[], Any]) -> asyncio.Future[Any]:
        """Have the thread call `function` when it is this place's turn."""

        def call() -> Any:
            self.check()
            return function()

        self.work = self._thread.submit(call)
        return asyncio.wrap_future(self.work)

    def check(self, *_: int) -> None:
        """For the drawing thread, between steps. Raises AbandonedError when the place was left."""
        if self._left.is_set():
            raise AbandonedError

    def leave(self) -> None:
        """Let work that has not begun never begin, and work that runs end at its next step."""
        self._left.set()
        if self.work is not None:
            self.work.cancel()


class Queue:
    """Places for requests; used from one event loop."""

    def __init__(self, places: int) -> None:
        self.places, self.taken = places, 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="drawing")
        self._there: set[Place] = set()
        self._usual_s = 1.0

    @contextmanager
    def place(self) -> Iterator[Place]:
        """A place; left at the end, and free again as soon as the thread is done with it.

        Raises QueueFullError when there is none.
        """
        if self.taken >= self.places:
            raise QueueFullError(self.wait_s())
        loop = asyncio.get_running_loop()
        place = Place(self._thread)
        self.taken += 1
        self._there.add(place)
        try:
            yield place
        finally:
            place.leave()
            if place.work is None or place.work.done():
                self._free(place)
            else:
                place.work.add_done_callback(lambda _: loop.call_soon_threadsafe(self._free, place))

    def took(self, seconds: float) -> None:
        """Learn how long drawing takes."""
        self._usual_s += 0.2 * (seconds - self._usual_s)

    def wait_s(self) -> int:
        """Whole seconds until a place should be free."""
        # Half the queue: then a client that comes again finds room, and the thread is not idle till then.
        return max(1, min(_LONGEST_WAIT_S, math.ceil(self._usual_s * self.taken / 2)))

    def close(self) -> None:
        """End what runs at its next step, start nothing more, and wait for the thread."""
        for place in list(self._there):
            place.leave()
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _free(self, place: Place) -> None:
        self.taken -= 1
        self._there.discard(place)
