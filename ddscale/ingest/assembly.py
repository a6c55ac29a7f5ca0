"""Recordings are processed in any order, but enter the store in sorted order: this keeps the two apart."""

from __future__ import annotations

import itertools
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from ddscale.ingest.chain import Job
from ddscale.ingest.marks import MARKED_BAD
from ddscale.ingest.pool import Pool, TookTooLong, WorkerDied
from ddscale.ingest.processing import describe, ingest_recording, quarantine
from ddscale.ingest.summary import BLOCKLISTED
from ddscale.ingest.work import DUPLICATE, State, Step
from ddscale.sources.recording import Recording
from ddscale.store import layout, sealing
from ddscale.store.staging import StagedRecording, fragment_path, read_sidecar, sidecar_path

CRASHED = "crashed"
TIMEOUT = "timeout"

# Copying is done by the kernel: a few threads of this process fill what a disk or a network takes.
_SEALERS = 4

OnProgress = Callable[[int, int, str], None]


def process_all(job: Job, pool: Pool, work: Sequence[tuple[int, Recording]]) -> Iterator[int]:
    """Stage every recording, no more under way than the pool has room for; yields their numbers as they finish.

    A recording during which a worker died is tried once more, alone; if the worker dies again, it is quarantined.
    So is one that takes longer than the pool allows.
    """
    waiting = iter(work)
    under_way: dict[int, Recording] = {}
    suspects: list[tuple[int, Recording]] = []
    while True:
        for number, recording in itertools.islice(waiting, max(0, pool.capacity - len(under_way))):
            under_way[number] = recording
            pool.submit(number, ingest_recording, job, recording)
        if not under_way:
            break
        finished = pool.next()
        if finished is None:
            continue  # more workers may have come
        recording = under_way.pop(finished.name)
        if isinstance(finished.error, WorkerDied):
            suspects.append((finished.name, recording))
        else:
            _settle(job, recording, finished.error)
            yield finished.name
    for number, recording in suspects:
        pool.submit(number, ingest_recording, job, recording)
        while (finished := pool.next()) is None:
            pass
        _settle(job, recording, finished.error)
        yield number


def _settle(job: Job, recording: Recording, error: BaseException | None) -> None:
    """Quarantine a recording whose task left no outcome; raises what is no recording's fault."""
    if error is None:
        return
    described = describe(job, recording)
    if isinstance(error, WorkerDied):
        sentence = (
            f"{recording.path} ended the process that read it, twice: its reader crashes on it, or it needs more "
            "memory than a worker has. Exclude it, or use fewer workers."
        )
        quarantine(job, recording, described, CRASHED, sentence)
    elif isinstance(error, TookTooLong):
        sentence = (
            f"{recording.path} was not done {error}: its reader hangs on it, or its disk does not answer. Exclude it, "
            "or raise `recording_limit_h`."
        )
        # Where reading hangs, so may asking for its size.
        quarantine(job, recording, described, TIMEOUT, sentence, look=False)
    else:
        raise error


class Sealer:
    """Seals shards in the background as they fill, and removes fragments that are no longer needed.

    A fragment goes only when no shard before its last one is missing: after an interruption, shards that follow
    a missing one are made again.
    """

    def __init__(self, job: Job, state: State) -> None:
        self._store: Path = layout.local_folder(job.store)
        numbers = sealing.published_numbers(self._store)
        for family, number in sealing.next_numbers(state.sealed_shards).items():
            numbers[family] = max(number, numbers.get(family, 0))
        self._packer = sealing.Packer(self._store, job.content, numbers, len(state.sealed_shards))
        self._threads = ThreadPoolExecutor(_SEALERS, thread_name_prefix="seal")
        self._sealing: deque[tuple[sealing.ShardPlan, Future[None]]] = deque()
        self._unsealed: Counter[tuple[str, str]] = Counter()

    def __enter__(self) -> Sealer:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)

    def add(self, recording: StagedRecording, skip: int) -> None:
        """Take a recording's records but for the first `skip`, which are sealed already."""
        self._unsealed[recording.dataset, recording.recording] = len(recording.records) - skip
        for plan in self._packer.add(recording, skip):
            self._start(plan)
            if len(self._sealing) > 2 * _SEALERS:  # the disk is slower than the workers
                self._finish_first()

    def finish(self) -> None:
        """Seal what is left, however little; returns when all of it is on disk."""
        for plan in self._packer.finish():
            self._start(plan)
        while self._sealing:
            self._finish_first()

    def _start(self, plan: sealing.ShardPlan) -> None:
        self._sealing.append((plan, self._threads.submit(sealing.seal, self._store, plan)))

    def _finish_first(self) -> None:
        plan, future = self._sealing.popleft()
        future.result()
        for row in plan.rows:
            name = row["dataset"], row["recording"]
            self._unsealed[name] -= 1
            if self._unsealed[name] == 0:
                del self._unsealed[name]
                fragment_path(self._store, *name).unlink(missing_ok=True)


