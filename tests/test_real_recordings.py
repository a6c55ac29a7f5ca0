"""Seventeen real recordings, twelve kinds of file, through ingest into both backends, against their manifest."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from ddscale import recipes
from ddscale.ingest import IngestRecipe, run
from ddscale.store import open_store, verify

pytestmark = pytest.mark.real

KINDS = ["eeg", "eog", "emg", "ecg", "ref", "misc"]

# The folder in shared/eeg -> what a user has to state about it, if anything.
STATED: dict[str, dict[str, Any]] = {
    "eeglab32-set": {"include": ["eeglab32-set/*.set"]},
    "biosemi72-bdf": {},
    "clinical25-edfplus": {},
    "brainvision29": {"include": ["brainvision29/*.vhdr"]},
    "nicolet29": {"include": ["nicolet29/*.data"], "unit": "uV"},
    "egi256-raw": {},
    "openbci8": {
        "kind": "arrays",
        "include": ["openbci8/*.txt"],
        "sfreq": 250.0,
        "unit": "uV",
        "text": {"delimiter": ",", "comment": "%", "header": True, "columns": [1, 2, 3, 4, 5, 6, 7, 8]},
    },
    "meegkit8": {"kind": "arrays", "include": ["meegkit8/*.npy"], "sfreq": 250.0, "unit": "uV", "axes": "CT"},
    "gtec8-ssvep": {"include": ["gtec8-ssvep-*/*"], "unit": "mV"},
}
# Signals in the file that are no data channels: triggers and event codes.
STIMULI = {"biosemi72-bdf": 1, "clinical25-edfplus": 1, "egi256-raw": 6}


@pytest.fixture(scope="module")
def manifest(shared):
    """Dataset -> rows of MANIFEST.tsv."""
    rows: dict[str, list[dict[str, str]]] = {}
    with (shared / "eeg" / "MANIFEST.tsv").open() as file:
        for row in csv.DictReader(file, delimiter="\t"):
            folder = row["file"].split("/")[0]
            rows.setdefault("gtec8-ssvep" if folder.startswith("gtec8") else folder, []).append(row)
    assert sum(map(len, rows.values())) == 17
    assert rows.keys() == STATED.keys()
    return rows


@pytest.fixture(scope="module", params=["tar", "zarr"])
def ingested(request, shared, manifest, tmp_path_factory):
    """(store, summary, rows of recordings.parquet by dataset) of all seventeen."""
    out = tmp_path_factory.mktemp("real") / request.param
    sources = [
        {"kind": "files", "dataset": name, "folder": str(shared / "eeg"), "include": [f"{name}/*"]} | stated
        for name, stated in STATED.items()
    ]
    tree = {
        "stage": "ingest",
        "out": str(out),
        "backend": request.param,
        "sources": sources,
        "storage": {"min_record_s": 0.3, "channel_kinds": KINDS, "shard_mb": 4.0},
        "workers": 0,
    }
    summary = run(recipes.check(tree, IngestRecipe, "real recordings"))
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in pq.read_table(out / "recordings.parquet").to_pylist():
        rows.setdefault(row["dataset"], []).append(row)
    return open_store(out), summary, rows


def test_all_are_kept_but_those_whose_signal_is_not_eeg(ingested):
    store, summary, _ = ingested
    left_out = {item.dataset: item for item in summary.quarantined}
    assert set(left_out) <= {"egi256-raw"}  # dominated by 50 Hz: there to be parsed
    for item in left_out.values():
        assert item.reason in ("line_noise", "amplitude", "spectral_outlier", "too_short")
        assert "test_egi.raw" in item.detail
    assert set(store.dataset_names) == STATED.keys() - left_out.keys()
    assert verify(store.path).problems == []


def test_channels_rates_and_durations_are_those_of_the_manifest(ingested, manifest):
    _, _, recordings = ingested
    store, _, _ = ingested
    for dataset, expected in manifest.items():
        found = recordings[dataset]
        assert len(found) == len(expected)
        by_length = sorted(found, key=lambda row: row["seconds_found"])
        for row, said in zip(
            by_length, sorted(expected, key=lambda said: float(said["seconds"])), strict=True
        ):
            assert row["sfreq"] == float(said["sfreq"]), dataset
            assert row["seconds_found"] == pytest.approx(float(said["seconds"]), abs=0.006), dataset
            montage = int(row["montage"].split("ch-")[0])
            assert montage == int(said["channels"]) - STIMULI.get(dataset, 0), dataset
            if row["status"] == "kept":
                assert len(store.montages[row["montage"]].channels) == montage


def test_records_are_in_microvolts_and_lie_within_their_recordings(ingested):
    store, _, recordings = ingested
    lengths = {
        (row["dataset"], row["recording"]): row["seconds_found"]
        for rows in recordings.values()
        for row in rows
    }
    level: dict[str, list[float]] = {}
    for place, row in enumerate(
        store.table(["dataset", "recording", "start", "samples", "channels"]).to_pylist()
    ):
        end_s = (row["start"] + row["samples"]) / store.sfreq
        assert end_s <= lengths[row["dataset"], row["recording"]] + 1 / store.sfreq
        values_TC = store.read(place, 0, row["samples"]) * store.step
        eeg = [i for i, channel in enumerate(store.channels_of(place)) if channel.kind == "eeg"]
        level.setdefault(row["dataset"], []).append(float(np.median(values_TC[:, eeg].std(axis=0))))
    for dataset, values in level.items():
        assert 1.0 < np.median(values) < 100.0, f"{dataset}: {values}"


def test_what_was_done_is_written_down(ingested):
    _, _, recordings = ingested
    meta = {dataset: json.loads(rows[0]["meta"]) for dataset, rows in recordings.items()}
    assert meta["biosemi72-bdf"]["dropped_channels"] == {"Status": "stimulus channel"}
    assert meta["biosemi72-bdf"]["processing"]["resampling"].startswith("polyphase 1/8")
    assert meta["gtec8-ssvep"]["unit_source"] == "recipe"
    assert meta["eeglab32-set"]["processing"]["target_sfreq"] == 256.0


def test_both_backends_hold_the_same_windows(shared, manifest, tmp_path):
    """Nine recordings of one device, by the shipped recipe."""
    recipe_path = Path(__file__).resolve().parents[1] / "recipes" / "ingest" / "gtec-ssvep.yaml"
    stores = {}
    for backend in ("tar", "zarr"):
        overrides = [
            f"sources.0.folder={shared / 'eeg'}",
            f"out={tmp_path / backend}",
            f"backend={backend}",
            "workers=0",
        ]
        assert run(recipes.load(recipe_path, IngestRecipe, overrides)).ok
        stores[backend] = open_store(tmp_path / backend)
    columns = ["key", "split", "start", "samples", "channels", "crc32c"]
    assert stores["tar"].table(columns).equals(stores["zarr"].table(columns))
    held_out = stores["tar"].table(["recording", "split"]).to_pylist()
    assert {row["recording"][:15] for row in held_out if row["split"] == "val"} == {
        "gtec8-ssvep-s09",
        "gtec8-ssvep-s10",
    }
    for row in range(0, len(stores["tar"]), 5):
        samples = int(stores["tar"].samples[row])
        for start in range(0, samples - 512, 1500):
            one, other = (store.read(row, start, start + 512) for store in stores.values())
            assert np.array_equal(one, other)


def test_a_recipe_that_states_no_unit_is_told_to(shared, tmp_path):
    """GDF read as µV is a thousand times too small, FIF read as V a thousand times too large."""
    source = {
        "kind": "files",
        "dataset": "gtec",
        "folder": str(shared / "eeg"),
        "include": ["gtec8-ssvep-s01/*", "gtec8-ssvep-s08/*"],
    }
    tree = {"stage": "ingest", "out": str(tmp_path / "store"), "sources": [source], "workers": 0}
    with pytest.raises(ValueError, match=r"(?s)None of the 2.*s01.*state `unit: mV`.*s08.*state `unit: mV`"):
        run(recipes.check(tree, IngestRecipe, "no unit"))
