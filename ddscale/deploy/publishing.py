"""A folder that appears whole or not at all.

While it is made there is a hidden one beside it, `.NAME.exporting-RANDOM`:

    owner      locked by the process that makes it, for as long as that lives; holds the boot of its machine
    new        what is made
    before     what was published earlier, between taking it away and removing it

Process numbers tell nothing here: in containers each export is number 1, and other machines see the same disk.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, get_args

from ddscale.deploy.engines import FOLDER as ENGINES
from ddscale.deploy.manifest import FILE_NAME, Precision, listed_files

# Where another machine's lock cannot be seen (Lustre mounted with `localflock`), and after an owner that was killed
# before it could say where it runs.
_SURELY_OVER_S = 24 * 3600.0


@contextmanager
def published(out: Path, check: Callable[[Path], None] = lambda out: None) -> Iterator[Path]:
    """A temporary folder beside `out` that takes its place when the block ends well, and is removed otherwise.

    check: given what is at `out`, before anything is done and again before it is replaced; raises when it must stay.
    What a process that was killed had begun is removed, and what it had taken from `out` is put back. A link at `out`
    stays, and leads to the new folder.
    """
    out = out.resolve()
    if out.is_mount():
        raise ValueError(
            f"{out} is a mount point, which cannot be replaced as a whole: state a folder in it."
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    _clear_abandoned(out)
    if out.exists():
        check(out)
    work = Path(tempfile.mkdtemp(prefix=_prefix(out), dir=out.parent))
    with _owned(work):
        new, before = work / "new", work / "before"
        try:
            new.mkdir()
            yield new
            for path in sorted(new.rglob("*"), reverse=True):
                if path.is_file():
                    # Libraries write some for this user alone; a server runs as another.
                    path.chmod(0o644)
                _sync(path)
            _sync(new)
            if out.exists():
                check(out)
                out.rename(before)
            new.rename(out)
            _sync(out.parent)
        finally:
            _put_back(before, out)
            shutil.rmtree(work, ignore_errors=True)


def check_is_export(out: Path) -> None:
    """Raise ValueError when `out` holds something that no export has written: it would be lost."""
    if foreign := _foreign(out):
        raise ValueError(
            f"{foreign} is there and is no earlier export: {out} would be replaced as a whole. State another `out`, "
            "or move this away."
        )


def _foreign(out: Path) -> Path | None:
    """The first thing that is none of an export's; None when all of it is."""
    if not out.is_dir():
        return out
    for folder in sorted(out.iterdir()):
        # EEG stores, checkpoints and datasets have a manifest.json too.
        files = listed_files(folder) if folder.name in get_args(Precision) else None
        if files is None:
            return folder
        own = {ENGINES, FILE_NAME, *(file.split("/")[0] for file in files)}
        for path in sorted(folder.iterdir()):
            if path.name not in own:
                return path
    return None


def _prefix(out: Path) -> str:
    return f".{out.name}.exporting-"


@contextmanager
def _owned(work: Path) -> Iterator[None]:
    with (work / "owner").open("w", encoding="utf-8") as owner:
        _try_lock(owner, wait=True)
        # Only now: while nothing is written there, nobody takes this for abandoned.
        owner.write(_this_boot())
        owner.flush()
        yield


def _clear_abandoned(out: Path) -> None:
    for work in sorted(out.parent.iterdir()):
        if not work.name.startswith(_prefix(out)):
            continue
        with contextlib.suppress(FileNotFoundError):
            if _is_abandoned(work):
                _put_back(work / "before", out)
                shutil.rmtree(work, ignore_errors=True)


def _is_abandoned(work: Path) -> bool:
    owner = work / "owner"
    if owner.is_file():
        # For writing: NFS locks nothing that is open for reading alone.
        with owner.open("r+", encoding="utf-8") as file:
            locked = _try_lock(file)
            if locked is False:
                return False
            if locked and (boot := file.read()) and boot == _this_boot():
                return True
    return time.time() - work.stat().st_mtime > _SURELY_OVER_S


def _put_back(before: Path, out: Path) -> None:
    if before.exists() and not out.exists():
        before.rename(out)
        _sync(out.parent)


def _try_lock(file: IO[str], wait: bool = False) -> bool | None:
    """Whether the lock was taken; None where the file system has none. It goes with the file, or with the process."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _this_boot() -> str:
    """This machine since it was started, the same in all of its containers; empty where the system does not say."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return ""


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
