"""Does the test set share with the training set what it should not? Checked on columns, one row per trial.

Legend: N trials. Times are seconds from the recording's start.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Strings = NDArray[np.str_]
Floats = NDArray[np.float64]
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

    subject, recording (with the data set's name where names may repeat), stimulus: names.
    start, stop: seconds. block: name of the run of trials within its recording.
    """

    subject: ArrayLike | None = None
    recording: ArrayLike | None = None
    stimulus: ArrayLike | None = None
    start: ArrayLike | None = None
    stop: ArrayLike | None = None
    block: ArrayLike | None = None


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
        leaks += _shared("block", _joined(train), _joined(test), n)
    for claim in held_out:
        if not _have(train, test, claim):
            raise ValueError(f"whether a {claim} is shared cannot be checked: give `{claim}` of both sides.")
        leaks += _shared(claim, _strings(getattr(train, claim)), _strings(getattr(test, claim)), n)
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
    label: ArrayLike, recording: ArrayLike, start: ArrayLike, dataset: str | None = None
) -> str | None:
    """A warning when stimuli of one class were shown in blocks, or None.

    label, recording (N,): names; start (N,): seconds. Judged by how often a trial has the label of the one before
    it, beyond what a random order would give: 0 for a random order, 1 for one block per class; above 0.5 warns.
    Data sets known for it (ImageNet-EEG, EEGCVPR40) are warned of by name as well, whatever the order looks like.
    """
    label, recording, start = _strings(label), _strings(recording), np.asarray(start, np.float64)
    if not len(label) == len(recording) == len(start):
        raise ValueError(
            f"columns of {len(label)}, {len(recording)} and {len(start)} trials do not belong together."
        )
    repeats = pairs = 0
    expected = 0.0
    for name in np.unique(recording):
        inside = recording == name
        shown = label[inside][np.argsort(start[inside], kind="stable")]
        n = len(shown)
        if n < 2:
            continue
        counts = np.unique(shown, return_counts=True)[1].astype(np.float64)
        repeats += int((shown[1:] == shown[:-1]).sum())
        pairs += n - 1
        expected += (n - 1) * float((counts * (counts - 1)).sum()) / (n * (n - 1))
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


def _shared(kind: str, train: Strings, test: Strings, n: int) -> list[Leak]:
    leaking = np.isin(test, train)
    if not leaking.any():
        return []
    return [Leak(kind, int(leaking.sum()), n, tuple(str(name) for name in np.unique(test[leaking])[:3]))]


def _in_time(train: Trials, test: Trials, n: int, gap: float) -> list[Leak]:
    """Test trials that overlap a training trial of their recording, and those nearer to one than `gap` seconds."""
    train_recording, test_recording = _strings(train.recording), _strings(test.recording)
    distance = np.full(n, np.inf)
    for name in np.intersect1d(train_recording, test_recording):
        mine, theirs = test_recording == name, train_recording == name
        distance[mine] = _nearest(
            _floats(test.start)[mine],
            _floats(test.stop)[mine],
            _floats(train.start)[theirs],
            _floats(train.stop)[theirs],
        )
    leaks = []
    for kind, concerned in (("overlap", distance < 0), ("neighbour", (distance >= 0) & (distance < gap))):
        if concerned.any():
            names = tuple(str(name) for name in np.unique(test_recording[concerned])[:3])
            leaks.append(Leak(kind, int(concerned.sum()), n, names))
    return leaks


def _nearest(start: Floats, stop: Floats, train_start: Floats, train_stop: Floats) -> Floats:
    """Seconds between each stretch and the nearest training stretch; negative where they overlap.

    Of the training stretches that begin before a stretch ends, the one that ends last is the nearest on that
    side; of the others, the one that begins first.
    """
    order = np.argsort(train_start, kind="stable")
    begins, ends = train_start[order], np.maximum.accumulate(train_stop[order])
    before = np.searchsorted(begins, stop, side="left")
    since = np.where(before > 0, start - ends[np.maximum(before - 1, 0)], np.inf)
    until = np.where(before < len(begins), begins[np.minimum(before, len(begins) - 1)] - stop, np.inf)
    return np.minimum(since, until)


def _have(train: Trials, test: Trials, *columns: str) -> bool:
    return all(getattr(side, column) is not None for side in (train, test) for column in columns)


def _joined(trials: Trials) -> Strings:
    """Blocks are numbered per recording: the two names together."""
    parts = zip(_strings(trials.recording), _strings(trials.block), strict=True)
    return _strings([f"{recording} block {block}" for recording, block in parts])


def _length(trials: Trials, side: str) -> int:
    lengths = {name: len(np.asarray(column)) for name, column in vars(trials).items() if column is not None}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"columns of the {side} trials differ in length: {lengths}.")
    return next(iter(lengths.values()), 0)


def _strings(column: ArrayLike | None) -> Strings:
    return np.asarray(column).astype(str)


def _floats(column: ArrayLike | None) -> Floats:
    return np.asarray(column, np.float64)
