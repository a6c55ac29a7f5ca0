"""A request's body, piece by piece, and whether its client is still there."""

from __future__ import annotations

import asyncio

from fastapi import Request

_LONGEST_DRAIN_S = 5.0


class GoneError(Exception):
    """The client closed its connection."""


class Incoming:
    """A request's body as it comes."""

    def __init__(self, request: Request) -> None:
        self._receive = request.receive
        self.ended = False
        # Who waits for leave to send its body is not given it after a refusal.
        self.may_drain = "expect" not in request.headers

    async def piece(self) -> bytes:
        """The next bytes, maybe none. Raises GoneError when the client has closed the connection."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.may_drain = False
            raise GoneError
        self.ended = not message.get("more_body", False)
        return bytes(message.get("body", b""))

    async def gone(self) -> None:
        """Returns when the client closes the connection; only after the body has ended."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def drain(self, at_most: int) -> bool:
        """Let the rest of a refused body come and forget it: a connection closed in the midst of sending loses the
        answer. Returns whether the connection may be kept."""
        left = at_most
        try:
            async with asyncio.timeout(_LONGEST_DRAIN_S):
                while not self.ended and left > 0 and self.may_drain:
                    left -= len(await self.piece())
        except (TimeoutError, GoneError):
            pass
        return self.ended
