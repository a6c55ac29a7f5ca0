"""Writes beside the training itself, whose failure must not end it: metrics, events, lines for a person."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path


class Tolerated:
    """`with tolerated(what): ...` goes on after a failure in the block; the first one of each `what` is told."""

    def __init__(self) -> None:
        self.failures: dict[str, int] = {}
        """How often each has failed."""

    @contextlib.contextmanager
    def __call__(self, what: str, *kinds: type[Exception]) -> Iterator[None]:
        """kinds: failures that are tolerated; OSError when none are given."""
        tolerable = kinds or (OSError,)
        try:
            yield
        except tolerable as error:
            self.failures[what] = self.failures.get(what, 0) + 1
            if self.failures[what] == 1:
                warn(
                    f"{what} could not be written: {type(error).__name__}: {error}. Training goes on; further failures "
                    "of it are not told."
                )


def append_line(path: Path, line: str) -> None:
    """Add a line to a file, or raise OSError and leave it as it was: half a line would spoil the one after it."""
    # Unbuffered: what could not be written must not be tried once more as the file is closed.
    with path.open("ab", buffering=0) as file:
        before, content = file.tell(), memoryview(line.encode() + b"\n")
        try:
            while content:
                content = content[file.write(content) :]
        except OSError:
            file.truncate(before)
            raise


def warn(line: str) -> None:
    """A warning on stderr; what cannot even be said there is dropped."""
    with contextlib.suppress(OSError, ValueError):
        print(f"warning: {line}", file=sys.stderr, flush=True)
