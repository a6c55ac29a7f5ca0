"""Held-out reconstruction: bands, sums against the plain metric, paired intervals, and the command's result."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from launching import tiny_recipe, write_synthetic_store

from ddscale import recipes
from ddscale.cli import app
from ddscale.evaluation.bands import BandFilters, usable_bands
from ddscale.evaluation.intervals import ratios
from ddscale.evaluation.reconstruction import BASELINES, MODEL, reconstruct, window_sums
from ddscale.metrics.controls import estimate
from ddscale.metrics.reconstruction import ReconstructionScore
from ddscale.models.encoder_folder import save_autoencoder
from ddscale.models.masked_autoencoder import MaskedAutoencoder
from ddscale.reporting.reconstructions import reconstruct_held_out
from ddscale.training.settings import PretrainRecipe


def test_bands_are_cut_to_what_window_and_filters_hold():
    assert usable_bands(256.0, 2.0, 0.5, 100.0) == {
        "delta": (0.5, 4.0), "theta": (4.0, 8.0), "alpha": (8.0, 13.0), "beta": (13.0, 30.0), "gamma": (30.0, 100.0),
    }  # fmt: skip
    short = usable_bands(128.0, 0.4, None, 45.0)
    assert short["gamma"] == (30.0, 45.0)
    assert "delta" not in short  # 0.4 s hold nothing slower than 2.5 Hz: less than half of delta is left
    assert "gamma" not in usable_bands(128.0, 2.0, 0.5, 35.0)


def test_a_band_filter_keeps_its_own_frequency_and_no_other():
    bands = usable_bands(256.0, 2.0, 0.5, 100.0)
    time = np.arange(512)[:, None] / 256.0
    phases = np.random.default_rng(0).uniform(0, 2 * np.pi, 20)
    for own, hz in (("delta", 2.0), ("theta", 6.0), ("alpha", 10.0), ("beta", 20.0), ("gamma", 60.0)):
        waves = np.sqrt(2) * np.sin(2 * np.pi * hz * time + phases)
        parts = zip(bands, BandFilters(bands, 256.0)(waves), strict=True)
        amplitude = {name: float(np.sqrt((part**2).mean())) for name, part in parts}
        assert amplitude.pop(own) == pytest.approx(1, abs=0.05)
        assert max(amplitude.values()) < 0.15


def test_unfiltered_sums_are_the_plain_metrics():
    rng = np.random.default_rng(0)
    score = ReconstructionScore()
    filters = BandFilters({}, 256.0)
    sums, values = [], 0
    for _ in range(5):
        target, prediction = rng.normal(size=(2, 64, 3))
        target[:, 2] = 1.0  # a channel that does not vary
        masked = rng.random(64) < 0.5
        score.add(target, prediction, masked)
        sums.append(window_sums(target, [prediction], masked, filters)[0, 0])
        values += int(masked.sum()) * 3
    r, error, deviation = np.moveaxis(np.array(sums), -1, 0)
    assert np.nanmean(r) == pytest.approx(score.correlation)
    assert np.isnan(r).all(axis=0).tolist() == [False, False, True]
    assert 1 - error.sum() / deviation.sum() == pytest.approx(score.r_squared)
    assert error.sum() / values == pytest.approx(score.mean_squared_error)


def test_ratios_are_means_with_the_bootstrap_of_the_controls_and_differences_are_paired():
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(40), 5)
    values = rng.normal(size=200) + rng.normal(size=40)[groups]
    a = np.stack([np.bincount(groups, values), np.bincount(groups, values + 0.1)], axis=1)
    found = ratios(a, np.full((40, 2), 5.0))
    theirs = estimate(values, groups)
    low, high = found.interval()
    assert found.value[0] == pytest.approx(theirs.value)
    assert (low[0], high[0]) == pytest.approx((theirs.low, theirs.high), abs=0.03)
    lead = found.draws[:, 1] - found.draws[:, 0]
    assert np.ptp(lead) < 1e-9  # the interval of either mean is 0.6 wide; of their difference, nothing
    alone = ratios(a[:1], np.ones((1, 2)))
    assert np.isnan(alone.interval()).all()
    assert np.isnan(ratios(np.zeros((2, 1)), np.zeros((2, 1))).value).all()


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run's folder with an autoencoder that has learned nothing, on data sets of 4 and 20 channels."""
    folder = tmp_path_factory.mktemp("reconstruct")
    store = write_synthetic_store(folder / "store")
    recipe = recipes.check(tiny_recipe(store, folder / "run"), PretrainRecipe, "tiny")
    torch.manual_seed(0)
    save_autoencoder(MaskedAutoencoder(recipe.model), folder / "run" / "mae")
    recipes.save(recipe, folder / "run" / "recipe.yaml")
    return folder / "run"


