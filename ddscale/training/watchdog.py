"""Why a run hangs: when no step has been completed for minutes, every rank says what it is doing.

A read that never returns on one rank leaves all others waiting in a collective until the process group gives up and
ends the run; by then nothing tells which rank it was, nor in which file.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import socket
import sys
import threading
import time
from pathlib import Path
from types import FrameType, TracebackType

from ddscale.training.tolerance import warn

_PACKAGE = str(Path(__file__).resolve().parents[1])
_READING = tuple(f"{_PACKAGE}{os.sep}{part}{os.sep}" for part in ("store", "stream"))


class Watchdog:
    """`with Watchdog(...) as watchdog: ... watchdog.doing("step 7")`: tells when the next call is long in coming.

    folder: where the stacks of all threads go, a file for each rank; made when there is something to write.
    """

    def __init__(self, folder: Path, rank: int, minutes: float) -> None:
        self._path = folder / f"rank-{rank:05}.txt"
        self._rank = rank
        self._limit_s = 60 * minutes
        self._watched = threading.get_ident()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self.doing("starting")

    def doing(self, what: str) -> None:
        """Note that the watched thread got on, and with what."""
        self._what, self._since, self._told = what, time.monotonic(), 0

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        # Not for long: it may be writing to what hangs.
        self._thread.join(5.0)

    def _watch(self) -> None:
        while not self._ended.wait(min(5.0, self._limit_s / 4)):
            for_s = time.monotonic() - self._since
            if for_s >= self._limit_s * (self._told + 1):
                self._told += 1
                self._tell(for_s)

    def _tell(self, for_s: float) -> None:
        stacks = sys._current_frames()
        files = sorted({file for stack in stacks.values() for file in _files_being_read(stack)})
        reading = f"; reads {', '.join(files)}" if files else ""
        line = (
            f"rank {self._rank} ({socket.gethostname()}) has been at {self._what} for {for_s / 60:.1f} min, in "
            f"{_place(stacks.get(self._watched))}{reading}"
        )
        # First where no file system is needed: the run folder's may be what hangs.
        warn(f"{line}. All its stacks: {self._path}")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(f"\n{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {line}\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
        except OSError as error:
            warn(f"{self._path} cannot be written: {error}")


def _place(stack: FrameType | None) -> str:
    """The innermost function, and the innermost of ours when that is another."""
    places: list[str] = []
    while stack is not None:
        ours = stack.f_code.co_filename.startswith(_PACKAGE)
        if ours or not places:
            file = Path(stack.f_code.co_filename)
            places.append(f"{stack.f_code.co_name} ({file.parent.name}/{file.name}:{stack.f_lineno})")
        if ours:
            break
        stack = stack.f_back
    return ", called by ".join(places) or "a thread that has ended"


def _files_being_read(stack: FrameType | None) -> list[str]:
    """What the descriptors that a stack's reading functions hold stand for."""
    found = []
    while stack is not None:
        if stack.f_code.co_filename.startswith(_READING):
            descriptor, path = stack.f_locals.get("descriptor"), stack.f_locals.get("path")
            if isinstance(descriptor, int):
                with contextlib.suppress(OSError):
                    found.append(os.readlink(f"/proc/self/fd/{descriptor}"))
            elif isinstance(path, str | Path):
                found.append(str(path))
        stack = stack.f_back
    return found
