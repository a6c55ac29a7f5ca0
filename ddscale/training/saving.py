"""DeepSpeed's writing of a checkpoint, made to fail on all ranks together or on none."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

# How torch's writer says that the disk is full or the file broken; it is a RuntimeError.
_WRITER = ("PytorchStreamWriter", "inline_container", "iostream error")


class Failures:
    """The first failure of this rank's writes; those after it are not tried any more."""

    def __init__(self) -> None:
        self.first: OSError | None = None

    @contextlib.contextmanager
    def noted(self, path: str) -> Iterator[None]:
        """Note that the block could not write instead of raising it; other errors pass."""
        try:
            yield
        except OSError as error:
            self.first = self.first or error
        except RuntimeError as error:
            if not any(sign in str(error) for sign in _WRITER):
                raise
            self.first = self.first or OSError(f"{path}: {error}")


class _Writer:
    """Stands in for DeepSpeed's checkpoint engine and is it, but for what fails."""

    def __init__(self, real: Any, failures: Failures) -> None:
        self._real = real
        self._failures = failures

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def save(self, state_dict: Any, path: str) -> None:
        if self._failures.first is None:
            with self._failures.noted(path):
                self._real.save(state_dict, path)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        with self._failures.noted(path):
            self._real.makedirs(path, exist_ok=exist_ok)


@contextlib.contextmanager
def noting_failures(engine: Any) -> Iterator[Failures]:
    """`engine.save_checkpoint` comes to its end on a rank that cannot write, and the failure is noted.

    Raised where it happens, it would leave the other ranks waiting in a barrier that this rank never reaches.
    """
    failures = Failures()
    real, copy_scripts = engine.checkpoint_engine, engine._copy_recovery_script

    def try_to_copy_scripts(path: str) -> None:
        with failures.noted(path):
            copy_scripts(path)

    engine.checkpoint_engine = _Writer(real, failures)
    engine._copy_recovery_script = try_to_copy_scripts
    try:
        yield failures
    finally:
        engine.checkpoint_engine = real
        del engine._copy_recovery_script
