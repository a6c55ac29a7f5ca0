"""Does the test set share with the training set what it should not? Checked on columns, one row per trial.

Legend: N trials, M training trials. Times are seconds from the recording's start.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

Column: TypeAlias = "ArrayLike | pa.Array | pa.ChunkedArray"
Codes = NDArray[np.int64]
Floats = NDArray[np.float64]
Names: TypeAlias = "pa.StringArray"
HeldOut = Literal["subject", "recording", "stimulus"]

_WHY = {
    "subject": "the score does not tell how new people would fare; hold out whole subjects, or drop "
    "`subject` from what the split claims to hold out",
    "recording": "noise, drift and electrode placement of that hour are shared and can be recognised instead of "
    "the stimulus; hold out whole recordings",
    "stimulus": "a picture seen in training can be recalled instead of decoded; split by picture",
    "overlap": "the same samples are trained on and tested on; split before windows are cut",
    "neighbour": "EEG is correlated over seconds and minutes, so a trial's neighbours betray it; leave a gap, or "
    "hold out whole blocks",
    "block": "what is common to a block (attention, drift, electrode gel) can be recognised instead of the "
    "stimulus; hold out whole blocks",
}
_NAMED_BLOCK_DESIGNS = ("imagenet-eeg", "imagenet_eeg", "eegcvpr40", "eeg-imagenet", "eegimagenet")


@dataclass(frozen=True)
class Trials:
    """Columns over N trials. Unknown ones are left out, and what needs them is not checked.

    subject, recording (with the data set's name where names may repeat), stimulus: names, of millions of trials best
    as pyarrow dictionaries. start, stop: seconds. block: name of the run of trials within its recording.
    """

    subject: Column | None = None
    recording: Column | None = None
    stimulus: Column | None = None
    start: ArrayLike | None = None
    stop: ArrayLike | None = None
    block: Column | None = None


@dataclass(frozen=True)
class Leak:
    """One way in which the test set is not independent of the training set.

    kind: subject, recording, stimulus, overlap, neighbour, block; trials: test trials concerned; of: test trials
    in all; examples: up to three names; message: a sentence with cause, consequence and remedy.
    """

    kind: str
    trials: int
    of: int
    examples: tuple[str, ...]

    @property
    def message(self) -> str:
        shared = {
            "overlap": "overlap a training trial in time, in recording",
            "neighbour": "lie next to a training trial in time, in recording",
            "block": "share a block with training trials:",
        }.get(self.kind, f"share a {self.kind} with training trials:")
        names = ", ".join(self.examples)
        return f"{self.trials} of {self.of} test trials {shared} {names}: {_WHY[self.kind]}."


class LeakageError(ValueError):
    """The split leaks; `leaks` lists how."""

    def __init__(self, leaks: Sequence[Leak]) -> None:
        super().__init__("the test set leaks:\n" + "\n".join(f"- {leak.message}" for leak in leaks))
        self.leaks = tuple(leaks)


def find_leaks(
    train: Trials,
    test: Trials,
    held_out: Sequence[HeldOut] = ("subject", "recording", "stimulus"),
    gap: float = 10.0,
) -> list[Leak]:
    """Every way in which `test` depends on `train`, worst first.

    held_out: what the split claims to hold out; a split within subjects leaves "subject" and "recording" away.
    Whatever it claims, trials that overlap in time, lie less than `gap` seconds apart in one recording, or share
    a block are found, as far as the columns are given.
    Raises ValueError when a claim cannot be checked for want of its column, or columns differ in length.
    """
    n = _length(test, "test")
    _length(train, "train")
    leaks = []
    if _have(train, test, "recording", "start", "stop"):
        leaks += _in_time(train, test, n, gap)
    if _have(train, test, "recording", "block"):
        leaks += _shared("block", *_blocks(train, test), n)
    for claim in held_out:
        if not _have(train, test, claim):
            raise ValueError(f"whether a {claim} is shared cannot be checked: give `{claim}` of both sides.")
        (train_M, test_N), names = _coded(getattr(train, claim), getattr(test, claim))
        leaks += _shared(claim, train_M, test_N, names, n)
    order = ("overlap", "stimulus", "block", "neighbour", "recording", "subject")
    return sorted(leaks, key=lambda leak: order.index(leak.kind))


def check_split(
    train: Trials,
    test: Trials,
    held_out: Sequence[HeldOut] = ("subject", "recording", "stimulus"),
    gap: float = 10.0,
) -> None:
    """Raises LeakageError when `find_leaks` finds any."""
    leaks = find_leaks(train, test, held_out, gap)
    if leaks:
        raise LeakageError(leaks)


def block_design_warning(
    label: Column, recording: Column, start: ArrayLike, dataset: str | None = None
) -> str | None:
    """A warning when stimuli of one class were shown in blocks, or None.

    label, recording (N,): names; start (N,): seconds. Judged by how often a trial has the label of the one before
    it, beyond what a random order would give: 0 for a random order, 1 for one block per class; above 0.5 warns.
    Data sets known for it (ImageNet-EEG, EEGCVPR40) are warned of by name as well, whatever the order looks like.
    """
    start = np.asarray(start, np.float64)
    sizes = [_size(label), _size(recording), len(start)]
    if len(set(sizes)) > 1:
        raise ValueError(f"columns of {sizes[0]}, {sizes[1]} and {sizes[2]} trials do not belong together.")
    (label_N,), classes = _coded(label)
    (recording_N,), recordings = _coded(recording)
    order = np.lexsort((start, recording_N))
    shown, where = label_N[order], recording_N[order]
    follows = where[1:] == where[:-1]
    repeats, pairs = int((follows & (shown[1:] == shown[:-1])).sum()), int(follows.sum())
    # Trials of each class in each recording, and of each recording.
    both, count = np.unique(where * max(len(classes), 1) + shown, return_counts=True)
    same = np.bincount(both // max(len(classes), 1), count * (count - 1.0), minlength=len(recordings))
    n = np.bincount(where, minlength=len(recordings)).astype(np.float64)
    several = n > 1
    expected = float((same[several] / n[several]).sum())
    # One class alone repeats always, and proves nothing.
    clumping = (repeats - expected) / (pairs - expected) if pairs - expected > 0.5 else 0.0
    known = dataset is not None and any(name in dataset.lower() for name in _NAMED_BLOCK_DESIGNS)
    if clumping <= 0.5 and not known:
        return None
    seen = (
        f"{repeats} of {pairs} trials follow one of their own class, where a random order would give {expected:.0f}"
        if clumping > 0.5
        else f"{dataset} is known for it"
    )
    return (
        f"block design: stimuli of one class were shown one after another ({seen}). Slow drifts of the EEG then "
        "name the block, and so the class, without any response to the picture: classifiers trained on such data "
        "fall to chance when trials are shuffled in time (Li et al. 2021, 'The perils and pitfalls of block design "
        "for EEG classification experiments', TPAMI 43(1)). Scores on it do not show decoding of pictures; confirm "
        "on a set with random order, such as THINGS-EEG2."
    )


def _shared(kind: str, train_M: Codes, test_N: Codes, names: Names, n: int) -> list[Leak]:
    known = np.zeros(len(names), bool)
    known[train_M] = True
    leaking = known[test_N]
    if not leaking.any():
        return []
    return [Leak(kind, int(leaking.sum()), n, _examples(names, test_N[leaking]))]


def _examples(names: Names, codes: Codes) -> tuple[str, ...]:
    concerned = np.unique(codes)
    return tuple(heapq.nsmallest(3, names.take(pa.array(concerned)).to_pylist()))


def _in_time(train: Trials, test: Trials, n: int, gap: float) -> list[Leak]:
    """Test trials that overlap a training trial of their recording, and those nearer to one than `gap` seconds."""
    (train_M, test_N), names = _coded(train.recording, test.recording)
    common = np.zeros(len(names), np.uint8)
    common[train_M] = 1
    common[test_N] |= 2
    mine, theirs = common[test_N] == 3, common[train_M] == 3
    distance = np.full(n, np.inf)
    distance[mine] = _nearest(
        test_N[mine],
        _floats(test.start)[mine],
        _floats(test.stop)[mine],
        train_M[theirs],
        _floats(train.start)[theirs],
        _floats(train.stop)[theirs],
    )
    leaks = []
    for kind, concerned in (("overlap", distance < 0), ("neighbour", (distance >= 0) & (distance < gap))):
        if concerned.any():
            leaks.append(Leak(kind, int(concerned.sum()), n, _examples(names, test_N[concerned])))
    return leaks


def _nearest(
    where_N: Codes, start_N: Floats, stop_N: Floats, where_M: Codes, start_M: Floats, stop_M: Floats
) -> Floats:
    """Seconds between each stretch and the nearest training stretch of its recording; negative where they overlap.

    Of the training stretches that begin before a stretch ends, the one that ends last is the nearest on that
    side; of the others, the one that begins first.
    """
    if not len(where_M):
        return np.full(len(where_N), np.inf)
    order = np.lexsort((start_M, where_M))
    begins, within = start_M[order], where_M[order]
    ends = _running_maximum(stop_M[order], within)
    # How many training stretches lie in recordings before, or begin before: all sorted as one, not searched one by one.
    m = len(begins)
    place = np.lexsort(
        (np.arange(m + len(stop_N)) < m, np.append(begins, stop_N), np.append(within, where_N))
    )
    of_training = place < m
    before = np.empty(len(stop_N), np.int64)
    before[place[~of_training] - m] = np.cumsum(of_training)[~of_training]
    last, first = np.maximum(before - 1, 0), np.minimum(before, m - 1)
    since = np.where((before > 0) & (within[last] == where_N), start_N - ends[last], np.inf)
    until = np.where((before < m) & (within[first] == where_N), begins[first] - stop_N, np.inf)
    return np.minimum(since, until)


def _running_maximum(values: Floats, groups: Codes) -> Floats:
    """The largest value so far in each group; groups ascend."""
    ranked = np.sort(values)
    rank = np.searchsorted(ranked, values)
    # With the group in the higher digits, the maximum begins anew with each.
    return ranked[np.maximum.accumulate(groups * len(values) + rank) - groups * len(values)]


def _have(train: Trials, test: Trials, *columns: str) -> bool:
    return all(getattr(side, column) is not None for side in (train, test) for column in columns)


def _blocks(train: Trials, test: Trials) -> tuple[Codes, Codes, Names]:
    """Blocks are numbered per recording: the two names together."""
    (recording_M, recording_N), recordings = _coded(train.recording, test.recording)
    (block_M, block_N), blocks = _coded(train.block, test.block)
    pairs = np.append(recording_M, recording_N) * len(blocks) + np.append(block_M, block_N)
    known, codes = np.unique(pairs, return_inverse=True)
    names = [
        f"{recordings[pair // len(blocks)]} block {blocks[pair % len(blocks)]}" for pair in known.tolist()
    ]
    return codes[: len(block_M)], codes[len(block_M) :], pa.array(names, pa.string())


def _length(trials: Trials, side: str) -> int:
    lengths = {name: _size(column) for name, column in vars(trials).items() if column is not None}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"columns of the {side} trials differ in length: {lengths}.")
    return next(iter(lengths.values()), 0)


def _size(column: Column) -> int:
    return len(column if isinstance(column, pa.Array | pa.ChunkedArray) else np.asarray(column))


def _coded(*columns: Column | None) -> tuple[list[Codes], Names]:
    """Columns of names as codes, and the names: `names[codes]`, each once, for all columns the same."""
    encoded = [_encoded(column) for column in columns]
    chunks = [chunk for column in encoded for chunk in column.chunks]
    of_chunks = [chunk.dictionary.cast(pa.string()) for chunk in chunks]
    together = pa.concat_arrays([pa.array([], pa.string()), *of_chunks]).dictionary_encode()
    codes_of_names = together.indices.to_numpy().astype(np.int64)
    found, first = [], 0
    for column in encoded:
        parts: list[Codes] = [np.empty(0, np.int64)]
        for chunk in column.chunks:
            parts.append(codes_of_names[first : first + len(chunk.dictionary)][chunk.indices.to_numpy()])
            first += len(chunk.dictionary)
        found.append(np.concatenate(parts))
    return found, together.dictionary


def _encoded(column: Any) -> pa.ChunkedArray:
    if not isinstance(column, pa.Array | pa.ChunkedArray):
        column = pa.array(np.asarray(column).astype(str), pa.string())
    column = column if isinstance(column, pa.ChunkedArray) else pa.chunked_array([column])
    if column.null_count:
        column = column.cast(pa.string()).fill_null("")
    return column if pa.types.is_dictionary(column.type) else column.dictionary_encode()


def _floats(column: ArrayLike | None) -> Floats:
    return np.asarray(column, np.float64)
