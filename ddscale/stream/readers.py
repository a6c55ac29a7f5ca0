"""Reading ahead: threads fill a ring of buffers that are allocated once.

The file reads release the GIL, so threads do what worker processes would without carrying windows between
processes. A buffer's content depends on its number alone, so how many threads there are, and which of them
was faster, changes nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Slot = TypeVar("Slot")
Filled = TypeVar("Filled")


class ReadAhead(Generic[Slot, Filled]):
    """Numbers 0, 1, 2... filled into slot (number % slots), handed out in order of number.

    fill: (number, slot) -> filled; called by several threads at once, for different slots.
    slots: the ring; a slot is filled again only after what was in it has been released.
    threads: 0 fills in the caller's thread, when asked.
    last: numbers below this one are filled; None: no end.
    """

    def __init__(
        self,
        fill: Callable[[int, Slot], Filled],
        slots: Sequence[Slot],
        threads: int,
        last: int | None = None,
    ):
        self._fill = fill
        self._slots = slots
        self._last = last
        self._ready: dict[int, Filled | BaseException] = {}
        self._begun = self._taken = self._released = 0
        self._closed = False
        self._changed = threading.Condition()
        self._threads = [
            threading.Thread(target=self._work, name=f"ddscale-reader-{i}", daemon=True)
            for i in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def take(self) -> Filled:
        """The next filled slot; waits for it.

        Raises whatever filling it raised, and StopIteration past the last.
        """
        number = self._taken
        if self._last is not None and number >= self._last:
            raise StopIteration
        assert number < self._released + len(self._slots), (
            "every slot is held by the caller: release some first"
        )
        if self._threads:
            with self._changed:
                self._changed.wait_for(lambda: number in self._ready or self._closed)
                if number not in self._ready:
                    raise RuntimeError("The loader was closed while a batch was waited for.")
                filled = self._ready.pop(number)
            if isinstance(filled, BaseException):
                raise filled
        else:
            filled = self._fill(number, self._slots[number % len(self._slots)])
        self._taken += 1
        return filled

    def release(self) -> None:
        """Everything taken so far may be overwritten."""
        with self._changed:
            self._released = self._taken
            self._changed.notify_all()

    def close(self) -> None:
        """Stop the threads and wait until they have ended; reads that have begun are finished first."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()

    def _work(self) -> None:
        while (number := self._begin()) is not None:
            filled: Filled | BaseException
            try:
                filled = self._fill(number, self._slots[number % len(self._slots)])
            except (
                BaseException
            ) as error:  # handed to whoever waits for this number: a thread must not die silently
                filled = error
            with self._changed:
                self._ready[number] = filled
                self._changed.notify_all()

    def _begin(self) -> int | None:
        """The next number to fill, once its slot is free; None when there is no more to do."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._begun < self._released + len(self._slots))
            if self._closed or (self._last is not None and self._begun >= self._last):
                return None
            self._begun += 1
            return self._begun - 1
