"""A split that leaks is caught, and named; a clean one passes."""

from __future__ import annotations

import itertools

import numpy as np
import pyarrow as pa
import pytest

from ddscale.metrics.leakage import LeakageError, Trials, block_design_warning, check_split, find_leaks


def trials(rows):
    """Rows (subject, recording, stimulus, start, stop, block)."""
    columns = list(zip(*rows, strict=True))
    names = ("subject", "recording", "stimulus", "start", "stop", "block")
    return Trials(**dict(zip(names, columns, strict=True)))


TRAIN = trials(
    [
        ("s1", "r1", "cat", 0.0, 1.0, 1),
        ("s1", "r1", "dog", 100.0, 101.0, 2),
        ("s2", "r2", "cup", 50.0, 51.0, 1),
    ]
)


def kinds(test, **options):
    return [leak.kind for leak in find_leaks(TRAIN, test, **options)]


def test_a_clean_split_passes():
    clean = trials([("s3", "r3", "tree", 0.0, 1.0, 1), ("s4", "r4", "boat", 100.0, 101.0, 2)])
    assert find_leaks(TRAIN, clean) == []
    check_split(TRAIN, clean)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (("s1", "r9", "tree", 0.0, 1.0, 9), ["subject"]),
        (("s3", "r9", "cat", 0.0, 1.0, 9), ["stimulus"]),
        (("s3", "r1", "tree", 500.0, 501.0, 9), ["recording"]),
        (("s3", "r1", "tree", 0.5, 1.5, 9), ["overlap", "recording"]),
        (("s3", "r1", "tree", 105.0, 106.0, 9), ["neighbour", "recording"]),
        (("s3", "r1", "tree", 95.0, 99.0, 9), ["neighbour", "recording"]),
        (("s3", "r1", "tree", 120.0, 121.0, 9), ["recording"]),
        (("s3", "r1", "tree", 120.0, 121.0, 2), ["block", "recording"]),
        # The same block number of another recording is another block.
        (("s3", "r9", "tree", 0.5, 1.5, 1), []),
    ],
)
def test_each_way_to_leak_is_found(row, expected):
    assert kinds(trials([row, ("s8", "r8", "boat", 0.0, 1.0, 1)])) == expected


def test_what_a_split_does_not_claim_is_no_leak_but_time_always_is():
    row = ("s1", "r1", "tree", 1.0, 2.0, 9)
    assert kinds(trials([row]), held_out=("stimulus",)) == ["neighbour"]
    assert kinds(trials([row]), held_out=("stimulus",), gap=0.0) == []
    assert kinds(trials([("s1", "r1", "tree", 0.9, 2.0, 9)]), held_out=(), gap=0.0) == ["overlap"]


def test_overlap_with_a_long_training_stretch_that_began_much_earlier():
    train = Trials(recording=["r"] * 3, start=[0.0, 10.0, 400.0], stop=[300.0, 11.0, 401.0])
    test = Trials(recording=["r"] * 3, start=[200.0, 350.0, 395.0], stop=[201.0, 351.0, 396.0])
    leaks = {leak.kind: leak.trials for leak in find_leaks(train, test, held_out=())}
    assert leaks == {"overlap": 1, "neighbour": 1}


def test_nearest_training_trial_against_all_pairs():
    rng = np.random.default_rng(0)
    start, train_start = np.sort(rng.uniform(0, 5000, 80)), rng.uniform(0, 5000, 60)
    stop, train_stop = start + rng.uniform(1, 20, 80), train_start + rng.uniform(1, 60, 60)
    apart = np.maximum(train_start[None] - stop[:, None], start[:, None] - train_stop[None])
    train = Trials(recording=["r"] * 60, start=train_start, stop=train_stop)
    test = Trials(recording=["r"] * 80, start=start, stop=stop)
    leaks = {leak.kind: leak.trials for leak in find_leaks(train, test, held_out=())}
    nearest = apart.min(axis=1)
    assert leaks == {"overlap": (nearest < 0).sum(), "neighbour": ((nearest >= 0) & (nearest < 10)).sum()}
    assert min(leaks.values()) > 5


