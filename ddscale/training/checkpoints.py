"""Checkpoints that are whole or not there: published by rename, sealed by SHA-256, verified before they are used.

A checkpoint is a folder `step-00000500` of DeepSpeed's files and a `seal.json`, which lists every file with
its size and hash, carries the run's state, and hashes itself. DeepSpeed alone names a checkpoint `latest`
before slower ranks have written theirs, and loads flipped bytes without a word.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ddscale.training.ranks import AgreedError, Ranks
from ddscale.training.saving import noting_failures
from ddscale.training.tolerance import warn

SEAL = "seal.json"
LATEST = "latest"
_NAME = re.compile(r"step-(\d{8})")
TEMPORARY = ".unpublished-"
NATIVE = ".native"
"""Ending of what a checkpoint was before it was converted for another number of ranks; kept as long as that is."""
_CHUNK = 1 << 22
READ_AGAIN_AFTER_S = (1, 2, 4, 8, 16, 30)
"""Waits between reads that fail: a file server's fail-over takes seconds to a minute."""


Read = TypeVar("Read")


class SaveError(AgreedError):
    """A checkpoint that could not be written this time; every rank knows of it."""


class IncompleteError(AgreedError):
    """A checkpoint that will never be whole the way this run is set up."""


@dataclass(frozen=True)
class Checkpoint:
    """A published checkpoint whose files are what its seal says."""

    path: Path
    state: dict[str, Any]
    """What the run needs to know besides DeepSpeed's files: step, samples seen, world size, stores, recipe."""

    @property
    def step(self) -> int:
        return int(self.path.name.removeprefix("step-"))


