"""Real recordings: channels, rate, length and level of each against what is known of it (MANIFEST.tsv)."""

from __future__ import annotations

import csv
from pathlib import Path

import mne
import numpy as np
import pytest
import scipy.signal

from ddscale import recipes
from ddscale.sources import ArraysSource, FilesSource, OpenRecording, list_recordings

pytestmark = pytest.mark.real

GTEC = [f"gtec8-ssvep-s{i:02d}" for i in (1, 2, 3, 4, 5, 6, 8, 9, 10)]
EXG = [f"EXG Channel {i}" for i in range(8)]
# What the recipe has to state, where the file is silent or wrong.
STATED = {
    **{name: {"unit": "mV"} for name in GTEC},
    "nicolet29": {"kinds": {"PHO": "misc", "SP1": "misc"}},
    "openbci8": {
        "kind": "arrays", "include": ["**/*.txt"], "sfreq": 250.0, "unit": "uV",
        "text": {"comment": "%", "header": True, "columns": EXG},
    },
    "meegkit8": {"kind": "arrays", "sfreq": 250.0, "unit": "uV", "axes": "CT", "channels": 8},
}  # fmt: skip
# Channels of the manifest that carry no EEG and are left out: triggers.
TRIGGERS = {"biosemi72-bdf": 1, "clinical25-edfplus": 1, "egi256-raw": 6}
# µV RMS of the median EEG channel, 0.5 to 45 Hz.
LEVELS = {
    **{name: (5, 13) for name in GTEC},
    "eeglab32-set": (10, 40), "biosemi72-bdf": (5, 40), "clinical25-edfplus": (0.5, 15), "brainvision29": (0.3, 3),
    "nicolet29": (10, 60), "openbci8": (10, 60), "meegkit8": (2, 15), "egi256-raw": (50, 1000),
}  # fmt: skip


def source(shared: Path, name: str, **more) -> FilesSource | ArraysSource:
    settings = (
        {"kind": "files", "dataset": name, "folder": str(shared / "eeg" / name)} | STATED.get(name, {}) | more
    )
    return recipes.check(settings, ArraysSource if settings["kind"] == "arrays" else FilesSource, "recipe")


def opened(shared: Path, name: str, **more) -> OpenRecording:
    (recording,) = list_recordings(source(shared, name, **more)).recordings
    assert recording.subject == name
    return recording.open()


def known(shared: Path) -> dict[str, dict[str, str]]:
    with (shared / "eeg" / "MANIFEST.tsv").open(encoding="utf-8") as file:
        return {row["file"].split("/")[0]: row for row in csv.DictReader(file, delimiter="\t")}


def level(recording: OpenRecording) -> float:
    eeg = [i for i, channel in enumerate(recording.channels) if channel.kind == "eeg"]
    signal_CT = recording.read(0, recording.n_samples)[eeg]
    band = scipy.signal.butter(4, [0.5, 45.0], "band", fs=recording.sfreq, output="sos")
    return float(np.median(scipy.signal.sosfiltfilt(band, signal_CT - signal_CT[:, :1]).std(axis=1)))


@pytest.mark.parametrize("name", sorted(LEVELS))
def test_channels_rate_length_and_level(shared, name):
    row = known(shared)[name]
    with opened(shared, name) as recording:
        assert len(recording.channels) + TRIGGERS.get(name, 0) == int(row["channels"])
        assert recording.sfreq == float(row["sfreq"])
        assert recording.n_samples / recording.sfreq == pytest.approx(float(row["seconds"]), abs=0.006)
        low, high = LEVELS[name]
        assert low < level(recording) < high
        assert sum(stop - start for start, stop in recording.spans) == recording.n_samples


def test_every_recording_of_the_manifest_is_tested(shared):
    assert set(known(shared)) == set(LEVELS)


@pytest.mark.parametrize(
    "name", [name for name in sorted(LEVELS) if STATED.get(name, {}).get("kind") != "arrays"]
)
def test_stretches_are_what_mne_reads(shared, name):
    """Volts of MNE are the µV here, unless the recipe states another unit; any stretch, not only the whole."""
    path = shared / "eeg" / Path(known(shared)[name]["file"])
    if name == "nicolet29":
        raw = mne.io.read_raw_nicolet(path, "eeg", verbose="error")
    elif name == "egi256-raw":
        raw = mne.io.read_raw_egi(path, verbose="error")
    else:
        raw = mne.io.read_raw(path, verbose="error")
    scale = {".gdf": 1e9, ".fif": 1e3}[path.suffix] if name in GTEC else 1e6
    with opened(shared, name) as recording:
        names = [channel.name for channel in recording.channels]
        n = recording.n_samples
        for start, stop in [(0, n), (n // 3, n // 3 + 1), (n // 2, n - 1)]:
            expected = raw.get_data(names, start=start, stop=stop) * scale
            np.testing.assert_allclose(recording.read(start, stop), expected, rtol=1e-6, atol=1e-6)


def test_headers_that_are_wrong_are_believed_until_the_recipe_says_otherwise(shared):
    with (
        opened(shared, "gtec8-ssvep-s01", unit=None) as gdf,
        opened(shared, "gtec8-ssvep-s08", unit=None) as fif,
    ):
        assert (gdf.unit, gdf.unit_source) == ("uV", "file")
        assert level(gdf) < 0.02
        assert (fif.unit, fif.unit_source) == ("V", "assumed")
        assert level(fif) > 1000


def test_kinds_and_units_the_files_tell(shared):
    kinds = lambda recording: [channel.kind for channel in recording.channels]  # noqa: E731
    with opened(shared, "clinical25-edfplus") as recording:
        assert kinds(recording).count("ecg") == 2
        assert kinds(recording).count("eog") == 2
        assert recording.meta["dropped_channels"] == {"DIG DTRIG": "stimulus channel"}
        assert recording.unit_source == "file"
    with opened(shared, "nicolet29") as recording:
        by_name = {channel.name: channel.kind for channel in recording.channels}
        assert [by_name[name] for name in ("EOG1", "EMG", "ECG", "PHO", "SP1", "FP1")] == [
            "eog", "emg", "ecg", "misc", "misc", "eeg",
        ]  # fmt: skip
    with opened(shared, "brainvision29") as recording:
        assert recording.spans[-1] == (1, 251), "a second segment begins at its second sample"
        assert recording.meta["lowpass_hz"] == 50
    with opened(shared, "egi256-raw") as recording:
        assert recording.meta["dropped_channels"] == {"6 event codes": "stimulus channels"}
        assert all(channel.position for channel in recording.channels)
    with opened(shared, "eeglab32-set") as recording:
        assert all(channel.position for channel in recording.channels)


def test_all_files_of_the_folder_at_once(shared):
    listing = list_recordings(FilesSource(kind="files", dataset="all", folder=str(shared / "eeg")))
    assert len(listing.recordings) == 15
    assert listing.rejected == []
    assert len({recording.id for recording in listing.recordings}) == 15


def test_nothing_that_identifies_a_person_is_passed_on(shared):
    for recording in list_recordings(
        FilesSource(kind="files", dataset="all", folder=str(shared / "eeg"))
    ).recordings:
        with recording.open() as found:
            meta = str(found.meta)
            assert "Kalunga" not in meta
            assert "20" + "12" not in meta