class Assembly:
    """Carries out an ingest's steps.

    After `run`: new (recordings kept, per dataset), changed (sentences about files that no longer hold what was
    stored), and `staged()` for publication.
    """

    def __init__(self, job: Job, todo: Sequence[tuple[Recording, Step]], state: State) -> None:
        self.new: Counter[str] = Counter()
        self.changed: list[str] = []
        self._job, self._todo, self._state = job, todo, state
        self._store: Path = layout.local_folder(job.store)
        self._settled: list[tuple[str, str]] = []
        # Whose signal is in the store: the earlier one keeps its place, a later duplicate is left out.
        self._owner = {
            known.content: name for name, known in state.published.items() if known.status == "kept"
        }

    def run(self, pool: Pool, on_progress: OnProgress | None = None) -> None:
        """Do everything there is to do; when this returns, all shards are sealed.

        Raises StoreWriteError when the store cannot be written.
        """
        unprocessed = {
            number: recording
            for number, (recording, step) in enumerate(self._todo)
            if step in (Step.PROCESS, Step.COMPARE)
        }
        for recording in unprocessed.values():
            # What was staged of it describes a fragment that is about to be written anew.
            sidecar_path(self._store, recording.dataset, recording.id).unlink(missing_ok=True)
        processed = set(range(len(self._todo))) - set(unprocessed)
        head = 0
        with Sealer(self._job, self._state) as sealer:
            finished = process_all(self._job, pool, list(unprocessed.items()))
            for done, number in enumerate(itertools.chain([None], finished)):
                if number is not None:
                    processed.add(number)
                    if on_progress:
                        recording = unprocessed[number]
                        on_progress(done, len(unprocessed), f"{recording.dataset}/{recording.id}")
                while head in processed:
                    self._accept(*self._todo[head], sealer)
                    head += 1
            sealer.finish()

    def _accept(self, recording: Recording, step: Step, sealer: Sealer) -> None:
        """A recording's turn in sorted order has come: all before it are settled."""
        name = recording.dataset, recording.id
        if step is Step.BLOCK:
            sentence = f"{recording.path} is on the blocklist."
            quarantine(self._job, recording, describe(self._job, recording), BLOCKLISTED, sentence)
            self._settled.append(name)
            return
        staged = read_sidecar(self._store, *name)
        assert staged is not None, f"{name} was processed and left no sidecar"
        if step is Step.COMPARE:
            fragment_path(self._store, *name).unlink(missing_ok=True)
            known = self._state.published[name]
            if (staged.content, staged.meta.get(MARKED_BAD)) == (known.content, known.marks):
                self._settled.append(name)
            else:
                self.changed.append(_changed(recording, staged))
            return
        if staged.status == "kept":
            owner = self._owner.setdefault(staged.content, name)
            if owner != name:
                sentence = f"{recording.path} holds the same signal as {'/'.join(owner)}, which is kept."
                staged.records, staged.n_records, staged.rejected = [], 0, []
                quarantine(self._job, recording, staged, DUPLICATE, sentence)
            else:
                self.new[recording.dataset] += 1
                sealer.add(staged, self._state.sealed_records.get(name, 0))
        self._settled.append(name)

    def staged(self) -> Iterator[StagedRecording]:
        """The recordings whose rows in the store's tables are new, read back one at a time."""
        for name in self._settled:
            staged = read_sidecar(self._store, *name)
            assert staged is not None
            yield staged


def _changed(recording: Recording, staged: StagedRecording) -> str:
    now = (
        "holds another signal, other trials or other stretches marked as bad"
        if staged.status == "kept"
        else f"cannot be used any more ({staged.reason})"
    )
    return (
        f"{recording.path} has changed since it was stored and {now}. The store keeps what it has, since a sealed "
        "shard never changes: ingest into a new folder to take the new file."
    )
