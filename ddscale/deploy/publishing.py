"""A folder that appears whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ddscale.deploy.manifest import FILE_NAME


@contextmanager
def published(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out` that takes its place when the block ends well, and is removed otherwise.

    Raises ValueError when `out` holds something that no export has written: it would be lost.
    """
    _check_replaceable(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(out)
    temporary = out.with_name(f".{out.name}.exporting-{os.getpid()}")
    temporary.mkdir()
    try:
        yield temporary
        for path in sorted(temporary.rglob("*"), reverse=True):
            if path.is_file():
                # Libraries write some for this user alone; a server runs as another.
                path.chmod(0o644)
            _sync(path)
        _sync(temporary)
        _swap(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _check_replaceable(out: Path) -> None:
    if not out.exists():
        return
    if not out.is_dir() or (any(out.iterdir()) and not any(out.glob(f"*/{FILE_NAME}"))):
        raise ValueError(
            f"{out} is there and is no earlier export: it would be replaced as a whole. State another `out`."
        )


def _remove_leftovers(out: Path) -> None:
    """What an export that was killed had begun."""
    for path in out.parent.glob(f".{out.name}.exporting-*"):
        owner = path.name.rpartition("-")[2]
        if not (owner.isdigit() and _runs(int(owner))):
            shutil.rmtree(path, ignore_errors=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _swap(temporary: Path, out: Path) -> None:
    before = out.with_name(f".{out.name}.exporting-{os.getpid()}-before")
    if out.exists():
        out.rename(before)
    temporary.rename(out)
    _sync(out.parent)
    shutil.rmtree(before, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
