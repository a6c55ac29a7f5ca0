"""Probes: what is read, that nothing of the held-out subject leaks in, each method on trials it must tell apart."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import scipy.signal
import torch
import yaml
from typer.testing import CliRunner

from ddscale import recipes
from ddscale.cli import app
from ddscale.evaluation import classical
from ddscale.evaluation.encoding import (
    TrialWindows,
    finetune_and_predict,
    frozen_features,
    random_encoder,
    trial_windows,
)
from ddscale.evaluation.exposure import exposure
from ddscale.evaluation.labelled import LabelledTrials, read_trials
from ddscale.evaluation.linear import leave_one_subject_out, shuffled
from ddscale.evaluation.probe_recipe import FineTuning, ProbeRecipe
from ddscale.evaluation.probing import probe
from ddscale.metrics.leakage import LeakageError
from ddscale.models.config import EncoderConfig
from ddscale.models.encoder_folder import describe, save_encoder
from ddscale.store import ArrayRecording, open_store, write_store
from ddscale.store.staging import StagedTrial
from ddscale.stream.device import materialise
from ddscale.stream.loader import Loader
from ddscale.stream.settings import StreamSettings, ZScore

SFREQ = 128.0
FLICKER = {"ten": 10.0, "fifteen": 15.0, "rest": None}
SUBJECTS = ("anna", "ben", "carl", "dora")
SIZES = EncoderConfig(n_channels=8, n_samples=128, patch=4, width=16, depth=1, heads=2)
CPU = torch.device("cpu")


def recording(subject: str, dataset: str = "flicker", trials: bool = True, seed: int = 0) -> ArrayRecording:
    """24 trials of 2 s, 8 of each class in random order: a flicker of random phase on two of four noisy channels."""
    rng = np.random.default_rng([seed, *subject.encode()])
    labels = rng.permutation(np.repeat(list(FLICKER), 8))
    time = np.arange(int(2 * SFREQ)) / SFREQ
    blocks = []
    for number, label in enumerate(labels):
        block = rng.normal(0, 10, (4, len(time)))
        if (hz := FLICKER[label]) is not None:
            block[:2] += 8 * np.sin(2 * np.pi * hz * time + rng.uniform(0, 6))
        blocks.append((number * int(3 * SFREQ), block))
    shown = [StagedTrial(label=str(label)) for label in labels] if trials else []
    return ArrayRecording(dataset, subject, f"{subject}-1", ["O1", "O2", "Oz", "Pz"], blocks, trials=shown)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("probe") / "store"
    write_store(path, [recording(subject) for subject in SUBJECTS], sfreq=SFREQ)
    return path


def recipe_of(store: Path, **given: Any) -> ProbeRecipe:
    tree = {"stage": "probe", "out": str(store.parent / "result"), "store": str(store), **given}
    return recipes.check(tree, ProbeRecipe, "probe.yaml")


@pytest.fixture(scope="module")
def trials(store) -> LabelledTrials:
    return read_trials(recipe_of(store))


def test_trials_are_the_stores_with_their_labels_subjects_and_times(store, trials):
    opened = open_store(store)
    table = opened.table(["label", "recording", "start"]).to_pylist()
    assert trials.x_NTC.shape == (96, 256, 4)
    assert trials.classes == ["fifteen", "rest", "ten"]
    for row in (0, 41, 95):
        assert trials.classes[trials.label_N[row]] == table[row]["label"]
        assert trials.recording_N[row] == table[row]["recording"]
        assert trials.start_N[row] == table[row]["start"] / SFREQ
        np.testing.assert_allclose(trials.x_NTC[row], opened.read(row, 0, 256) * opened.step, rtol=1e-6)
    assert [trials.recordings_of(number) for number in range(4)] == [[f"{name}-1"] for name in SUBJECTS]
    later = read_trials(recipe_of(store, start_s=0.5, stop_s=1.5, labels=["ten", "rest"]))
    assert later.x_NTC.shape == (64, 128, 4)
    assert later.start_N[0] % 3 == 0.5


def test_one_class_in_a_block_among_others_in_random_order_is_pointed_out(tmp_path):
    def rest_first(subject: str) -> ArrayRecording:
        made = recording(subject)
        order = np.argsort([trial.label != "rest" for trial in made.trials], kind="stable")
        records = [(made.records[place][0], made.records[from_][1]) for place, from_ in enumerate(order)]
        return dataclasses.replace(made, records=records, trials=[made.trials[from_] for from_ in order])

    write_store(tmp_path / "store", [rest_first(subject) for subject in SUBJECTS], sfreq=SFREQ)
    (note,) = read_trials(recipe_of(tmp_path / "store")).notes
    assert note.startswith("rest: 28 of 28 trials follow one of their own class")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"labels": ["ten", "twelve"]}, "labels: twelve is not in .* fifteen, rest, ten"),
        ({"datasets": ["other"]}, "datasets: other is not in"),
        ({"stop_s": 9.0}, "stop_s 9 lies behind the end of 96 of 96 trials; the shortest has 2 s"),
        ({"start_s": 2.0}, "start_s 2 lies behind the end"),
    ],
)
def test_what_the_store_does_not_have_is_refused(store, given, said):
    with pytest.raises(ValueError, match=said):
        read_trials(recipe_of(store, **given))


def test_stores_without_labels_or_with_one_subject_are_refused(tmp_path):
    write_store(tmp_path / "plain", [recording("anna", trials=False)], sfreq=SFREQ)
    with pytest.raises(ValueError, match="no labelled trials"):
        read_trials(recipe_of(tmp_path / "plain"))
    write_store(tmp_path / "alone", [recording("anna")], sfreq=SFREQ)
    with pytest.raises(ValueError, match=r"1 subject\(s\) in 3 class"):
        read_trials(recipe_of(tmp_path / "alone"))


def test_every_subject_is_held_out_once_and_a_recording_on_both_sides_is_a_leak(trials):
    folds = trials.folds()
    assert sorted(np.concatenate([test for _, test in folds]).tolist()) == list(range(96))
    for train, test in folds:
        assert not set(trials.subject_N[train]) & set(trials.subject_N[test])
        assert len(train) + len(test) == 96
    mixed = dataclasses.replace(trials, subject_N=np.roll(trials.subject_N, 5))
    with pytest.raises(LeakageError, match="recording"):
        mixed.folds()


def test_nothing_of_the_held_out_subject_reaches_its_classifier(trials):
    features = classical.band_power(trials.x_NTC, SFREQ, {"alpha": [8, 12], "beta": [13, 17]})
    grid = [0.01, 1.0]
    before = leave_one_subject_out(features, trials, grid)
    held_out = trials.subject_N == 2
    rng = np.random.default_rng(0)
    spoilt = dataclasses.replace(trials, label_N=np.where(held_out, rng.integers(0, 3, 96), trials.label_N))
    other = features.copy()
    # A far-off trial of the same subject would move scaling and choice, were they fitted on it.
    other[np.flatnonzero(held_out)[0]] += 1e3
    after = leave_one_subject_out(other, spoilt, grid)
    rest = np.flatnonzero(held_out)[1:]
    np.testing.assert_array_equal(before.predicted_N[rest], after.predicted_N[rest])
    assert before.regularisation[2] == after.regularisation[2]
    assert set(before.regularisation) <= set(grid)


def test_regularisation_is_chosen_between_subjects_as_well(trials, monkeypatch):
    from sklearn.model_selection import GridSearchCV, LeaveOneGroupOut

    fit, seen = GridSearchCV.fit, []

    def noting(self, x, y, groups):
        assert isinstance(self.cv, LeaveOneGroupOut)
        seen.append(groups)
        return fit(self, x, y, groups=groups)

    monkeypatch.setattr(GridSearchCV, "fit", noting)
    features = classical.band_power(trials.x_NTC, SFREQ, {"alpha": [8, 12]})
    leave_one_subject_out(features, trials, [1.0])
    for (train, _), groups in zip(trials.folds(), seen, strict=True):
        np.testing.assert_array_equal(groups, trials.subject_N[train])


def test_shuffling_keeps_each_subjects_classes(trials):
    mixed = shuffled(trials, 0)
    assert (mixed != trials.label_N).mean() > 0.4
    for subject in range(4):
        own = trials.subject_N == subject
        assert np.bincount(mixed[own]).tolist() == np.bincount(trials.label_N[own]).tolist()


def test_canonical_correlation_is_the_generalised_eigenvalue(trials):
    found = classical.canonical_correlations(trials.x_NTC[:5], SFREQ, [10.0, 15.0], 2)
    time = np.arange(256) / SFREQ
    for n in range(5):
        for f, hz in enumerate((10.0, 15.0)):
            x = trials.x_NTC[n].astype(float)
            y = np.stack(
                [wave(2 * np.pi * hz * h * time) for h in (1, 2) for wave in (np.sin, np.cos)], axis=1
            )
            cov = np.cov(np.concatenate([x, y], axis=1).T)
            xx, xy, yy = cov[:4, :4], cov[:4, 4:], cov[4:, 4:]
            largest = scipy.linalg.eigh(xy @ np.linalg.solve(yy, xy.T), xx, eigvals_only=True)[-1]
            assert found[n, f] == pytest.approx(np.sqrt(largest), abs=1e-6)
    assert classical.canonical_correlations(np.zeros((1, 256, 4)), SFREQ, [10.0], 2) == 0
    with pytest.raises(ValueError, match="70 Hz: signals of 128 Hz"):
        classical.canonical_correlations(trials.x_NTC[:1], SFREQ, [70.0], 1)
    with pytest.raises(ValueError, match="band fast"):
        classical.band_power(trials.x_NTC[:1], SFREQ, {"fast": [100, 120]})


def test_band_power_is_welchs_over_two_seconds():
    x_NTC = np.random.default_rng(0).normal(size=(2, 6 * 128, 3))
    freqs, power = scipy.signal.welch(x_NTC, SFREQ, nperseg=256, axis=1)
    expected = np.log(power[:, (freqs >= 8) & (freqs < 12)].mean(axis=1))
    np.testing.assert_allclose(classical.band_power(x_NTC, SFREQ, {"alpha": [8, 12]}), expected)


def test_a_windows_own_leakage_is_no_neighbour_of_a_stimulus_frequency():
    time = np.arange(4 * 128) / SFREQ
    x_NTC = np.sin(2 * np.pi * 10 * time)[None, :, None]
    at, elsewhere = classical.stimulus_power(x_NTC, SFREQ, [10.0, 20.0], harmonics=1)[0]
    assert at > 20  # a quarter of it lies one step away on either side
    assert abs(elsewhere) < 1


def test_windows_are_those_of_the_stream_and_cover_the_trial(store, trials):
    windows = TrialWindows(trials, SIZES, ZScore(), 0.5, "pad", CPU)
    assert windows.starts == [0, 64, 128]
    settings = StreamSettings(
        stores=[str(store)], window_samples=128, n_channels=8, cut="sliding", reader_threads=0
    )
    split = "train" if (open_store(store).split == 0).any() else "val"
    with Loader.fixed(settings, split, windows=4, micro_batch_size=4) as loader:
        (batch,) = next(iter(loader))
        located = loader.locate(batch.positions.numpy())
        theirs = materialise(batch, CPU, loader.step_uv, 8, ZScore())
        ours = windows.at(located.row, located.start)
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    short = dataclasses.replace(trials, x_NTC=trials.x_NTC[:, :100])
    padded = TrialWindows(short, SIZES, ZScore(), 0.5, "pad", CPU).at(np.arange(2), np.zeros(2, int))
    assert padded.shape == (2, 128, 8)
    assert not padded[:, 100:].any()
    assert (
        TrialWindows(short, SIZES, ZScore(), 0.5, "stretch", CPU)
        .at(np.arange(2), np.zeros(2, int))[:, 100:]
        .any()
    )


def test_features_and_fine_tuning_follow_from_the_seed_and_fine_tuning_learns(trials):
    windows = TrialWindows(trials, SIZES, ZScore(), 0.5, "pad", CPU)
    once, again, other = (
        frozen_features(random_encoder(SIZES, seed), windows, 96, "mean") for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(once, again)
    assert not np.allclose(once, other)
    assert frozen_features(random_encoder(SIZES, 0), windows, 96, "mean_std").shape == (96, 32)

    # Something that a little encoder learns at once: a slow wave with the class's sign.
    sign = np.where(trials.label_N == 0, 1.0, -1.0)[:, None, None]
    ramp = 40 * np.sin(np.linspace(0, np.pi, 256))[None, :, None] * sign
    easy = dataclasses.replace(trials, x_NTC=(trials.x_NTC + ramp).astype(np.float32))
    whole = TrialWindows(easy, SIZES.model_copy(update={"n_samples": 256}), ZScore(), 0.5, "pad", CPU)
    config = SIZES.model_copy(update={"n_samples": 256})
    train, test = trials.folds()[0]
    settings = FineTuning(epochs=8, batch_size=16, lr=3e-3)
    target = (trials.label_N == 0).astype(np.int64)
    said = [
        finetune_and_predict(random_encoder(config, 0), whole, target, 2, train, test, settings, seed=0)
        for _ in range(2)
    ]
    np.testing.assert_array_equal(said[0], said[1])
    assert (said[0] == target[test]).mean() > 0.9


def encoder_folder(folder: Path, pretrained_on: Path | None, **data: Any) -> Path:
    """An encoder with random weights that says it was pretrained on a store."""
    metadata: dict[str, Any] = {"sfreq": SFREQ, "normalisation": ZScore().model_dump(mode="json")}
    if pretrained_on is not None:
        store = open_store(pretrained_on)
        metadata["stores"] = [{"path": str(pretrained_on), "fingerprint": store.fingerprint}]
        metadata["recipe"] = {"data": {"window_samples": 128, "blocklist": [], "weights": None, **data}}
    return save_encoder(random_encoder(SIZES, 7), folder, metadata)


def test_pretraining_on_the_probed_people_is_found_out_whatever_they_are_called(tmp_path, trials):
    everyone = [f"flicker/{name}" for name in SUBJECTS]
    known = tmp_path / "known"
    write_store(known, [recording(name, trials=False) for name in ("anna", "ben", "eve")], sfreq=SFREQ)
    found = exposure(describe(encoder_folder(tmp_path / "a", known)), trials)
    assert (found.state, found.subjects) == ("seen", [0, 1])
    assert "these subjects too, without labels (2 of the 4)" in found.note

    blocked = encoder_folder(tmp_path / "b", known, blocklist=everyone[:2])
    assert exposure(describe(blocked), trials).state == "unseen"
    renamed = tmp_path / "renamed"
    write_store(renamed, [recording("anna", dataset="other")], sfreq=SFREQ)
    assert exposure(describe(encoder_folder(tmp_path / "c", renamed)), trials).subjects == [0]
    held_out = tmp_path / "held_out"
    write_store(
        held_out,
        [recording(name, trials=False) for name in ("anna", "eve")],
        sfreq=SFREQ,
        val_subjects=["flicker/anna"],
    )
    assert exposure(describe(encoder_folder(tmp_path / "d", held_out)), trials).state == "unseen"


def test_what_cannot_be_known_of_pretraining_is_called_unknown(tmp_path, trials):
    silent = exposure(describe(encoder_folder(tmp_path / "a", None)), trials)
    assert (silent.state, silent.subjects) == ("unknown", [])
    assert "does not say" in silent.note
    known = tmp_path / "known"
    write_store(known, [recording("eve", trials=False)], sfreq=SFREQ)
    folder = encoder_folder(tmp_path / "b", known)
    assert exposure(describe(folder), trials).state == "unseen"
    known.rename(tmp_path / "gone")
    found = exposure(describe(folder), trials)
    assert found.state == "unknown"
    assert "cannot be opened" in found.note
    write_store(known, [recording("fred", trials=False)], sfreq=SFREQ)
    assert "has been changed since" in exposure(describe(folder), trials).note


def test_an_encoder_of_another_rate_is_refused(tmp_path, trials):
    folder = save_encoder(random_encoder(SIZES, 0), tmp_path / "encoder", {"sfreq": 256.0})
    with pytest.raises(ValueError, match=r"pretrained at 256 Hz, the trials .* have 128 Hz"):
        trial_windows(trials, describe(folder), str(folder), 0.5, "pad", CPU)


@pytest.fixture(scope="module")
def found(store, tmp_path_factory) -> dict[str, Any]:
    folder = encoder_folder(tmp_path_factory.mktemp("encoders") / "encoder", store)
    return probe(
        recipe_of(
            store,
            encoders={"pretrained": str(folder)},
            seeds=[0, 1, 2],
            linear={"features": ["mean"], "regularisation": [0.01, 1.0]},
            finetuning={"epochs": 1, "seeds": [5, 6]},
            steady_state={"frequencies": [10.0, 15.0]},
            shuffles=5,
        )
    )


def test_flicker_is_told_apart_by_what_knows_its_frequencies_and_not_after_shuffling(store, found):
    methods = {method["name"]: method for method in found["methods"]}
    assert list(methods) == [
        "pretrained, linear probe (mean)",
        "random, linear probe (mean)",
        "pretrained, fine-tuned",
        "random, fine-tuned",
        "band power",
        "power at stimulus frequencies",
        "CCA",
    ]
    for name in ("CCA", "power at stimulus frequencies"):
        assert methods[name]["accuracy"]["value"] > 0.9
        assert methods[name]["accuracy"]["low"] > 0.8
        assert methods[name]["shuffled"]["value"] < 0.6
        assert methods[name]["shuffled"]["p"] == pytest.approx(1 / 6)
    assert found["chance"] == {"uniform": pytest.approx(1 / 3), "majority": pytest.approx(1 / 3)}
    assert json.loads((store.parent / "result" / "probe.json").read_text()) == found


def test_counts_seeds_and_exposure_stand_beside_the_accuracies(found):
    assert found["trials"] == 96
    assert [subject["trials"] for subject in found["subjects"]] == [24] * 4
    for method in found["methods"]:
        repeats = 2 if "fine-tuned" in method["name"] else 3 if method["name"].startswith("random") else 1
        assert method["repetitions"] == len(method["by_repetition"]) == repeats
        assert np.mean(method["by_repetition"]) == pytest.approx(method["accuracy"]["value"])
        assert np.mean([one["accuracy"] for one in method["by_subject"]]) == pytest.approx(
            method["accuracy"]["value"]
        )
        assert np.sum(method["confusion"]) == pytest.approx(96, abs=0.01)
        assert method["shuffled"]["shuffles"] == (1 if "fine-tuned" in method["name"] else 5)
        for one in method["by_subject"]:
            assert one["low"] <= one["accuracy"] <= one["high"]
    pretrained = found["methods"][0]
    assert pretrained["pretraining"]["state"] == "seen"
    assert len(pretrained["pretraining"]["subjects"]) == 4
    assert found["methods"][1]["pretraining"] is None
    gains = {(gain["method"], gain["over"]) for gain in found["pretraining_gains"]}
    assert gains == {
        ("pretrained, linear probe (mean)", "random, linear probe (mean)"),
        ("pretrained, fine-tuned", "random, fine-tuned"),
    }


def test_the_command_prints_one_table(store, tmp_path):
    recipe = {"stage": "probe", "out": str(tmp_path / "out"), "store": str(store), "shuffles": 1}
    (tmp_path / "probe.yaml").write_text(yaml.safe_dump(recipe))
    done = CliRunner().invoke(app, ["probe", str(tmp_path / "probe.yaml")])
    assert done.exit_code == 0, done.output
    assert "96 trials of 2 s, 4 subjects" in done.output
    assert "chance, uniform" in done.output
    assert "band power" in done.output
    assert (tmp_path / "out" / "probe.json").is_file()