class Checkpoints:
    """The checkpoints folder of a run, which every rank sees (a shared file system on several nodes)."""

    def __init__(self, folder: Path, keep: int, ranks: Ranks) -> None:
        self.folder = folder
        self.keep = keep
        self.ranks = ranks

    def save(
        self, engine: Any, step: int, state: dict[str, Any], on_written: Callable[[], None] = lambda: None
    ) -> Path:
        """Write and publish the engine's state. Every rank calls it; when it returns the checkpoint is whole.

        on_written: called when this rank's files are written and nothing is published yet; its OSError counts as one of
        the write. Raises SaveError on every rank when one could not write its part: what was published before is
        untouched, what was written is removed, and the run may go on. AgreedError when saving can never work.
        """
        final = self.folder / f"step-{step:08d}"
        temporary = self.folder / f"{TEMPORARY}{final.name}"
        try:
            with self.ranks.agreeing():
                if self.ranks.is_main:
                    self.folder.mkdir(parents=True, exist_ok=True)
                    self.remove_leftovers()
            with noting_failures(engine) as failures:
                engine.save_checkpoint(
                    str(self.folder), tag=temporary.name, client_state=_for_conversion(), save_latest=False
                )
            with failures.noted(str(temporary)):
                on_written()
            with self.ranks.agreeing():
                if failures.first is not None:
                    raise failures.first
            self.seal(temporary, state)
            with self.ranks.agreeing():
                if self.ranks.is_main:
                    self._publish(temporary, final)
        except IncompleteError:
            raise
        except AgreedError as error:
            if self.ranks.is_main:
                self._unpublish(final)
            raise SaveError(
                f"checkpoint {final} could not be written ({error}); {_free(self.folder)}. Free some space there, or "
                "mend its file system."
            ) from error
        return final

    def seal(self, folder: Path, state: dict[str, Any]) -> None:
        """Hash and flush all files of `folder`, shared out over the ranks, and write its seal."""
        names: list[str] = []
        with self.ranks.agreeing():
            if self.ranks.is_main:
                names = _files_in(folder)
        names = self.ranks.from_main(names)
        _check_complete(names, state)
        mine: dict[str, dict[str, Any]] = {}
        with self.ranks.agreeing():
            for name in names[self.ranks.rank :: self.ranks.world_size]:
                mine[name] = _measure_and_flush(folder / name)
        parts = self.ranks.gather(mine)
        with self.ranks.agreeing():
            if self.ranks.is_main:
                files = {name: part[name] for part in parts for name in sorted(part)}
                _write_atomically(folder / SEAL, _sealed({"files": files, "state": state}))

    def newest_published(self) -> Path | None:
        """The newest checkpoint there is, not looked into; None without one, or when the folder cannot be read."""
        try:
            return max((self.folder / name for name in _published(self.folder)), default=None)
        except OSError:
            return None

    def newest_intact(self) -> tuple[Checkpoint | None, list[str]]:
        """The checkpoint to continue from, and what is wrong with those that had to be passed over.

        Starts with the one `latest` names, then goes on from newest to oldest. Every rank calls it; the files
        are hashed by all ranks together.
        """
        candidates: list[str] = []
        with self.ranks.agreeing():
            if self.ranks.is_main:
                candidates = self._candidates()
        candidates = self.ranks.from_main(candidates)
        complaints: list[str] = []
        for name in candidates:
            problems, state = self.verify(self.folder / name)
            if not problems:
                return Checkpoint(self.folder / name, state), complaints
            complaints.append(f"checkpoint {name} is damaged and was passed over: {'; '.join(problems[:3])}")
        return None, complaints

    def _candidates(self) -> list[str]:
        self.remove_leftovers()
        found = sorted(_published(self.folder), reverse=True)
        pointer = self.folder / LATEST
        named = pointer.read_text(encoding="utf-8").strip() if pointer.is_file() else None
        if named in found:
            # Whoever sets `latest` back by hand wants to continue from there; what is newer comes last.
            newer = [name for name in found if name > named]
            found = [name for name in found if name <= named] + newer
        return found

    def verify(self, path: Path) -> tuple[list[str], dict[str, Any]]:
        """Problems of one checkpoint, hashed by all ranks together and the same list on each, and its state.

        Raises AgreedError when files are there and cannot be read for a minute: they may well be intact.
        """
        files: dict[str, Any] = {}
        state: dict[str, Any] = {}
        problems: list[str] = []
        with self.ranks.agreeing():
            files, state, problems = _read_seal(path)
        problems = self._all_of(problems)
        if problems:
            return problems, {}
        with self.ranks.agreeing():
            for name in sorted(files)[self.ranks.rank :: self.ranks.world_size]:
                problems += _compare(path / name, files[name])
        return self._all_of(problems), state

    def _all_of(self, problems: list[str]) -> list[str]:
        return sorted({problem for theirs in self.ranks.gather(problems) for problem in theirs})

    def _publish(self, temporary: Path, final: Path) -> None:
        # What is there under this name or a later one belongs to a future that a return to an earlier
        # checkpoint has given up.
        step = int(final.name.removeprefix("step-"))
        for name in _published(self.folder):
            if int(name.removeprefix("step-")) >= step:
                self._discard(name)
        os.rename(temporary, final)
        _flush_folder(self.folder)
        _write_atomically(self.folder / LATEST, final.name)
        for name in sorted(_published(self.folder))[: -self.keep]:
            self._discard(name)

    def _unpublish(self, final: Path) -> None:
        """Remove what a save that failed has left, in whichever state it is."""
        pointer = self.folder / LATEST
        try:
            if not pointer.is_file() or pointer.read_text(encoding="utf-8") != final.name:
                self._discard(final.name)
            self.remove_leftovers()
        except OSError as error:
            warn(f"could not remove what is left of {final}: {error}; the next save tries again")

    def _discard(self, name: str) -> None:
        """Remove a published checkpoint; renamed first, so that half of one can never be taken for a whole."""
        for part in (f"{name}{NATIVE}", name):
            doomed = self.folder / f"{TEMPORARY}{part}-{time.time_ns()}"
            try:
                if (self.folder / part).is_dir():
                    os.rename(self.folder / part, doomed)
                    shutil.rmtree(doomed)
            except OSError as error:
                # A file system that will not delete must not stop a run; the next save tries again.
                warn(f"could not remove old checkpoint {part}: {error}")

    def remove_leftovers(self) -> None:
        """Remove what a crash left half-written; for the one rank that writes here.

        A conversion that ended between its two renames left the original under its other name alone: it is put back.
        """
        for original in self.folder.glob(f"step-*{NATIVE}"):
            if not (published := original.with_name(original.name.removesuffix(NATIVE))).exists():
                os.rename(original, published)
        for leftover in self.folder.glob(f"{TEMPORARY}*"):
            shutil.rmtree(leftover, ignore_errors=True)


