"""Being asked to stop, by a signal or a file: noted here, acted upon by all ranks together at the end of a step."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType, TracebackType

STOP_FILE = "DDSCALE_STOP_FILE"
"""Environment variable that names the file."""

LOOK_EVERY_S = 5.0
"""So that 1,000 ranks do not ask a shared file system about the file at every step."""


class StopRequest:
    """`with StopRequest() as stop: ... if stop.requested: ...` for SIGINT (Ctrl-C), SIGTERM and the stop file.

    Further signals change nothing: on Ctrl-C the terminal signals every process and DeepSpeed's launcher then
    signals each of its ranks once more. The launcher kills a rank that has not ended 30 s after its signal, and
    reports exit code 1 for a signal it was sent itself, however cleanly its ranks ended. A scheduler that gives
    more time makes the file instead, which the launcher does not know of.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        """Name of the signal or path of the file; None while nobody asked."""
        self._file = os.environ.get(STOP_FILE)
        self._looked = -LOOK_EVERY_S
        self._previous: dict[int, object] = {}

    @property
    def requested(self) -> bool:
        if self.reason is None and self._file and time.monotonic() - self._looked >= LOOK_EVERY_S:
            self._looked = time.monotonic()
            if os.path.exists(self._file):
                self.reason = self._file
        return self.reason is not None

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.reason is None:
            self.reason = signal.Signals(number).name