def crowded(rng, count):
    """Trials in few recordings, many of them at the same times."""
    recording = rng.integers(0, 5, count)
    start = rng.integers(0, 300, count).astype(float)
    return Trials(
        subject=np.char.add("s", (recording // 2).astype(str)),
        recording=np.char.add("r", recording.astype(str)),
        stimulus=np.char.add("p", rng.integers(0, 400, count).astype(str)),
        start=start,
        stop=start + rng.choice([1.0, 5.0, 20.0], count),
        block=rng.integers(0, 6, count),
    )


def one_by_one(train, test, gap):
    """{kind: (trials, first names)} found by asking every test trial about every training trial."""
    concerned = {
        kind: set() for kind in ("subject", "recording", "stimulus", "block", "overlap", "neighbour")
    }
    for i, where in enumerate(test.recording):
        for kind in ("subject", "recording", "stimulus"):
            if getattr(test, kind)[i] in getattr(train, kind):
                concerned[kind].add((i, getattr(test, kind)[i]))
        there = np.flatnonzero(train.recording == where)
        if test.block[i] in train.block[there]:
            concerned["block"].add((i, f"{where} block {test.block[i]}"))
        apart = np.maximum(train.start[there] - test.stop[i], test.start[i] - train.stop[there])
        nearest = apart.min(initial=np.inf)
        if nearest < gap:
            concerned["overlap" if nearest < 0 else "neighbour"].add((i, where))
    return {
        kind: (len(found), tuple(sorted({name for _, name in found})[:3]))
        for kind, found in concerned.items()
        if found
    }


@pytest.mark.parametrize("as_dictionaries", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_all_recordings_at_once_are_as_trial_by_trial(seed, as_dictionaries):
    rng = np.random.default_rng(seed)
    train, test = crowded(rng, int(rng.integers(0, 60))), crowded(rng, int(rng.integers(1, 60)))
    expected = one_by_one(train, test, gap=3.0)
    if as_dictionaries:  # as a store's columns come: in chunks, each with a dictionary of its own
        train, test = (
            Trials(**{name: chunked(column) for name, column in vars(side).items()}) for side in (train, test)
        )
    found = find_leaks(train, test, gap=3.0)
    assert {leak.kind: (leak.trials, leak.examples) for leak in found} == expected


def chunked(column):
    if column.dtype.kind == "f":
        return column
    names = pa.array(column.astype(str))
    half = len(names) // 2
    parts = [part.dictionary_encode() for part in (names[:half], names[half:])]
    return pa.chunked_array(parts, pa.dictionary(pa.int32(), pa.string()))


def test_the_error_names_every_leak_with_a_remedy():
    test = trials([("s1", "r1", "cat", 0.0, 1.0, 1), ("s3", "r3", "boat", 0.0, 1.0, 1)])
    with pytest.raises(LeakageError) as error:
        check_split(TRAIN, test)
    assert [leak.kind for leak in error.value.leaks] == [
        "overlap",
        "stimulus",
        "block",
        "recording",
        "subject",
    ]
    message = str(error.value)
    for part in (
        "1 of 2 test trials",
        "share a stimulus with training trials: cat",
        "r1 block 1",
        "split by picture",
    ):
        assert part in message


def test_a_claim_that_cannot_be_checked_is_an_error():
    with pytest.raises(ValueError, match="give `subject`"):
        find_leaks(Trials(stimulus=["a"]), Trials(stimulus=["b"]))
    with pytest.raises(ValueError, match="differ in length"):
        find_leaks(Trials(stimulus=["a"], subject=["s", "s"]), Trials(stimulus=["b"]), held_out=("stimulus",))


def session(rng, order, recordings=3):
    """Labels of 40 classes, 10 trials each, in each recording."""
    labels = np.repeat(np.arange(40), 10)
    parts = [labels if order == "blocks" else rng.permutation(labels) for _ in range(recordings)]
    if order == "pairs":
        parts = [np.repeat(part[::2], 2) for part in parts]
    start = np.tile(np.arange(400.0), recordings)
    recording = np.repeat([f"r{i}" for i in range(recordings)], 400)
    # The table's order says nothing, the times do.
    shuffled = rng.permutation(len(start))
    return np.concatenate(parts)[shuffled], recording[shuffled], start[shuffled]


def test_block_design_is_recognised_from_the_order_of_labels():
    rng = np.random.default_rng(1)
    warning = block_design_warning(*session(rng, "blocks"))
    assert warning is not None
    for part in ("block design", "1080 of 1197", "Li et al. 2021", "chance", "THINGS-EEG2"):
        assert part in warning
    assert block_design_warning(*session(rng, "random")) is None
    assert block_design_warning(["a"] * 10, ["r"] * 10, np.arange(10.0)) is None
    assert block_design_warning([], [], []) is None


@pytest.mark.parametrize("seed", range(10))
def test_blocks_over_recordings_of_all_lengths(seed):
    rng = np.random.default_rng(seed)
    recording = rng.integers(0, 12, 60)
    label = np.sort(rng.integers(0, 4, 60)) if seed % 2 else rng.integers(0, 4, 60)
    start = rng.permutation(60) if seed % 3 else np.arange(60)
    repeats = pairs = 0
    expected = 0.0
    for where in range(12):
        shown = label[recording == where][np.argsort(start[recording == where])]
        n = len(shown)
        for before, after in itertools.pairwise(shown):
            repeats, pairs = repeats + int(before == after), pairs + 1
            expected += sum((shown == kind).sum() * ((shown == kind).sum() - 1) for kind in range(4)) / (
                n * (n - 1)
            )
    warning = block_design_warning(label, recording, start)
    if (repeats - expected) / (pairs - expected) > 0.5:
        assert f"{repeats} of {pairs} trials follow one of their own class" in warning
        assert f"a random order would give {expected:.0f})" in warning
    else:
        assert warning is None


def test_known_block_designs_are_warned_of_by_name():
    rng = np.random.default_rng(2)
    for name in ("EEGCVPR40", "imagenet-eeg"):
        warning = block_design_warning(*session(rng, "random"), dataset=name)
        assert warning is not None
        assert name in warning
    assert block_design_warning(*session(rng, "random"), dataset="things-eeg2") is None