@pytest.fixture(scope="module")
def found(run):
    return reconstruct(run, windows=41)


def test_the_result_is_the_reports_on_the_same_windows_with_every_channel_by_name(run, found):
    recipe = recipes.load(run / "recipe.yaml", PretrainRecipe)
    report = reconstruct_held_out(run, recipe, 41)
    named = {
        "model": "this model",
        "linear interpolation": "linear interpolation across the gap",
        "channel mean": "channel mean of the visible samples",
    }
    assert sum(entry["windows"] for entry in found["datasets"].values()) == 41
    for dataset, scores in report.scores.items():
        everything = found["datasets"][dataset]["bands"]["all"]
        for method, theirs in named.items():
            assert everything[method]["correlation"]["value"] == pytest.approx(
                scores[theirs].correlation, abs=1e-5
            )
            assert everything[method]["r_squared"]["value"] == pytest.approx(
                scores[theirs].r_squared, rel=1e-4
            )
            assert everything[method]["mse"]["value"] == pytest.approx(
                scores[theirs].mean_squared_error, rel=1e-4
            )
    assert set(found["datasets"]["four"]["channels"]) == {"E1", "E2", "E3", "E4"}
    assert len(found["datasets"]["twenty"]["channels"]) == 20  # 16 at a time, all of them in some window


def test_what_an_error_of_1_means_goes_by_the_normalisation(run, found, tmp_path):
    assert "an MSE of 1 is a channel's own variance." in found["notes"][0]
    divided = tmp_path / "divided"
    shutil.copytree(run, divided)
    recipe = recipes.read(run / "recipe.yaml")
    recipe["data"]["normalisation"] = {"kind": "divide", "by_uv": 20.0}
    recipes.save(recipes.check(recipe, PretrainRecipe, "divided"), divided / "recipe.yaml")
    assert "an MSE of 1 is 400 µV²" in reconstruct(divided, windows=8)["notes"][0]


def test_the_file_holds_the_result_and_intervals_surround_values(run, found):
    assert json.loads((run / "evaluation" / "reconstruction.json").read_text()) == found
    of = found["datasets"]["four"]
    assert of["subjects"] == 1
    assert "too few people" in of["intervals"]
    # 10 Hz waves in noise: an untrained model knows nothing of them, a line across the gap something.
    alpha = of["bands"]["alpha"]
    assert set(alpha) == {MODEL, *BASELINES}
    for methods in of["bands"].values():
        for method, measures in methods.items():
            for measure in ("correlation", "r_squared", "mse"):
                one = measures[measure]
                assert one["low"] <= one["value"] <= one["high"]
                if method != MODEL:
                    lead = measures["models_lead"][measure]["value"]
                    assert lead == pytest.approx(methods[MODEL][measure]["value"] - one["value"])
    assert alpha["linear interpolation"]["correlation"]["value"] > alpha[MODEL]["correlation"]["value"]


def test_fewer_hidden_tokens_are_easier_to_fill_in(run, found):
    easier = reconstruct(run, windows=41, mask_ratio=0.25)
    assert easier["mask_ratio"] == 0.25
    for dataset in ("four", "twenty"):
        hard, easy = (
            r["datasets"][dataset]["bands"]["all"]["cubic spline"]["mse"]["value"] for r in (found, easier)
        )
        assert easy < 0.5 * hard


def test_the_command_prints_a_table_of_bands_or_channels(run):
    by_band = CliRunner().invoke(app, ["reconstruct", str(run), "--windows", "12"])
    assert by_band.exit_code == 0, by_band.output
    assert "alpha 8-13 Hz" in by_band.output
    assert "cubic spline" in by_band.output
    by_channel = CliRunner().invoke(app, ["reconstruct", str(run), "--windows", "12", "--channels"])
    assert "alpha" not in by_channel.output
    assert "E4" in by_channel.output
    as_json = CliRunner().invoke(app, ["reconstruct", str(run), "--windows", "12", "--json"])
    assert json.loads(as_json.stdout)["windows"] == 12


def test_what_is_no_pretraining_run_is_refused(run, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no recipe\.yaml"):
        reconstruct(tmp_path)
    (tmp_path / "recipe.yaml").write_text("stage: finetune\n")
    with pytest.raises(ValueError, match="stage finetune"):
        reconstruct(tmp_path)
    with pytest.raises(recipes.RecipeError, match="leaves 0 of 32 tokens visible"):
        reconstruct(run, mask_ratio=0.99)
