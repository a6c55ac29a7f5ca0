"""Trials from a table, and from the events in recordings of several formats."""

from __future__ import annotations

import pickle
import sys
from collections import Counter
from pathlib import Path

import edfio
import mne
import numpy as np
import pybv
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from ingesting import NAMES, SFREQ, eeg, write_edf
from paired import picture, session, write_table

from ddscale.recipes import RecipeError, check
from ddscale.sources import EventsSource, list_recordings


def source(folder, **given) -> EventsSource:
    return check({"kind": "events", "dataset": "d", "folder": str(folder), **given}, EventsSource, "test")


def by_table(folder, **given) -> EventsSource:
    return source(folder, csv=str(folder / "trials.csv"), include=["sub*/*.edf"], **given)


def by_annotations(folder, annotations, duration=1.0, **given) -> EventsSource:
    return source(folder, annotations=annotations, duration=duration, **given)


def trials_of(given):
    (recording,) = list_recordings(given).recordings
    with recording.open() as opened:
        return opened.trials


def test_a_table_gives_trials_and_pictures(tmp_path):
    folder = session(tmp_path / "data", subjects=2, pictures=3)
    listing = list_recordings(by_table(folder))
    assert [recording.id for recording in listing.recordings] == ["sub1_run1", "sub2_run1"]
    assert [picture.image for picture in listing.pictures] == [
        "pictures_cat_0",
        "pictures_cat_1",
        "pictures_cat_2",
    ]
    assert [picture.suffix for picture in listing.pictures] == ["jpg", "png", "jpg"]
    assert listing.pictures[1].read() == picture(1)
    again = pickle.loads(pickle.dumps(listing))
    with again.recordings[0].open() as opened:
        assert len(opened.trials) == 6
        assert opened.trials[0].start == 2 * SFREQ
        assert {trial.stop - trial.start for trial in opened.trials} == {SFREQ}
        assert Counter(trial.repetition for trial in opened.trials) == {0: 3, 1: 3}
        starts = [trial.start for trial in opened.trials]
        assert starts == sorted(starts)


def test_a_line_said_twice_is_refused(tmp_path):
    folder = session(tmp_path / "data", subjects=1, pictures=2)
    table = folder / "trials.csv"
    lines = table.read_text().splitlines()
    table.write_text("\n".join([*lines, lines[2]]) + "\n")
    with pytest.raises(ValueError, match=rf"trials\.csv, line {len(lines) + 1} says the same as line 3"):
        list_recordings(by_table(folder))


def test_a_table_in_the_encoding_of_a_german_excel_is_explained(tmp_path):
    folder = session(tmp_path / "data", subjects=1, pictures=2)
    table = folder / "trials.csv"
    table.write_bytes(table.read_bytes().replace(b"cat", "kätzchen".encode("latin-1")))
    with pytest.raises(ValueError, match=r"trials\.csv is not UTF-8 text: byte 0xe4 at \d+.*CSV UTF-8"):
        list_recordings(by_table(folder))


def test_recordings_that_the_table_does_not_name_are_listed_as_left_out(tmp_path):
    folder = session(tmp_path / "data", subjects=1, pictures=2)
    write_edf(folder / "sub7" / "run1.edf", eeg(5, 7))
    listing = list_recordings(by_table(folder))
    assert [recording.id for recording in listing.recordings] == ["sub1_run1"]
    assert listing.rejected == []
    assert listing.notes == [
        f"1 recordings are left out, since {folder / 'trials.csv'} has no trial in them: sub7/run1.edf"
    ]


