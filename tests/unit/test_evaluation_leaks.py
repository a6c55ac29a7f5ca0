"""What is judged was kept from training: asked of stores, by the bytes of pictures and the times of trials."""

from __future__ import annotations

import functools
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from paired import picture

from ddscale.evaluation.leaks import check_leaks
from ddscale.metrics.leakage import LeakageError
from ddscale.store import ArrayRecording, ImageFile, StagedTrial, open_store, write_store

SFREQ = 64.0


def recording(dataset, subject, name, shown, labels=None, seconds=1.0, every=20.0):
    """A trial of `shown[i]` at `i * every` seconds."""
    rng = np.random.default_rng(len(name))
    labels = labels or [None] * len(shown)
    return ArrayRecording(
        dataset,
        subject,
        name,
        ["Cz", "Pz"],
        [
            (round(i * every * SFREQ), rng.normal(0, 20, (2, round(seconds * SFREQ))))
            for i in range(len(shown))
        ],
        trials=[StagedTrial(image=image, label=label) for image, label in zip(shown, labels, strict=True)],
    )


def pictures(dataset, **splits):
    """Pictures whose bytes follow from their names, up to the first `_`."""
    return [
        ImageFile(dataset, name, "png", name, functools.partial(picture, seed_of(name)), stated=split)
        for name, split in splits.items()
    ]


def seed_of(name):
    return zlib.crc32(name.split("_")[0].encode())


def store_of(folder, recordings, images):
    write_store(folder, recordings, sfreq=SFREQ, images=images)
    return open_store(folder)


def test_what_two_stores_share_is_told_by_the_names_of_the_one_that_is_judged(tmp_path):
    judged = store_of(
        tmp_path / "judged",
        [recording("a", "anna", "r1", ["cat", "dog", "cup"]), recording("a", "bert", "r2", ["cat"])],
        pictures("a", cat="test", dog="test", cup="train"),
    )
    other = store_of(
        tmp_path / "other",
        [recording("b", "cora", "r1", ["dog_b", "hat"])],
        pictures("b", dog_b="train", hat="train"),
    )
    with pytest.raises(LeakageError) as error:
        check_leaks(judged, "test", [judged, other])
    (leak,) = error.value.leaks
    assert (leak.kind, leak.trials, leak.of, leak.examples) == ("stimulus", 1, 3, ("a/dog",))


def test_trials_of_both_sides_in_one_recording_are_said_and_samples_on_both_sides_refused(tmp_path):
    images = pictures("a", cat="test", dog="train", cup="train")
    apart = [recording("a", "anna", "r1", ["cat", "dog"]), recording("a", "bert", "r2", ["cup"])]
    store = store_of(tmp_path / "apart", apart, images)
    warnings = check_leaks(store, "test", [store])
    assert [warning.split(" trials ")[1].split(" with ")[0] for warning in warnings] == [
        "share a recording",
        "share a subject",
    ]
    assert "a/r1" in warnings[0]
    assert "1 of 1 test" in warnings[0]
    near = store_of(tmp_path / "near", [recording("a", "anna", "r1", ["cat", "dog"], every=5)], images)
    assert "next to a training trial in time, in recording a/r1" in check_leaks(near, "test", [near])[0]
    over = store_of(tmp_path / "over", [recording("a", "anna", "r1", ["cat", "dog"], every=0.5)], images)
    with pytest.raises(LeakageError, match="the same samples are trained on"):
        check_leaks(over, "test", [over])


def test_each_dataset_is_judged_by_its_own_order_and_names_of_recordings_may_repeat(tmp_path):
    images = [*pictures("a", cat="test", dog="train"), *pictures("b", fox="test", owl="train")]
    blocks = ["x"] * 6 + ["y"] * 6
    mixed = ["x", "y", "x", "x", "y", "y"] * 2
    store = store_of(
        tmp_path / "store",
        [
            recording("a", "anna", "r1", ["cat"] * 12, blocks),
            recording("a", "bert", "r2", ["dog"] * 12, blocks),
            recording("b", "anna", "r1", ["owl"] * 12, mixed),
            recording("b", "bert", "r2", ["fox"] * 12, mixed),
        ],
        images,
    )
    # Other people and recordings, though their names are the same.
    (warning,) = check_leaks(store, "test", [store])
    assert warning.startswith("a: block design")
    assert "20 of 22 trials follow one of their own class" in warning
