"""The report of a run: it stands alone, and its figures are those of the run's own validation."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from launching import launch, rows, tiny_recipe, write_synthetic_store

from ddscale import recipes
from ddscale.reporting.progress import Progress
from ddscale.reporting.reconstructions import BASELINES, MODEL, reconstruct_held_out
from ddscale.reporting.report import write_report
from ddscale.reporting.tables import channel_range, duration
from ddscale.store import open_store
from ddscale.training.settings import PretrainRecipe

WINDOWS = 21


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A finished run on two data sets, of 4 channels (tiled to 16) and of 20 (16 of them kept)."""
    folder = tmp_path_factory.mktemp("reporting")
    store = write_synthetic_store(folder / "store")
    launch(
        tiny_recipe(store, folder / "run", validation={"every": 6, "windows": WINDOWS}), ranks=1
    ).succeeded()
    return folder / "run"


@pytest.fixture(scope="module")
def recipe(run) -> PretrainRecipe:
    return recipes.load(run / "recipe.yaml", PretrainRecipe)


@pytest.fixture(scope="module")
def held_out(run, recipe):
    return reconstruct_held_out(run, recipe, WINDOWS)


def test_scores_are_the_runs_own_validation_loss(run, held_out):
    last = rows(run)[-1]
    names = {
        MODEL: "val_loss",
        "linear interpolation across the gap": "val_loss_interpolation",
        "channel mean of the visible samples": "val_loss_channel_mean",
    }
    assert set(names) == {MODEL, *BASELINES}
    for name, key in names.items():
        scores = [scores[name] for scores in held_out.scores.values()]
        together = sum(s.mean_squared_error * s.windows for s in scores) / sum(s.windows for s in scores)
        # Of a recording tiled to 16 channels the report scores each channel once, the loss all its copies; the
        # baselines predict copies alike, the model nearly so.
        assert together == pytest.approx(last[key], rel=0.1 if name == MODEL else 1e-4)
    assert held_out.windows == WINDOWS
    assert set(held_out.scores) == {"four", "twenty"}


def test_shown_windows_are_best_median_and_worst_and_their_channels_are_named_rightly(recipe, held_out):
    ranks, windows = zip(*held_out.examples, strict=True)
    assert ranks == ("best", "median", "worst")
    errors = [window.mean_squared_error for window in windows]
    assert errors == sorted(errors)
    store = open_store(recipe.data.stores[0])
    T = recipe.data.window_samples
    for window in windows:
        channel = int(window.channel_names[0].removeprefix("E")) - 1
        found = False
        for row in np.flatnonzero(store.split == 1):
            for start in range(0, int(store.samples[row]) - T + 1, T):
                if channel < store.channels[row]:
                    signal = store.read(int(row), start, start + T)[:, channel].astype(float)
                    normalised = (signal - signal.mean()) / signal.std()
                    found |= np.allclose(normalised, window.original_TC[:, 0], atol=1e-3)
        assert found, f"no held-out window has {window.channel_names[0]} as it is shown"


def test_the_page_stands_alone_and_says_what_it_should(run):
    page = write_report(run).read_text(encoding="utf-8")
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert sources
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    for text in (
        "four",
        "twenty",
        "linear interpolation across the gap",
        "12 of 12",
        "None recorded.",
        "worst of 21",
    ):
        assert text in page
    assert "Simulated EEG" not in page  # these recordings say nothing of the sort


def test_simulated_data_is_called_so(run, monkeypatch):
    from ddscale.reporting import report

    true = report.describe

    def simulated(path):
        contents = true(path)
        contents["datasets"]["four"]["url"] = "simulated by ddscale"
        return contents

    monkeypatch.setattr(report, "describe", simulated)
    assert re.search(r"Simulated EEG:</strong>\s*four\.", write_report(run).read_text(encoding="utf-8"))


def test_an_unfinished_run_has_a_report_without_reconstructions(run, tmp_path):
    import shutil

    copy = shutil.copytree(run, tmp_path / "copy")
    shutil.rmtree(copy / "mae")
    assert "has not finished" in write_report(copy).read_text(encoding="utf-8")


def test_amounts_are_written_for_people():
    assert duration(95) == "1 min 35 s"
    assert duration(7300) == "2 h 1 min"
    assert duration(200_000) == "2.3 days"
    assert channel_range({"8": 1.0}) == "8"
    assert channel_range({"13": 1.0, "126": 2.0, "64": 0.1}) == "13 to 126"
    assert channel_range({}) == "none"


def test_progress_writes_plain_lines_where_there_is_no_terminal(capsys):
    with Progress("recordings") as progress:
        progress.update(1, 3, "a")
        progress.update(2, 3, "b")
        progress.update(3, 3, "c")
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["recordings: 1/3 a", "recordings: 3/3 c"]