def test_pictures_in_folders_of_the_same_names_stay_apart(tmp_path):
    write_edf(tmp_path / "sub1" / "run1.edf", eeg(10, 1))
    for number, name in enumerate(("a/x.png", "a_x.png")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(picture(number))
    rows = [["sub1/run1.edf", 1, 1, "a/x.png"], ["sub1/run1.edf", 3, 1, "a_x.png"]]
    write_table(tmp_path / "trials.csv", rows, ["recording", "onset", "duration", "image"])
    listing = list_recordings(by_table(tmp_path))
    assert len({picture.image for picture in listing.pictures}) == 2
    assert {picture.path: picture.read() for picture in listing.pictures} == {
        str(tmp_path / "a/x.png"): picture(0),
        str(tmp_path / "a_x.png"): picture(1),
    }


HEADER = ["recording", "onset", "duration", "image", "label"]


@pytest.mark.parametrize(
    ("header", "row", "error", "said"),
    [
        (
            HEADER,
            ["sub1/run1.edf", 1, 1, "pictures/no.png", ""],
            FileNotFoundError,
            r"line 3: picture pictures/no.png is missing: there is no",
        ),
        (
            HEADER,
            ["sub1/run9.edf", 1, 1, "", "x"],
            FileNotFoundError,
            r"names recordings that are not among.*sub1/run9.edf.*such as sub1/run1.edf",
        ),
        (
            HEADER,
            ["sub1/run1.edf", "soon", 1, "", "x"],
            ValueError,
            r"line 3: onset `soon` is not a number of seconds",
        ),
        (HEADER, ["sub1/run1.edf", -1, 1, "", "x"], ValueError, r"line 3: onset -1 s cannot be"),
        (HEADER, ["sub1/run1.edf", 1, 0, "", "x"], ValueError, r"line 3: duration 0 s cannot be"),
        (HEADER, ["sub1/run1.edf", "nan", 1, "", "x"], ValueError, r"line 3: onset nan s cannot be"),
        (HEADER, ["sub1/run1.edf", 1, 1, "", ""], ValueError, r"line 3: neither `image` nor `label`"),
        (
            HEADER,
            ["sub1/run1.edf", 1, 1, "", "a boat", " on a lake"],
            ValueError,
            r"line 3 has not as many fields as the header",
        ),
        (HEADER, ["sub1/run1.edf", 1], ValueError, r"line 3 has not as many fields"),
        (
            HEADER,
            ["sub1/run1.edf", 1, 1, "trials.csv", ""],
            ValueError,
            r"line 3: picture .*trials.csv is not one of png, jpg, jpeg",
        ),
        (
            [*HEADER, "colour"],
            ["sub1/run1.edf", 1, 1, "", "x", "red"],
            ValueError,
            r"has columns .*colour: its header may have",
        ),
        (["file", "onset", "duration"], ["sub1/run1.edf", 1, 1], ValueError, r"lacks the columns recording"),
        (
            ["recording;onset;duration;label"],
            ["sub1/run1.edf;1;1;x"],
            ValueError,
            r"It has recording;onset;duration;label\. Its separator is the semicolon: write it with commas",
        ),
        (["recording\tonset"], ["sub1/run1.edf\t1"], ValueError, r"Its separator is the tabulator"),
        (
            ["onset", "duration", "trial_type", "stim_file"],
            [1, 1, "boat", "p.png"],
            ValueError,
            r"It has onset, .*BIDS events: rename `trial_type` to `label` and `stim_file` to `image`, and name",
        ),
        ([*HEADER, "split"], ["sub1/run1.edf", 1, 1, "", "x", "exam"], None, ""),
        (
            [*HEADER, "split"],
            ["sub1/run1.edf", 1, 1, "p.png", "x", "exam"],
            ValueError,
            r"split `exam` is none of train, val and test",
        ),
        (
            [*HEADER, "split"],
            ["sub1/run1.edf", 1, 1, "p.png", "x", "test"],
            ValueError,
            r"p.png is in split `test` here and `train` in an earlier",
        ),
    ],
)
def test_what_is_wrong_with_a_table_is_said(tmp_path, header, row, error, said):
    write_edf(tmp_path / "sub1" / "run1.edf", eeg(10, 1))
    (tmp_path / "p.png").write_bytes(picture(0))
    first = ["sub1/run1.edf", 5, 1, "p.png", "x", "train"][: len(header)]
    write_table(tmp_path / "trials.csv", [first, row], header)
    if error is None:
        assert list_recordings(by_table(tmp_path)).recordings
        return
    with pytest.raises(error, match=said):
        list_recordings(by_table(tmp_path))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, r"either `csv:` .* or `annotations:`"),
        ({"csv": "a.csv", "annotations": {"1": "x"}, "duration": 1.0}, r"either `csv:`"),
        ({"annotations": {"1": "x"}}, r"`annotations:` needs `duration:`"),
        ({"csv": "a.csv", "tmin": 0.5}, r"`tmin:` and `duration:` go with `annotations:`"),
        ({"annotations": {"1": ""}, "duration": 1.0}, r"no label for 1"),
        ({"annotations": {"1": "x"}, "duration": 1.0, "images": "p"}, r"`images:` goes with `csv:`"),
    ],
)
def test_contradictions_in_a_recipe_are_said(tmp_path, given, said):
    with pytest.raises(RecipeError, match=said):
        source(tmp_path, **given)


def write_edf_plus(folder):
    signals = [edfio.EdfSignal(row, SFREQ, label=name, physical_dimension="uV", physical_range=(-500, 500))
               for row, name in zip(eeg(20, 1), NAMES, strict=True)]  # fmt: skip
    marks = [
        edfio.EdfAnnotation(2.5, None, "go"),
        edfio.EdfAnnotation(7.25, None, "stop"),
        edfio.EdfAnnotation(9, None, "go"),
    ]
    edfio.Edf(signals, annotations=marks).write(folder / "run.edf")


def write_bdf_status(folder):
    status = np.zeros(20 * SFREQ)
    for onset, code in ((2.5, 11), (7.25, 12), (9.0, 11)):
        status[round(onset * SFREQ) : round(onset * SFREQ) + 10] = code
    reach = (-8388608, 8388607)
    signals = [edfio.BdfSignal(row, SFREQ, label=name, physical_dimension="uV", physical_range=(-262144, 262143))
               for row, name in zip(eeg(20, 1), NAMES, strict=True)]  # fmt: skip
    signals.append(
        edfio.BdfSignal(
            status,
            SFREQ,
            label="Status",
            physical_dimension="Boolean",
            physical_range=reach,
            digital_range=reach,
        )
    )
    edfio.Bdf(signals).write(folder / "run.bdf")


