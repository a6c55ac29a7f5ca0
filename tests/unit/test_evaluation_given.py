"""Recording files that a command is given: what is made of them, onsets, and whether they were trained on."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from ingesting import eeg, recipe, write_edf

from ddscale.evaluation.given import WindowNeeds, given_eeg
from ddscale.evaluation.leaks import trained_on
from ddscale.evaluation.onsets import read_onsets
from ddscale.ingest import run as ingest
from ddscale.signal.preprocessing import Preprocessing
from ddscale.store import open_store
from ddscale.stream.settings import ZScore

FILTERED = Preprocessing(sfreq=100.0, l_freq=1.0, h_freq=40.0).model_dump(mode="json")
NEEDS = WindowNeeds("the encoder", 50, 4, 100.0, ZScore(), [FILTERED])


@pytest.fixture
def file(tmp_path) -> Path:
    return write_edf(tmp_path / "anna" / "run.edf", eeg(20.0, seed=5))


def made(folder: Path, out: Path, **changes) -> Path:
    ingest(recipe(folder, out, preprocessing=FILTERED, **changes))
    return out


def test_at_an_onset_lies_the_eeg_of_that_second_of_the_file(file, tmp_path):
    at = [12.345, 3.0, 3.0]
    with given_eeg(file, NEEDS) as whole, given_eeg(file, NEEDS, at=at, trial_s=0.4) as cut:
        continuous, trials = open_store(whole.address), open_store(cut.address)
        assert (len(continuous), continuous.start[0]) == (1, 0)
        assert trials.is_trial.all()
        assert [trials.onset_s(row, 0) for row in range(len(trials))] == [3.0, 12.34]
        for row, sample in enumerate((300, 1234)):
            ours = trials.read(row, 0, 40).astype(int)
            assert ours.shape == trials.read(row, 0, int(trials.samples[row])).shape
            # 12.345 s is between two of the store's samples; the nearer one of the file is taken.
            assert np.abs(ours - continuous.read(0, sample, sample + 40)).max() <= 1
        assert cut.left_out == []
    assert not Path(cut.address).exists()
    with given_eeg(file, NEEDS, at=[1.0, 19.8]) as near_the_end:
        (sentence,) = near_the_end.left_out
    assert "onset 19.8 s: cut_off" in sentence
    store = made(file.parent, tmp_path / "store")
    with pytest.raises(ValueError, match="is a store"), given_eeg(store, NEEDS, at=[1.0]):
        pass


def test_behind_a_stretch_that_was_left_out_seconds_are_still_those_of_the_file(tmp_path):
    signal = eeg(60.0, seed=8)
    signal[:, : 128 * 5] *= 60
    path = write_edf(tmp_path / "late.edf", signal)
    with given_eeg(path, NEEDS) as whole, given_eeg(path, NEEDS, at=[2.0, 20.0]) as cut:
        continuous, trials = open_store(whole.address), open_store(cut.address)
        assert continuous.onset_s(0, 0) >= 5
        (sentence,) = cut.left_out
        assert "onset 2.0 s: amplitude" in sentence
        start = 2000 - int(continuous.start[0])
        ours, theirs = trials.read(0, 0, 50), continuous.read(0, start, start + 50)
        assert np.array_equal(ours, theirs)
        assert trials.onset_s(0, 0) == continuous.onset_s(0, start) == 20.0


def test_a_stretch_as_short_as_a_window_is_used(tmp_path):
    short = write_edf(tmp_path / "short.edf", eeg(1.0, seed=6))
    with given_eeg(short, NEEDS) as given:
        assert open_store(given.address).samples.tolist() == [100]


def test_a_wrong_unit_is_mended_by_the_option_that_the_command_has(tmp_path):
    quiet = write_edf(tmp_path / "quiet.edf", eeg(20.0, seed=7) / 1000)
    with pytest.raises(ValueError, match="state `--unit mV`") as refused, given_eeg(quiet, NEEDS):
        pass
    assert "`unit:" not in str(refused.value)
    with given_eeg(quiet, NEEDS, unit="mV") as given:
        assert len(open_store(given.address))


def test_onsets_as_numbers_or_from_a_table(tmp_path):
    assert read_onsets("4, 1.5,4", "x.edf") == [1.5, 4.0]
    bids = tmp_path / "events.tsv"
    bids.write_text("onset\tduration\ttrial_type\n2.5\t1\tgo\n0.5\t1\tgo\n")
    assert read_onsets(str(bids), "x.edf") == [0.5, 2.5]
    ours = tmp_path / "trials.csv"
    ours.write_text(
        "recording,onset,duration,label\nanna/x.edf,7,1,a\nanna/y.edf,8,1,a\n", encoding="utf-8-sig"
    )
    assert read_onsets(str(ours), tmp_path / "elsewhere" / "x.edf") == [7.0]
    with pytest.raises(ValueError, match=r"no onset for .*z\.edf"):
        read_onsets(str(ours), "z.edf")
    ours.write_text("time;label\n7;a\n")
    with pytest.raises(ValueError, match="no column `onset`.*only time, label"):
        read_onsets(str(ours), "x.edf")
    ours.write_text("onset,label\n7,a\nsoon,a\n")
    with pytest.raises(ValueError, match=r"trials\.csv, line 3: onset `soon`"):
        read_onsets(str(ours), "x.edf")
    for wrong in ("-1", "nan", "now"):
        with pytest.raises(ValueError, match="--at"):
            read_onsets(wrong, "x.edf")
    with pytest.raises(FileNotFoundError, match="no such table"):
        read_onsets("gone.csv", "x.edf")


def test_a_recording_that_was_trained_on_is_known_again(file, tmp_path):
    write_edf(file.parent.parent / "ben" / "run.edf", eeg(20.0, seed=6))
    lab = tmp_path / "lab"
    for person in ("anna", "ben"):
        shutil.copytree(tmp_path / person, lab / person)
    renamed = tmp_path / "sent" / "unknown.edf"
    renamed.parent.mkdir()
    shutil.copy(file, renamed)
    table = tmp_path / "trials.csv"
    table.write_text("recording,onset,duration,label\nanna/run.edf,2,0.5,a\nben/run.edf,2,0.5,a\n")
    source = {"kind": "events", "dataset": "tests", "folder": str(lab), "csv": str(table)}
    whole = made(lab, tmp_path / "whole", splits={"val_subjects": ["tests/ben"]})
    trials = made(lab, tmp_path / "trials", sources=[source], splits={"val_subjects": ["tests/ben"]})
    with given_eeg(renamed, NEEDS) as given:
        (sentence,) = trained_on(renamed, open_store(given.address), [str(tmp_path / "gone"), str(whole)])
        assert "holds tests/anna_run" in sentence
        assert str(renamed) in sentence
    with given_eeg(renamed, NEEDS, at=[4.0]) as given:  # other trials of it than were trained on
        (sentence,) = trained_on(renamed, open_store(given.address), [str(trials)])
        assert f"holds tests/anna_run of {trials}" in sentence
    other = write_edf(tmp_path / "anna2" / "run.edf", eeg(20.0, seed=9))  # the same name and length
    with given_eeg(other, NEEDS) as given:
        assert trained_on(other, open_store(given.address), [str(whole), str(trials)]) == []
    with given_eeg(lab / "ben" / "run.edf", NEEDS) as given:
        assert trained_on(lab / "ben" / "run.edf", open_store(given.address), [str(whole)]) == []  # held out


def test_the_help_says_that_windows_of_a_file_follow_each_other():
    from typer.testing import CliRunner

    from ddscale.cli import app

    shown = " ".join(CliRunner().invoke(app, ["generate", "--help"], env={"COLUMNS": "300"}).output.split())
    assert "follow each other from its beginning" in shown
    assert "--at" in shown
    assert "recipes/ingest/events.yaml" in shown