def _for_conversion() -> dict[str, Any]:
    """Client state without which DeepSpeed refuses to convert a checkpoint to another number of ranks."""
    from deepspeed.checkpoint import constants

    version = {constants.UNIVERSAL_CHECKPOINT_VERSION_KEY: constants.UNIVERSAL_CHECKPOINT_VERSION_VALUE}
    return {constants.UNIVERSAL_CHECKPOINT_INFO: version}


def _free(folder: Path) -> str:
    try:
        return f"{shutil.disk_usage(folder).free / 1e9:.1f} GB are free there"
    except OSError:
        return "that folder cannot be reached"


def _published(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return [entry.name for entry in folder.iterdir() if _NAME.fullmatch(entry.name) and entry.is_dir()]


def _files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def _check_complete(names: list[str], state: dict[str, Any]) -> None:
    """Raise IncompleteError when ranks wrote where rank 0 cannot see; the same on every rank."""
    shards = sum(name.endswith("_optim_states.pt") for name in names)
    if state["zero_stage"] and not state["universal"] and shards != state["world_size"]:
        raise IncompleteError(
            f"{shards} of {state['world_size']} ranks' optimiser files arrived in the run folder: on several nodes "
            "`run:` must be on a file system that all of them share."
        )


def _measure_and_flush(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        measured = {"sha256": _hash_file(file), "bytes": file.tell()}
        os.fsync(file.fileno())
    return measured


def _read_seal(folder: Path) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """What a checkpoint's files have to be, its state, and what is wrong with its seal."""
    try:
        content = json.loads(_patiently(folder / SEAL, lambda: (folder / SEAL).read_bytes()))
        seal = content.pop("sha256")
        files, state = content["files"], content["state"]
    except (FileNotFoundError, ValueError, KeyError, AttributeError) as error:
        return {}, {}, [f"{SEAL} cannot be read ({type(error).__name__})"]
    return files, state, [] if _hash_of(content) == seal else [f"{SEAL} was changed after it was written"]


def _compare(path: Path, expected: dict[str, Any]) -> list[str]:
    def read() -> list[str]:
        size = path.stat().st_size
        if size != expected["bytes"]:
            return [f"{path.name} has {size} bytes instead of {expected['bytes']}"]
        with path.open("rb") as file:
            return [] if _hash_file(file) == expected["sha256"] else [f"{path.name} has changed bytes"]

    try:
        return _patiently(path, read)
    except FileNotFoundError:
        return [f"{path.name} is missing"]


def _patiently(path: Path, read: Callable[[], Read]) -> Read:
    """What `read` returns; a storage that fails is no damaged checkpoint, to be given up for an older one."""
    for delay in READ_AGAIN_AFTER_S:
        try:
            return read()
        except FileNotFoundError:
            raise
        except OSError:
            time.sleep(delay)
    try:
        return read()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise OSError(
            f"{path} could not be read for {sum(READ_AGAIN_AFTER_S)} s ({error.strerror}). It may be intact: "
            f"mend the file system and start again, or move {path.parent} away to continue from an older one."
        ) from error


def _hash_file(file: Any) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


def _sealed(content: dict[str, Any]) -> str:
    return json.dumps({**content, "sha256": _hash_of(content)}, indent=1) + "\n"


def _hash_of(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _write_atomically(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    _flush_folder(path.parent)


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
