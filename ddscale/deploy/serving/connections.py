"""uvicorn's HTTP/1.1 connections with deadlines: for a request's head to come, and for what was written to be taken.

uvicorn alone waits for ever for both, and at its own limit of connections answers 503 to probes too. Here there is
no such answer: a connection beyond the limit is taken, and the one that has waited longest for a head is closed.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol


def guarded(most: int, head_s: float, write_s: float) -> type[H11Protocol]:
    """A class of connections for one server.

    most: connections open at once, unless more than that are being answered. head_s: from connecting, or from the
    first byte of the next request, to the end of its head. write_s: for the client to take each piece of an answer.
    """
    waiting: dict[Guarded, None] = {}

    class Guarded(H11Protocol):
        _head: asyncio.TimerHandle | None = None
        _write: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            # Told of every byte that the system does not take at once, and when the last has gone.
            transport.set_write_buffer_limits(high=0)
            if len(self.connections) > most and waiting:
                next(iter(waiting))._drop()
            self._watch_head()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch_head()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            # Idle between two requests: uvicorn's own deadline holds, and it may go when room is needed.
            if self.cycle.response_complete and not self.transport.is_closing():
                waiting[self] = None

        def pause_writing(self) -> None:
            super().pause_writing()
            if self._write is None:
                self._write = self.loop.call_later(write_s, self._drop)

        def resume_writing(self) -> None:
            super().resume_writing()
            _cancel(self._write)
            self._write = None

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            waiting.pop(self, None)
            _cancel(self._head)
            _cancel(self._write)
            self._head = self._write = None

        def _watch_head(self) -> None:
            if self.cycle is not None and not self.cycle.response_complete:
                waiting.pop(self, None)
                _cancel(self._head)
                self._head = None
            elif not self.transport.is_closing():
                waiting.setdefault(self)
                if self._head is None:
                    self._head = self.loop.call_later(head_s, self._drop)

        def _drop(self) -> None:
            waiting.pop(self, None)
            # Not close(): that would wait for the client to take what is written.
            self.transport.abort()

    return Guarded


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
