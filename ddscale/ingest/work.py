"""What an ingest has to do: every recording found, against what the store and an interrupted ingest already have."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path
from typing import Any

from ddscale.ingest.marks import MARKED_BAD
from ddscale.ingest.signature import NO_FILE, signature
from ddscale.ingest.statements import Restated, differences
from ddscale.ingest.summary import BLOCKLISTED
from ddscale.sources.recording import Recording
from ddscale.store import layout, sealing, tables
from ddscale.store.manifest import Blocklist
from ddscale.store.staging import read_sidecar, staged_names

DUPLICATE = "duplicate"

# A better recipe, reader or machine may make something of these; what the signal itself is unfit for stays so.
RETRIED = {"unreadable", "failed", "unit", "crashed", "timeout", "out_of_memory", "no_eeg", BLOCKLISTED}


class Step(Enum):
    """What to do with a recording."""

    PROCESS = auto()
    """It is new, or was left out for a reason that may be gone."""
    COMPARE = auto()
    """Its file has changed since it was stored: process it again and see whether its signal has."""
    TAKE = auto()
    """An interrupted ingest has processed it."""
    BLOCK = auto()
    """It is on the blocklist."""


@dataclass(frozen=True)
class Known:
    """What the store says about a recording.

    statement: None where the store is older than statements. marks: digest of what was marked as bad, if anything.
    """

    status: str
    reason: str | None
    content: str | None
    subject: str
    size_bytes: int
    mtime_ns: int
    cut: str
    statement: Mapping[str, Any] | None
    marks: str | None

    def unchanged(self, recording: Recording) -> bool:
        """A source that is no longer there, or never was a file, counts as unchanged."""
        if recording.cut != self.cut:
            return False
        now = signature(recording.path, recording.beside)
        return now == NO_FILE or now == (self.size_bytes, self.mtime_ns)


@dataclass
class State:
    """Recordings by (dataset, recording): those published, those only staged, and how many records of theirs are
    in a sealed shard that is not published yet."""

    published: dict[tuple[str, str], Known] = field(default_factory=dict)
    staged: set[tuple[str, str]] = field(default_factory=set)
    sealed_records: dict[tuple[str, str], int] = field(default_factory=dict)
    sealed_shards: list[str] = field(default_factory=list)


def read_state(store: Path) -> State:
    """What the store's folder holds: nothing, a published store, an interrupted ingest, or both."""
    sealed = sealing.sealed_rows(store)
    state = State(
        staged=set(staged_names(store)),
        sealed_records=sealing.count_by_recording(sealed),
        sealed_shards=sealing.shards_of(sealed),
    )
    if not (store / layout.MANIFEST).is_file():
        return state
    about = tables.read(
        store / layout.RECORDINGS,
        tables.RECORDINGS,
        ["dataset", "recording", "subject", "status", "reason", "content", "meta"],
    )
    sources = {
        (row["dataset"], row["recording"]): (row["size_bytes"], row["mtime_ns"])
        for row in tables.read(store / layout.SOURCES, tables.SOURCES).to_pylist()
    }
    for row in about.to_pylist():
        name = row["dataset"], row["recording"]
        size, time = sources.get(name, (0, 0))
        meta = json.loads(row["meta"] or "{}")
        state.published[name] = Known(
            row["status"],
            row["reason"],
            row["content"],
            row["subject"],
            size,
            time,
            meta.get("cut", ""),
            meta.get("statement"),
            meta.get(MARKED_BAD),
        )
    return state


def steps(
    store: Path, recordings: Sequence[Recording], state: State, blocked: Blocklist, hashes: dict[str, str]
) -> tuple[list[tuple[Recording, Step]], list[str]]:
    """What there is to do, in the order in which records will lie in the store; nothing for what is done. With it,
    sentences about recordings that are stored and of which another recipe said something else.

    hashes: of every `dataset/subject`.
    """
    todo = []
    restated = Restated()
    for recording in sorted(recordings, key=lambda recording: (recording.dataset, recording.id)):
        subject = hashes[f"{recording.dataset}/{recording.subject}"]
        step = _step(store, recording, state, blocked, subject, restated)
        if step is not None:
            todo.append((recording, step))
    return todo, restated.sentences()


def _step(
    store: Path, recording: Recording, state: State, blocked: Blocklist, subject: str, restated: Restated
) -> Step | None:
    name = recording.dataset, recording.id
    known = state.published.get(name)
    names = {f"{recording.dataset}/{spelt}" for spelt in (recording.id, recording.alias)}
    if subject in blocked.subjects or not names.isdisjoint(blocked.recordings):
        return None if known is not None and known.reason == BLOCKLISTED else Step.BLOCK
    if known is not None:
        changes = differences(known.statement, known.subject, recording, subject)
        if known.status == "kept":
            restated.add(recording, changes)
            # Read as it is stated now, it would be another whatever its file holds.
            return None if changes or known.unchanged(recording) else Step.COMPARE
        again = known.reason in RETRIED or changes or not known.unchanged(recording)
        return Step.PROCESS if again else None
    staged = read_sidecar(store, *name) if name in state.staged else None
    if staged is None or staged.reason in RETRIED:
        return Step.PROCESS
    changes = differences(staged.meta.get("statement"), staged.subject, recording, subject)
    if name in state.sealed_records:
        restated.add(recording, changes)
        return Step.TAKE  # part of it is in a shard; that its file has changed is found by the next ingest
    same = signature(recording.path, recording.beside) in (NO_FILE, (staged.size_bytes, staged.mtime_ns))
    same = same and staged.meta.get("cut", "") == recording.cut and not changes
    return Step.TAKE if same else Step.PROCESS
