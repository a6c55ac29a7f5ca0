"""Being asked to stop: a signal is noted, and acted upon by all ranks together at the end of a step."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType


class StopRequest:
    """`with StopRequest() as stop: ... if stop.requested: ...` for SIGINT (Ctrl-C) and SIGTERM.

    Further signals change nothing: on Ctrl-C the terminal signals every process and DeepSpeed's launcher then
    signals each of its ranks once more. The launcher kills a rank that has not ended 30 s after its signal, and
    reports exit code 1 for a signal it was sent itself, however cleanly its ranks ended.
    """

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self._previous: dict[int, object] = {}

    @property
    def requested(self) -> bool:
        return self.signal_name is not None

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
        if self.signal_name is None:
            self.signal_name = signal.Signals(number).name