def write_brainvision(folder):
    events = [
        {"onset": round(onset * SFREQ), "description": code, "duration": 1}
        for onset, code in ((2.5, 11), (7.25, 12), (9.0, 11))
    ]
    pybv.write_brainvision(data=eeg(20, 1) * 1e-6, sfreq=SFREQ, ch_names=list(NAMES), fname_base="run",
                           folder_out=folder, events=events)  # fmt: skip


def write_fif(folder):
    raw = mne.io.RawArray(
        eeg(20, 1) * 1e-6,
        mne.create_info(list(NAMES), SFREQ, "eeg", verbose="error"),
        first_samp=640,
        verbose="error",
    )
    raw.set_annotations(mne.Annotations([2.5, 7.25, 9.0], 0.0, ["go", "stop", "go"]))
    raw.save(folder / "run_raw.fif", verbose="error")


@pytest.mark.parametrize(
    ("write", "annotations"),
    [
        (write_edf_plus, {"go": "move", "stop": "rest"}),
        (write_bdf_status, {"11": "move", "12": "rest"}),
        (write_brainvision, {"Stimulus/S 11": "move", "Stimulus/S 12": "rest"}),
        (write_fif, {"go": "move", "stop": "rest"}),
    ],
)
def test_events_in_files_become_trials(tmp_path, write, annotations):
    write(tmp_path)
    found = trials_of(by_annotations(tmp_path, annotations, duration=1.5, tmin=0.5))
    assert [(trial.start, trial.label, trial.repetition) for trial in found] == [
        (round(3.0 * SFREQ), "move", 0),
        (round(7.75 * SFREQ), "rest", 0),
        (round(9.5 * SFREQ), "move", 1),
    ]
    assert {trial.stop - trial.start for trial in found} == {round(1.5 * SFREQ)}
    assert all(trial.image is None for trial in found)


def test_a_file_without_the_named_events_says_which_it_has(tmp_path):
    write_edf_plus(tmp_path)
    (recording,) = list_recordings(by_annotations(tmp_path, {"33024": "rest"})).recordings
    with pytest.raises(
        ValueError, match=r"no event that `annotations:` names \(33024\); it has 2 go, 1 stop"
    ):
        recording.open()


@pytest.mark.real
def test_the_ssvep_recordings_hold_their_published_cues(shared):
    """Cues of the recordings: 8 each of rest, 13, 21 and 17 Hz, 6.5 s apart, none in the FIF files."""
    labels = {"33024": "rest", "33025": "13 Hz", "33026": "21 Hz", "33027": "17 Hz"}
    given = by_annotations(
        shared / "eeg", labels, duration=5.0, tmin=0.5, include=["gtec8-ssvep-*/*.gdf"], unit="mV"
    )
    recordings = list_recordings(given).recordings
    assert len(recordings) == 6
    for recording in recordings:
        with recording.open() as opened:
            assert Counter(trial.label for trial in opened.trials) == dict.fromkeys(labels.values(), 8)
            # A cue every 6.5 s; the trial begins with the flickering, half a second later, and ends with it.
            apart = np.diff([trial.start for trial in opened.trials]) / opened.sfreq
            assert np.abs(apart - 6.5).max() < 0.02
            assert opened.trials[-1].stop <= opened.n_samples
    first = recordings[0].open()
    assert abs(first.trials[0].start / 256 - 15.48) < 0.02
    without = by_annotations(shared / "eeg", labels, include=["gtec8-ssvep-*/*.fif"], unit="mV")
    for recording in list_recordings(without).recordings:
        with pytest.raises(ValueError, match=r"it has none at all"):
            recording.open()


@pytest.mark.real
def test_what_flickers_is_in_the_signal_of_its_trials(shared):
    """The codes mean the frequencies they are said to mean: each stands out most from its neighbours in its trials."""
    labels = {"33025": 13, "33026": 21, "33027": 17}
    annotations = {code: str(hertz) for code, hertz in labels.items()}
    given = by_annotations(
        shared / "eeg", annotations, duration=5.0, tmin=0.5, include=["gtec8-ssvep-*/*.gdf"], unit="mV"
    )
    excess = {hertz: {other: [] for other in labels.values()} for hertz in labels.values()}
    for recording in list_recordings(given).recordings:
        with recording.open() as opened:
            for trial in opened.trials:
                x_CT = opened.read(trial.start, trial.start + 1280)
                x_CT = x_CT - x_CT.mean(axis=1, keepdims=True)
                power_F = (np.abs(np.fft.rfft(x_CT * np.hanning(1280), axis=1)) ** 2).mean(axis=0)
                for hertz in labels.values():
                    k = hertz * 5  # bins of 0.2 Hz
                    around = [j for j in range(k - 8, k + 9) if abs(j - k) > 1]
                    excess[int(trial.label)][hertz].append(np.log10(power_F[k] / power_F[around].mean()))
    for hertz, found in excess.items():
        means = {other: np.mean(values) for other, values in found.items()}
        assert max(means, key=means.get) == hertz, means
