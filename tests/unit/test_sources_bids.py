"""The BIDS source on datasets written by mne-bids: entities, sidecars, and what is wrong with such folders."""

from __future__ import annotations

import json
from pathlib import Path

import mne
import mne_bids
import numpy as np
import pandas
import pytest

from ddscale.sources import BidsSource, list_recordings

NAMES = ["Fp1", "Cz", "O2", "EOG1", "GSR1"]
TYPES = ["eeg", "eeg", "eeg", "eog", "gsr"]


def signal(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(scale=20, size=(len(NAMES), 1000)).round(1)


def write(
    root: Path, subject: str, seed: int, task: str = "rest", fmt: str = "BrainVision", **entities
) -> Path:
    raw = mne.io.RawArray(signal(seed) * 1e-6, mne.create_info(NAMES, 100, TYPES), verbose="error")
    raw.info["line_freq"] = 60
    if fmt == "EDF":
        raw.set_meas_date(0)
    path = mne_bids.BIDSPath(subject=subject, task=task, root=root, datatype="eeg", **entities)
    written = mne_bids.write_raw_bids(
        raw, path, format=fmt, allow_preload=True, overwrite=True, verbose="error"
    )
    return written.fpath


@pytest.fixture
def dataset(tmp_path) -> Path:
    write(tmp_path, "01", 1, session="a")
    write(tmp_path, "01", 2, session="b", run="1")
    write(tmp_path, "02", 3, fmt="EDF")
    write(tmp_path, "02", 4, task="oddball")
    derived = tmp_path / "derivatives" / "clean" / "sub-01" / "eeg"
    derived.mkdir(parents=True)
    (derived / "sub-01_task-rest_eeg.edf").write_bytes(b"0       ")
    return tmp_path


def source(root: Path, **more) -> BidsSource:
    return BidsSource(kind="bids", dataset="d", folder=str(root), **more)


def edit_table(path: Path, **columns) -> None:
    table = pandas.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    for column, values in columns.items():
        for name, value in values.items():
            table.loc[table["name"] == name, column] = value
    table.to_csv(path, sep="\t", index=False)


def test_entities_become_subjects_and_ids(dataset):
    listing = list_recordings(source(dataset))
    assert [(r.id, r.subject) for r in listing.recordings] == [
        ("sub-01_ses-a_task-rest", "01"),
        ("sub-01_ses-b_task-rest_run-1", "01"),
        ("sub-02_task-oddball", "02"),
        ("sub-02_task-rest", "02"),
    ]
    assert listing.rejected == []
    listing = list_recordings(source(dataset, subjects=["02"], tasks=["oddball"]))
    assert [r.id for r in listing.recordings] == ["sub-02_task-oddball"]


def test_signals_and_what_sidecars_say(dataset):
    for recording, seed in zip(list_recordings(source(dataset)).recordings, (1, 2, 4, 3), strict=True):
        with recording.open() as opened:
            assert [(c.name, c.kind) for c in opened.channels] == list(zip(NAMES, TYPES, strict=True))[:4]
            assert opened.meta["line_freq"] == 60
            assert "of type GSR" in opened.meta["dropped_channels"]["GSR1"]
            assert opened.unit_source == "file"
            np.testing.assert_allclose(opened.read(100, 300), signal(seed)[:4, 100:300], atol=0.1)


def test_channels_table_overrules_the_file(dataset):
    (tsv,) = (dataset / "sub-02" / "eeg").glob("*oddball_channels.tsv")
    edit_table(tsv, status={"Cz": "bad"}, type={"O2": "EMG"}, units={"Fp1": "mV"})
    (recording,) = list_recordings(source(dataset, tasks=["oddball"])).recordings
    with recording.open() as opened:
        assert [(c.name, c.kind) for c in opened.channels] == [("Fp1", "eeg"), ("O2", "emg"), ("EOG1", "eog")]
        assert opened.meta["dropped_channels"]["Cz"] == "marked bad"
        expected = signal(4)[[0, 2, 3], :100] * [[1e3], [1], [1]]
        np.testing.assert_allclose(opened.read(0, 100), expected, atol=60)
        np.testing.assert_allclose(opened.read(0, 100)[1:], expected[1:], atol=0.1)


def test_recipe_unit_overrules_everything(dataset):
    (recording,) = list_recordings(source(dataset, tasks=["oddball"], unit="mV")).recordings
    with recording.open() as opened:
        assert opened.unit_source == "recipe"
        np.testing.assert_allclose(opened.read(0, 100), signal(4)[:4, :100] * 1e3, atol=100)


def test_reference_manufacturer_and_inherited_sidecar(dataset):
    for sidecar in (dataset / "sub-02" / "eeg").glob("*oddball_eeg.json"):
        sidecar.unlink()
    about = {
        "TaskName": "oddball",
        "EEGReference": "CPz",
        "PowerLineFrequency": 50,
        "Manufacturer": "Brain Products",
    }
    (dataset / "task-oddball_eeg.json").write_text(json.dumps(about))
    (recording,) = list_recordings(source(dataset, tasks=["oddball"])).recordings
    with recording.open() as opened:
        assert opened.reference == "CPz"
        assert opened.meta["line_freq"] == 50.0
        assert opened.meta["device"] == "Brain Products"


def test_positions_in_mne_head_coordinates(tmp_path):
    raw = mne.io.RawArray(signal(0)[:3] * 1e-6, mne.create_info(NAMES[:3], 100, "eeg"), verbose="error")
    raw.info["line_freq"] = 50
    places = {"Fp1": [-0.03, 0.09, 0.02], "Cz": [0.0, 0.0, 0.1], "O2": [0.03, -0.08, 0.03]}
    fiducials = {"nasion": [0, 0.1, 0], "lpa": [-0.08, 0, 0], "rpa": [0.08, 0, 0]}
    raw.set_montage(mne.channels.make_dig_montage(places, **fiducials, coord_frame="head"))
    path = mne_bids.BIDSPath(subject="01", task="rest", root=tmp_path, datatype="eeg")
    mne_bids.write_raw_bids(raw, path, format="BrainVision", allow_preload=True, verbose="error")
    (recording,) = list_recordings(source(tmp_path)).recordings
    with recording.open() as opened:
        for channel in opened.channels:
            np.testing.assert_allclose(channel.position, places[channel.name], atol=1e-4)
    (table,), (system,) = tmp_path.rglob("*_electrodes.tsv"), tmp_path.rglob("*_coordsystem.json")
    system.write_text(json.dumps(json.loads(system.read_text()) | {"EEGCoordinateUnits": "mm"}))
    edit_table(
        table,
        **{
            axis: {name: str(1e3 * place[i]) for name, place in places.items()}
            for i, axis in enumerate("xyz")
        },
    )
    with recording.open() as opened:
        for channel in opened.channels:
            np.testing.assert_allclose(channel.position, places[channel.name], atol=1e-4)


def test_missing_sidecars_cost_nothing(dataset):
    for sidecar in (dataset / "sub-02" / "eeg").glob("*oddball_*"):
        if sidecar.suffix in (".json", ".tsv"):
            sidecar.unlink()
    (recording,) = list_recordings(source(dataset, tasks=["oddball"])).recordings
    with recording.open() as opened:
        assert [c.kind for c in opened.channels if c.name != "GSR1"] == ["eeg", "eeg", "eeg", "eog"]


def test_channels_table_of_another_recording_costs_nothing(dataset):
    (tsv,) = (dataset / "sub-02" / "eeg").glob("*oddball_channels.tsv")
    tsv.write_text("name\ttype\tunits\nA\tEEG\tV\nB\tEOG\tV\n")
    (recording,) = list_recordings(source(dataset, tasks=["oddball"])).recordings
    with recording.open() as opened:
        assert [c.kind for c in opened.channels if c.name != "GSR1"] == ["eeg", "eeg", "eeg", "eog"]


def test_unreadable_entry_raises_at_its_own_opening(dataset):
    (edf,) = (dataset / "sub-02" / "eeg").glob("*.edf")
    edf.write_bytes(edf.read_bytes()[:2500])
    recordings = {r.id: r for r in list_recordings(source(dataset)).recordings}
    with pytest.raises(ValueError, match=r"sub-02_task-rest_eeg\.edf is truncated"):
        recordings["sub-02_task-rest"].open()
    recordings["sub-02_task-oddball"].open().close()
    (sidecar,) = (dataset / "sub-02" / "eeg").glob("*oddball_eeg.json")
    sidecar.write_text("{broken")
    with pytest.raises(ValueError, match=r"oddball_eeg\.json is not valid JSON"):
        recordings["sub-02_task-oddball"].open()


def test_content_that_is_not_here_is_rejected(dataset):
    (edf,) = (dataset / "sub-02" / "eeg").glob("*.edf")
    edf.unlink()
    edf.symlink_to(dataset / ".git" / "annex" / "gone")
    listing = list_recordings(source(dataset))
    assert len(listing.recordings) == 3
    ((name, reason),) = listing.rejected
    assert name.endswith("sub-02_task-rest_eeg.edf")
    assert "datalad get" in reason


def test_what_is_no_bids_dataset(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a BIDS dataset: it does not exist"):
        list_recordings(source(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"has no sub-\* folder.*kind `files`"):
        list_recordings(source(tmp_path))
    write(tmp_path, "01", 1)
    with pytest.raises(FileNotFoundError, match="No EEG recordings in the BIDS dataset .* for tasks walking"):
        list_recordings(source(tmp_path, tasks=["walking"]))
