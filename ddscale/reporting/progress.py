"""Progress of a long job: a live bar on a terminal, plain lines where the output is kept (logs, CI)."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

LINE_EVERY_S = 10.0


class Progress:
    """`with Progress("recordings") as progress: job(on_progress=progress.update)`."""

    def __init__(self, noun: str) -> None:
        self._noun = noun
        self._console = Console(stderr=True)
        self._bar = RichProgress(
            TextColumn("{task.fields[noun]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[label]}", style="dim"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("", total=None, noun=noun, label="")
        self._last_line = 0.0

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def update(self, done: int, total: int, label: str = "") -> None:
        """`done` of `total` are finished; `label` says what was last worked on."""
        self._bar.update(self._task, completed=done, total=total, label=label)
        if self._console.is_terminal:
            return
        now = time.monotonic()
        if done == total or now - self._last_line >= LINE_EVERY_S:
            self._last_line = now
            print(f"{self._noun}: {done}/{total} {label}".rstrip(), file=sys.stderr, flush=True)
