"""The answer with pictures: its place in the queue is free only when the client has them."""

from __future__ import annotations

import asyncio
import logging
from contextlib import ExitStack

from fastapi import Response
from starlette.types import Receive, Scope, Send

_log = logging.getLogger("ddscale.serving")
_PIECE = 2**16


class Pictures(Response):
    """Sent piece by piece, each when the one before has gone: memory for answers is bounded by the places."""

    def __init__(self, content: bytes, media_type: str, timeout_s: float) -> None:
        super().__init__(content, media_type=media_type)
        self.held = ExitStack()
        """Closed when all is sent, or the client is gone or too slow."""
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self.held:
            try:
                async with asyncio.timeout(self._timeout_s):
                    await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                    content = bytes(self.body)
                    for first in range(0, len(content), _PIECE):
                        piece = content[first : first + _PIECE]
                        await send({"type": "http.response.body", "body": piece, "more_body": True})
                    # Waits, as each does, until the piece before has been taken.
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
            except TimeoutError:
                # Left incomplete, so the server closes the connection.
                _log.warning("a client had not taken its pictures after %g s", self._timeout_s)
