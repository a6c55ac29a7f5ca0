"""The same signal in two splits under other names is told at an ingest's end."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from ingesting import cohort, eeg, recipe, write_edf

from ddscale.ingest import run, twins
from ddscale.store import open_store

SPLITS = {"val_subjects": ["tests/held"]}


def exported_twice(folder: Path, again: str) -> Path:
    """One recording of 20 s, and its first 12 s exported once more into another folder."""
    whole_CT = np.round(eeg(20, 1), 1)
    whole_CT[0, 0] = np.abs(whole_CT).max() + 1  # both files then have the same steps
    write_edf(folder / "sub1" / "whole.edf", whole_CT)
    write_edf(folder / again / "part.edf", whole_CT[:, : 12 * 128])
    write_edf(folder / "sub2" / "other.edf", eeg(20, 2))
    return folder


@pytest.mark.parametrize("backend", ["tar", "zarr"])
def test_a_recording_exported_twice_into_two_splits_is_told_every_time(tmp_path, backend):
    exported_twice(tmp_path / "in", "held")
    given = recipe(tmp_path / "in", tmp_path / "store", splits=SPLITS, backend=backend)
    for _ in range(2):
        (note,) = run(given).notes
        assert (
            "tests/held_part in val and tests/sub1_whole in train hold the same signal in 1 records" in note
        )
    # Divided otherwise, they are in one split.
    assert run(recipe(tmp_path / "in", tmp_path / "store", backend=backend)).notes == []


def test_within_one_split_there_is_nothing_to_tell(tmp_path):
    exported_twice(tmp_path / "in", "sub9")
    write_edf(tmp_path / "in" / "held" / "run.edf", eeg(20, 3))
    assert run(recipe(tmp_path / "in", tmp_path / "store", splits=SPLITS)).notes == []


def test_equal_checksums_alone_are_chance(tmp_path, monkeypatch):
    cohort(tmp_path / "in", subjects=1)
    write_edf(tmp_path / "in" / "held" / "run.edf", eeg(20, 3))
    given = recipe(tmp_path / "in", tmp_path / "store", splits=SPLITS)
    read = twins.tables.numbers
    monkeypatch.setattr(
        twins.tables,
        "numbers",
        lambda path, column, dtype, count: read(path, column, dtype, count) * (column != "crc32c"),
    )
    assert run(given).notes == []
    assert len(twins._pairs(tmp_path / "store" / "records.parquet", 9, np.arange(9) < 3)) > 0


def test_a_store_with_a_shard_missing_is_not_waited_for(tmp_path, monkeypatch):
    exported_twice(tmp_path / "in", "held")
    write_edf(tmp_path / "in" / "held" / "other.edf", eeg(20, 2)[:, : 12 * 128])
    given = recipe(tmp_path / "in", tmp_path / "store", splits=SPLITS)
    assert len(run(given).notes) == 2
    for name in open_store(given.out).shard_names:
        os.remove(Path(given.out) / name)
    tried = []

    def once(read):
        tried.append(read)
        read()

    monkeypatch.setattr("ddscale.store.reading.retrying.patiently", once)
    assert run(given).notes == []
    assert len(tried) == 1
