"""An ingest in this process, on small recordings whose content is known."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import mne
import numpy as np
import pyarrow.parquet as pq
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from ingesting import NAMES, SFREQ, cohort, contents, eeg, recipe, times, write_edf

from ddscale.ingest import run
from ddscale.signal.preprocessing import Preprocessing, process
from ddscale.store import describe, open_store, verify
from ddscale.store.identity import subject_hash


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return cohort(tmp_path_factory.mktemp("recordings"))


@pytest.fixture(scope="module", params=["tar", "zarr"])
def ingested(request, folder, tmp_path_factory):
    """(recipe, summary) of a finished ingest, never changed by a test."""
    given = recipe(
        folder,
        tmp_path_factory.mktemp("ingested") / "store",
        backend=request.param,
        splits={"val_subjects": ["tests/sub3"]},
    )
    return given, run(given)


def test_everything_arrives_and_the_summary_says_so(ingested):
    given, summary = ingested
    (row,) = summary.datasets
    assert summary.ok
    assert (row.recordings_found, row.recordings_kept, row.recordings_new) == (6, 6, 6)
    assert row.hours_found == row.hours_kept == pytest.approx(6 * 20 / 3600, abs=1e-6)
    assert verify(given.out).problems == []
    store = open_store(given.out)
    # 20 s in records of at most 8 s.
    assert sorted(set(store.samples.tolist())) == [400, 800]
    assert store.samples.sum() == 6 * 2000
    splits = store.table(["subject", "split"]).to_pylist()
    assert {row["split"] for row in splits if row["subject"] == subject_hash("tests", "sub3")} == {"val"}
    assert {row["split"] for row in splits if row["subject"] != subject_hash("tests", "sub3")} == {"train"}
    assert not (store.path / ".staging").exists()


def test_the_store_holds_the_processed_signal_in_microvolts(ingested, folder):
    given, _ = ingested
    store = open_store(given.out)
    rows = store.table(["key", "recording", "start", "samples"]).to_pylist()
    source = mne.io.read_raw_edf(folder / "sub2" / "run1.edf", preload=True, verbose="error")
    raw_CT = source.get_data() * 1e6
    settings = Preprocessing(sfreq=100.0, l_freq=1.0, h_freq=40.0)
    blocks = process(lambda a, b: raw_CT[:, a:b], raw_CT.shape[1], SFREQ, settings)
    expected_CT = np.concatenate([block for _, block in blocks], axis=1)
    mine = [(place, row) for place, row in enumerate(rows) if row["recording"] == "sub2_run1"]
    assert [row["start"] for _, row in mine] == [0, 800, 1600]
    for place, row in mine:
        values_TC = store.read(place, 0, row["samples"]) * store.step
        part_TC = expected_CT[:, row["start"] : row["start"] + row["samples"]].T
        assert np.abs(values_TC - part_TC).max() <= 0.5 * store.step + 1e-3
        assert [channel.name for channel in store.channels_of(place)] == list(NAMES)
        assert [channel.standard for channel in store.channels_of(place)] == list(NAMES)


def test_running_again_changes_no_byte_and_touches_no_file(ingested):
    given, summary = ingested
    before, touched = contents(Path(given.out)), times(Path(given.out))
    again = run(given)
    assert contents(Path(given.out)) == before
    assert times(Path(given.out)) == touched
    assert again.ok
    assert [row.recordings_new for row in again.datasets] == [0]
    assert again.datasets[0].hours_kept == summary.datasets[0].hours_kept


def test_the_same_recordings_give_the_same_store_anywhere(ingested, folder, tmp_path):
    given, _ = ingested
    elsewhere = shutil.copytree(folder, tmp_path / "copy")
    for file in elsewhere.rglob("*.edf"):
        os.utime(file, (1, 1))
    run(recipe(elsewhere, tmp_path / "store", backend=given.backend, splits={"val_subjects": ["tests/sub3"]}))
    without = ["sources.parquet"]  # times of the source files
    assert contents(tmp_path / "store", without) == contents(Path(given.out), without)


def test_new_recordings_are_added_behind_what_is_sealed(ingested, folder, tmp_path):
    given, _ = ingested
    store = shutil.copytree(given.out, tmp_path / "store")
    grown = shutil.copytree(folder, tmp_path / "copy")
    write_edf(grown / "sub0" / "run1.edf", eeg(20, 1))
    old = open_store(store)
    sealed = {name: content for name, content in contents(store).items() if name in old.shard_names}
    fingerprint, rows = old.fingerprint, len(old)
    more = recipe(grown, store, backend=given.backend, splits={"val_subjects": ["tests/sub3"]})
    summary = run(more)
    assert [row.recordings_new for row in summary.datasets] == [1]
    new = open_store(store)
    assert len(new) == rows + 3
    assert new.fingerprint != fingerprint
    assert sealed.items() <= contents(store).items()
    assert verify(store).problems == []


def test_other_settings_are_refused_naming_them_all(ingested, folder):
    given, _ = ingested
    changed = recipe(
        folder,
        Path(given.out),
        backend=given.backend,
        preprocessing={"sfreq": 200.0, "l_freq": 1.0, "h_freq": 40.0},
        quality={"amplitude_uV": 100.0},
        salt="other",
    )
    before = contents(Path(given.out))
    with pytest.raises(
        ValueError, match=r"sfreq was 100.0, the recipe asks 200.0.*amplitude_uV.*another salt.*`out:`"
    ):
        run(changed)
    assert contents(Path(given.out)) == before


@pytest.mark.parametrize(
    ("asked", "said"), [("as_recorded", "LE"), ("average", "average"), (["Cz", "Pz"], "mean of Cz, Pz")]
)
def test_a_store_says_what_its_signals_are_referenced_to(tmp_path, asked, said):
    names = ["EEG Fp1-LE", "EEG Cz-LE", "EEG Pz-LE", "EEG O2-LE"]
    write_edf(tmp_path / "in" / "anna" / "run.edf", eeg(20, 1), names=names)
    steps = {"sfreq": 100.0, "l_freq": 1.0, "h_freq": 40.0, "reference": asked}
    assert run(recipe(tmp_path / "in", tmp_path / "store", preprocessing=steps)).ok
    assert {montage.reference for montage in open_store(tmp_path / "store").montages.values()} == {said}


def test_a_store_says_which_channels_it_does_not_hold(tmp_path):
    write_edf(tmp_path / "in" / "anna" / "run.edf", eeg(20, 1), names=["Fp1", "Cz", "O2", "ECG"])
    assert run(recipe(tmp_path / "in", tmp_path / "store")).ok
    assert open_store(tmp_path / "store").channels.tolist() == [3] * len(open_store(tmp_path / "store"))
    (about,) = pq.read_table(tmp_path / "store" / "recordings.parquet").to_pylist()
    assert json.loads(about["meta"])["not_stored"] == {"ECG": "ecg"}


def test_splits_can_be_decided_anew_without_reading_a_recording(ingested, folder, tmp_path, monkeypatch):
    given, _ = ingested
    store = shutil.copytree(given.out, tmp_path / "store")
    shards = {name: open_store(store).path / name for name in open_store(store).shard_names}
    before = {name: path.read_bytes() for name, path in shards.items()}
    monkeypatch.setattr("ddscale.ingest.assembly.ingest_recording", None)
    run(recipe(folder, store, backend=given.backend, splits={"test_subjects": ["tests/sub1"]}))
    found = open_store(store).table(["subject", "split"]).to_pylist()
    assert {row["split"] for row in found if row["subject"] == subject_hash("tests", "sub1")} == {"test"}
    assert {row["split"] for row in found if row["subject"] != subject_hash("tests", "sub1")} == {"train"}
    assert before == {name: path.read_bytes() for name, path in shards.items()}
    assert verify(store).problems == []


def test_a_changed_file_is_noticed_and_the_store_keeps_what_it_has(ingested, folder, tmp_path):
    given, _ = ingested
    store = shutil.copytree(given.out, tmp_path / "store")
    copy = shutil.copytree(folder, tmp_path / "copy")
    again = recipe(copy, store, backend=given.backend, splits={"val_subjects": ["tests/sub3"]})
    fingerprint = open_store(store).fingerprint
    os.utime(copy / "sub1" / "run1.edf")  # touched, the same signal
    assert run(again).ok
    write_edf(copy / "sub1" / "run2.edf", eeg(20, 999))
    summary = run(again)
    assert not summary.ok
    assert "run2.edf has changed since it was stored and holds another signal" in summary.problems[0]
    assert len(summary.problems) == 1
    assert open_store(store).fingerprint == fingerprint
    assert verify(store).problems == []


def test_sources_that_are_gone_stay_in_the_store(ingested, folder, tmp_path):
    given, _ = ingested
    store = shutil.copytree(given.out, tmp_path / "store")
    copy = shutil.copytree(folder, tmp_path / "copy")
    shutil.rmtree(copy / "sub1")
    fingerprint = open_store(store).fingerprint
    assert run(recipe(copy, store, backend=given.backend, splits={"val_subjects": ["tests/sub3"]})).ok
    assert open_store(store).fingerprint == fingerprint


def test_blocked_subjects_and_recordings_stay_out(folder, tmp_path):
    blocklist = {"subjects": ["tests/sub1"], "recordings": ["tests/sub2_run2", "tests/sub9_run1"]}
    given = recipe(folder, tmp_path / "store", blocklist=blocklist)
    summary = run(given)
    assert summary.ok  # left out on purpose
    assert summary.notes == [
        "blocklist: nothing is called `tests/sub9_run1`; a mistyped entry blocks nobody."
    ]
    store = open_store(given.out)
    assert set(store.table(["recording"])["recording"].to_pylist()) == {"sub2_run1", "sub3_run1", "sub3_run2"}
    assert subject_hash("tests", "sub1") not in store.table(["subject"])["subject"].to_pylist()
    assert verify(given.out).problems == []
    before = contents(tmp_path / "store")
    assert run(given).ok
    assert contents(tmp_path / "store") == before
    # Taken off the list, they are ingested.
    assert [row.recordings_new for row in run(recipe(folder, tmp_path / "store")).datasets] == [3]
    assert verify(given.out).problems == []


def test_what_is_blocked_later_is_taken_out_of_the_shards(ingested, folder, tmp_path):
    given, _ = ingested
    store = shutil.copytree(given.out, tmp_path / "store")
    before = open_store(store)
    windows = {
        row["key"]: before.read(place, 0, row["samples"])
        for place, row in enumerate(before.table(["key", "samples"]).to_pylist())
    }
    old_shards = set(before.shard_names)
    splits = {"val_subjects": ["tests/sub3"]}
    blocklist = {"recordings": ["tests/sub1_run2"], "subjects": ["tests/sub3"]}
    blocked = recipe(folder, store, backend=given.backend, splits=splits, blocklist=blocklist)
    summary = run(blocked)
    assert summary.ok
    assert verify(store).problems == []
    after = open_store(store)
    rows = after.table(["key", "recording", "samples"]).to_pylist()
    assert {row["recording"] for row in rows} == {"sub1_run1", "sub2_run1", "sub2_run2"}
    for place, row in enumerate(rows):
        assert np.array_equal(after.read(place, 0, row["samples"]), windows[row["key"]])
    gone = old_shards - set(after.shard_names)
    assert gone
    assert not any((store / shard).exists() for shard in gone)
    assert b"sub1_run2" not in b"".join((store / shard).read_bytes() for shard in after.shard_names)
    kept = contents(store)
    assert run(blocked).ok
    assert contents(store) == kept
    # Taken off the list again, they are read again.
    assert [row.recordings_new for row in run(recipe(folder, store, backend=given.backend)).datasets] == [3]
    assert verify(store).problems == []
    assert len(open_store(store)) == len(before)


def test_held_out_subjects_must_exist(folder, tmp_path):
    given = recipe(folder, tmp_path / "store", splits={"val_subjects": ["tests/sub33", "test/sub1"]})
    with pytest.raises(ValueError, match=r"`tests/sub33` \(did you mean tests/sub3.*`test/sub1`"):
        run(given)
    assert not (tmp_path / "store").exists()


def test_fractions_hold_out_whole_subjects(tmp_path):
    folder = cohort(tmp_path / "many", subjects=12, recordings=2, seconds=4)
    run(recipe(folder, tmp_path / "store", splits={"val": 0.3, "test": 0.2}))
    found = describe(tmp_path / "store")["datasets"]["tests"]["subjects_by_split"]
    assert sum(found.values()) == 12
    assert set(found) == {"train", "val", "test"}
    rows = {
        tuple(row.values()) for row in open_store(tmp_path / "store").table(["subject", "split"]).to_pylist()
    }
    assert len(rows) == 12


def test_nobody_held_out_by_chance_is_said(tmp_path):
    folder = cohort(tmp_path / "few", subjects=1, recordings=1)
    summary = run(recipe(folder, tmp_path / "store", splits={"val": 0.01}))
    assert summary.ok
    assert "none of its 1 subjects fell into val" in summary.notes[0]


def test_several_recordings_of_one_subject_are_said(tmp_path):
    folder = cohort(tmp_path / "flat", subjects=1, recordings=2)
    summary = run(recipe(folder, tmp_path / "store", splits={"val_subjects": ["tests/sub1"]}))
    assert "its 2 recordings count as one subject" in summary.notes[0]
    assert "`subject: stem`" in summary.notes[0]
    assert any("none of its 1 subjects fell into train; there is nothing" in note for note in summary.notes)


def test_bad_channels_are_left_out_and_named(tmp_path):
    signal_CT = eeg(20, 5)
    signal_CT[1] = 0
    write_edf(tmp_path / "in" / "s1" / "dead.edf", signal_CT)
    write_edf(tmp_path / "in" / "s1" / "well.edf", eeg(20, 6))
    for backend in ("tar", "zarr"):
        given = recipe(tmp_path / "in", tmp_path / backend, backend=backend)
        summary = run(given)
        assert summary.ok
        assert summary.datasets[0].channels_dropped == {"flat": 1}
        store = open_store(given.out)
        rows = store.table(["recording", "channels", "montage", "dropped"]).to_pylist()
        assert {(row["recording"], row["channels"], tuple(row["dropped"])) for row in rows} == {
            ("s1_dead", 3, (1,)),
            ("s1_well", 4, ()),
        }
        assert len({row["montage"] for row in rows}) == 1
        dead = next(place for place, row in enumerate(rows) if row["recording"] == "s1_dead")
        assert [channel.name for channel in store.channels_of(dead)] == ["Fp1", "O2", "P3"]
        assert verify(given.out).problems == []


def test_artefacts_are_cut_out_and_listed_with_their_times(tmp_path):
    signal_CT = eeg(20, 7)
    signal_CT[:, 6 * SFREQ : 7 * SFREQ] += 400 * np.sin(np.arange(SFREQ) / 3)
    write_edf(tmp_path / "in" / "s1" / "run.edf", signal_CT)
    given = recipe(tmp_path / "in", tmp_path / "store")
    summary = run(given)
    rows = open_store(given.out).table(["start", "samples"]).to_pylist()
    assert [(row["start"], row["start"] + row["samples"]) for row in rows] == [
        (0, 600),
        (800, 1600),
        (1600, 2000),
    ]
    rejected = pq.read_table(tmp_path / "store" / "rejected.parquet").to_pylist()
    assert [(row["start_s"], row["stop_s"], row["reason"]) for row in rejected] == [(6.0, 8.0, "amplitude")]
    assert summary.datasets[0].hours_rejected == {"amplitude": pytest.approx(2 / 3600, abs=1e-6)}


def test_gaps_in_a_recording_are_gaps_in_the_store(tmp_path):
    info = mne.create_info(list(NAMES), SFREQ, "eeg")
    raw = mne.io.RawArray(eeg(30, 8) * 1e-6, info, verbose="error")
    raw.set_annotations(mne.Annotations([10.0], [0.0], ["BAD boundary"]))
    (tmp_path / "in" / "s1").mkdir(parents=True)
    raw.save(tmp_path / "in" / "s1" / "run_raw.fif", verbose="error")
    run(recipe(tmp_path / "in", tmp_path / "store"))
    rows = open_store(tmp_path / "store").table(["start", "samples"]).to_pylist()
    assert not any(row["start"] < 1000 < row["start"] + row["samples"] for row in rows)
    assert sum(row["samples"] for row in rows) == 3000


def test_the_summary_is_kept_and_is_plain_json(ingested):
    given, summary = ingested
    kept = json.loads((Path(given.out) / "ingest_summary.json").read_text())
    said = json.loads(json.dumps(summary.as_dict()))
    assert kept["ok"] is True
    assert kept["datasets"][0]["hours_kept"] == said["datasets"][0]["hours_kept"]


def test_progress_counts_recordings(folder, tmp_path):
    seen = []
    run(
        recipe(folder, tmp_path / "store"),
        on_progress=lambda done, total, name: seen.append((done, total, name)),
    )
    assert [done for done, _, _ in seen] == [1, 2, 3, 4, 5, 6]
    assert {total for _, total, _ in seen} == {6}
    assert seen[0][2] == "tests/sub1_run1"


def test_a_folder_that_holds_other_things_is_left_alone(folder, tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "thesis.docx").write_text("mine")
    with pytest.raises(ValueError, match=r"holds other things \(thesis.docx\)"):
        run(recipe(folder, tmp_path / "store"))
    with pytest.raises(ValueError, match="is a file"):
        run(recipe(folder, tmp_path / "store" / "thesis.docx"))
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["thesis.docx"]
