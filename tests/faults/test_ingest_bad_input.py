"""What people point an ingest at: each bad file by name and reason, the good ones kept, nothing half-written."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import mne
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from ingesting import NAMES, SFREQ, eeg, recipe, tree, write_edf

from ddscale import recipes
from ddscale.ingest import IngestRecipe, run
from ddscale.store import open_store, verify


def write_fif(path: Path, signal_CT: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    info = mne.create_info(list(NAMES), SFREQ, "eeg")
    mne.io.RawArray(signal_CT * 1e-6, info, verbose="error").save(path, verbose="error")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    good = write_edf(folder / "good" / "run.edf", eeg(20, 1))
    (folder / "s1").mkdir()
    (folder / "s1" / "empty.edf").touch()
    (folder / "s1" / "truncated.edf").write_bytes(good.read_bytes()[:-3000])
    (folder / "s1" / "lying.edf").write_text("time,Fp1,Cz\n" + "0.1,2,3\n" * 500)
    shutil.copy(good, folder / "s1" / "misnamed.bdf")
    write_edf(folder / "s1" / "flat.edf", np.zeros((4, 20 * SFREQ)))
    write_edf(folder / "s1" / "short.edf", eeg(1, 2))
    write_edf(folder / "s1" / "volts_as_microvolts.edf", eeg(20, 3) * 1e-3)
    holed_CT = eeg(20, 4)
    holed_CT[2, 10 * SFREQ : 12 * SFREQ] = np.nan
    write_fif(folder / "s2" / "holed_raw.fif", holed_CT)
    write_fif(folder / "s2" / "nothing_but_nan_raw.fif", np.full((4, 20 * SFREQ), np.nan))
    write_edf(folder / "s3" / "twin.edf", eeg(20, 1))
    write_edf(folder / "s3" / "heart.edf", eeg(20, 5, 1), names=["ECG"])
    return folder


@pytest.mark.parametrize("backend", ["tar", "zarr"])
def test_each_bad_file_is_named_with_its_reason_and_the_job_goes_on(folder, tmp_path, backend):
    given = recipe(folder, tmp_path / "store", backend=backend)
    summary = run(given)
    assert not summary.ok
    found = {item.recording: item for item in summary.quarantined}
    expected = {
        "s1_empty": "unreadable",
        "s1_truncated": "unreadable",
        "s1_lying": "unreadable",
        "s1_misnamed": "duplicate",  # read as the EDF that it is
        "s1_flat": "flat",
        "s1_short": "too_short",
        "s1_volts_as_microvolts": "unit",
        "s2_nothing_but_nan_raw": "nan",
        "s3_twin": "duplicate",
        "s3_heart": "no_eeg",
    }
    assert {name: item.reason for name, item in found.items()} == expected
    for name, item in found.items():
        file = name.split("_", 1)[1]
        assert file in item.detail, f"{name}: {item.detail}"
        assert item.dataset == "tests"
    assert "tests/good_run" in found["s3_twin"].detail
    assert "unit: " in found["s1_volts_as_microvolts"].detail
    assert "min_record_s" in found["s1_short"].detail
    store = open_store(given.out)
    rows = store.table(["recording", "start", "samples"]).to_pylist()
    assert {row["recording"] for row in rows} == {"good_run", "s2_holed_raw"}
    # The hole is left out, and no more than the filters' reach around it.
    holed = [
        (row["start"], row["start"] + row["samples"]) for row in rows if row["recording"] == "s2_holed_raw"
    ]
    assert not any(start < 1200 and stop > 1000 for start, stop in holed)
    assert sum(stop - start for start, stop in holed) == 1800
    assert verify(given.out).problems == []
    assert run(given).quarantined == summary.quarantined


def test_nothing_usable_is_an_error_and_leaves_nothing_behind(folder, tmp_path):
    given = recipe(
        folder,
        tmp_path / "store",
        sources=[{"kind": "files", "dataset": "tests", "folder": str(folder), "include": ["s1/*.edf"]}],
    )
    with pytest.raises(ValueError, match=r"(?s)None of the 6 recordings.*empty.edf.*flat.edf.*short.edf"):
        run(given)
    assert not (tmp_path / "store").exists()


def test_one_hopeless_dataset_among_others_is_a_problem_by_name(folder, tmp_path):
    sources = [
        {"kind": "files", "dataset": "fine", "folder": str(folder / "good")},
        {"kind": "files", "dataset": "hopeless", "folder": str(folder), "include": ["s1/flat.edf"]},
    ]
    summary = run(recipe(folder, tmp_path / "store", sources=sources))
    assert summary.problems == ["dataset hopeless: none of its 1 recordings could be used."]
    assert open_store(tmp_path / "store").dataset_names == ["fine"]


def test_an_empty_folder_is_an_error_that_says_what_was_looked_for(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="No recordings in .*empty"):
        run(recipe(tmp_path / "empty", tmp_path / "store"))
    with pytest.raises(FileNotFoundError, match="no folder"):
        run(recipe(tmp_path / "nowhere", tmp_path / "store"))
    assert not (tmp_path / "store").exists()


def test_a_stated_unit_is_believed_but_an_absurd_one_is_noted(folder, tmp_path):
    source = {"kind": "files", "dataset": "tests", "folder": str(folder), "include": ["s1/volts*.edf"]}
    trusted = run(recipe(folder, tmp_path / "right", sources=[source | {"unit": "mV"}]))
    assert trusted.ok
    assert trusted.notes == []
    absurd = run(
        recipe(
            folder,
            tmp_path / "absurd",
            sources=[source | {"unit": "nV"}],
            quality={"flat_uV": 0.0},
            storage={"record_s": 8.0, "step_uV": 0.0000001},
        )
    )
    assert "the unit of the recipe is believed, though" in absurd.notes[0]


def test_a_recording_that_was_quarantined_is_taken_once_the_recipe_is_right(folder, tmp_path):
    source = {"kind": "files", "dataset": "tests", "folder": str(folder), "include": ["s1/v*.edf", "good/*"]}
    assert not run(recipe(folder, tmp_path / "store", sources=[source])).ok
    milli = source | {"unit": "mV", "include": ["s1/v*.edf"]}
    summary = run(recipe(folder, tmp_path / "store", sources=[milli]))
    assert summary.ok
    assert summary.datasets[0].recordings_kept == 2
    assert verify(tmp_path / "store").problems == []


def test_a_full_disk_stops_the_job_and_blames_no_recording(folder, tmp_path, monkeypatch):
    from ddscale.store import staging

    def full(*_):
        raise OSError(28, "No space left on device")

    given = recipe(
        folder,
        tmp_path / "store",
        sources=[{"kind": "files", "dataset": "tests", "folder": str(folder / "good")}],
    )
    with monkeypatch.context() as patched:
        patched.setattr(staging, "_encode", full)
        with pytest.raises(OSError, match=r"Cannot write the store.*No space left.*Free space"):
            run(given)
    with pytest.raises(FileNotFoundError, match="has not finished"):
        open_store(tmp_path / "store")
    assert run(given).ok


def test_a_fault_of_ours_is_reported_with_its_place(folder, tmp_path, monkeypatch):
    from ddscale.ingest import processing

    def faulty(*_):
        raise AttributeError("no such thing")

    monkeypatch.setattr(processing, "_check_unit", faulty)
    with pytest.raises(
        ValueError, match=r"AttributeError\('no such thing'\) at .*test_ingest_bad_input.py:\d+"
    ):
        run(recipe(folder / "good", tmp_path / "store"))


def test_a_recipe_with_three_mistakes_is_told_all_three(tmp_path):
    wrong = tree(tmp_path, tmp_path / "store", backend="hdf5", worker=2)
    wrong["storage"] = {"record_s": 1.0, "min_record_s": 2.0}
    with pytest.raises(recipes.RecipeError) as error:
        recipes.check(wrong, IngestRecipe, "wrong.yaml")
    message = str(error.value)
    assert "3 problems" in message
    assert "backend" in message
    assert "worker: unknown key. Did you mean `workers`?" in message
    assert "min_record_s (2) must not exceed record_s (1)" in message


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"splits": {"val": 0.6, "test": 0.5}}, "leave nobody to train on"),
        ({"splits": {"val_subjects": ["tests/s1"], "test_subjects": ["tests/s1"]}}, "Choose one"),
        ({"splits": {"val_subjects": ["s1"]}}, "write `dataset/subject`, not `s1`"),
        ({"blocklist": {"recordings": ["run"]}}, "write `dataset/recording`"),
        ({"scheduler": "tcp://x:1"}, "brings its own workers"),
        ({"storage": {"chunk_s": 100.0}}, "chunk_s"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_read(tmp_path, change, said):
    with pytest.raises(recipes.RecipeError, match=said):
        recipe(tmp_path, tmp_path / "store", **change)


def test_two_sources_cannot_share_a_dataset(tmp_path):
    source = {"kind": "files", "dataset": "tests", "folder": str(tmp_path)}
    with pytest.raises(recipes.RecipeError, match="tests is named by more than one source"):
        recipe(tmp_path, tmp_path / "store", sources=[source, source])


def test_two_ingests_into_one_store_are_kept_apart(folder, tmp_path):
    from ddscale.ingest import running

    with running._sole_writer(tmp_path / "store"), pytest.raises(OSError, match="Another ingest is writing"):
        run(recipe(folder / "good", tmp_path / "store"))
