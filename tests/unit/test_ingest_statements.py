"""A recipe that says something else of recordings than it did when they were stored."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from ingesting import cohort, contents, eeg, recipe, write_edf

from ddscale.ingest import run
from ddscale.sources import SourceSettings, provenance
from ddscale.store import open_store, verify


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    folder = tmp_path_factory.mktemp("arrays")
    for number in range(1, 6):
        path = folder / f"sub{number}" / "run.npy"
        path.parent.mkdir()
        np.save(path, eeg(20, number).T)
    return folder


def of_arrays(folder: Path, out: Path, storage: dict | None = None, **said):
    source = {
        "kind": "arrays", "dataset": "tests", "folder": str(folder), "sfreq": 250, "unit": "uV",
        "channels": ["Fp1", "Cz", "O2", "P3"],
    }  # fmt: skip
    changes = {} if storage is None else {"storage": storage}
    return recipe(folder, out, sources=[source | said], **changes)


@pytest.fixture(scope="module")
def stored(arrays, tmp_path_factory):
    out = tmp_path_factory.mktemp("stored") / "store"
    assert run(of_arrays(arrays, out)).ok
    return out


@pytest.mark.parametrize(
    ("said", "difference"),
    [
        ({"sfreq": 128}, "sfreq 250.0 (now 128.0)"),
        ({"unit": "nV"}, "unit uV (now nV)"),
        ({"axes": "CT"}, "axes left out (now CT)"),
        ({"key": "eeg"}, "key left out (now eeg)"),
        ({"channels": ["Fp2", "Cz", "O2", "P3"]}, "channels ['Fp1', 'Cz', 'O2', 'P3'] (now ['Fp2', 'Cz'"),
        ({"kinds": {"P3": "misc"}}, "kinds.P3 left out (now misc)"),
        ({"reference": "Cz"}, "reference left out (now Cz)"),
        ({"text": {"header": True}}, "text.header left out (now True)"),
        ({"subject": "stem"}, "their subject (now another)"),
        ({"sfreq": 128, "unit": "nV"}, "sfreq 250.0 (now 128.0), unit uV (now nV)"),
    ],
)
def test_what_is_stated_otherwise_of_stored_recordings_is_a_problem(arrays, stored, said, difference):
    before = contents(stored, ["ingest_summary.json"])
    summary = run(of_arrays(arrays, stored, **said))
    (problem,) = summary.problems
    assert not summary.ok
    assert f"They keep {difference}" in problem
    assert "5 stored recordings (sub1_run, sub2_run, sub3_run and 2 more)" in problem
    assert "ingest into a new folder" in problem
    assert contents(stored, ["ingest_summary.json"]) == before
    assert run(of_arrays(arrays, stored)).ok  # taken back


@pytest.mark.parametrize(
    "said",
    [{"exclude": ["sub1/*"]}, {"licence": "CC0"}, {"subject": "(sub.)/"}, {"axes": "TC"}, {"sfreq": 250.0}],
)
def test_settings_that_make_no_other_recording_are_none(arrays, stored, said):
    assert run(of_arrays(arrays, stored, **said)).ok


def test_a_corrected_unit_still_mends_what_was_quarantined(tmp_path):
    write_edf(tmp_path / "in" / "s1" / "volts.edf", eeg(20, 1) * 1e-3, unit="")
    write_edf(tmp_path / "in" / "s2" / "fine.edf", eeg(20, 2))
    source = {"kind": "files", "dataset": "tests", "folder": str(tmp_path / "in")}
    (left_out,) = run(recipe(tmp_path, tmp_path / "store", sources=[source])).quarantined
    assert (left_out.recording, left_out.reason) == ("s1_volts", "unit")
    mended = run(recipe(tmp_path, tmp_path / "store", sources=[source | {"unit": "mV"}]))
    assert mended.quarantined == []
    assert "1 stored recordings (s2_fine). They keep unit left out (now mV)" in mended.problems[0]
    assert len(mended.problems) == 1


def test_what_is_unfit_as_stated_is_tried_again_when_stated_otherwise(tmp_path):
    np.save(tmp_path / "long.npy", eeg(20, 1).T)
    np.save(tmp_path / "short.npy", eeg(1.8, 2).T)
    storage = {"record_s": 8.0, "shard_mb": 0.02}
    (left_out,) = run(of_arrays(tmp_path, tmp_path / "store", storage)).quarantined
    assert (left_out.recording, left_out.reason) == ("short", "too_short")
    mended = run(of_arrays(tmp_path, tmp_path / "store", storage, sfreq=100))
    assert mended.quarantined == []
    assert [row.recordings_kept for row in mended.datasets] == [2]


class Stop(KeyboardInterrupt):
    pass


def interrupt(given) -> None:
    def after_three(done, total, name):
        if done == 3:
            raise Stop

    with pytest.raises(Stop):
        run(given, on_progress=after_three)


def test_what_was_processed_before_an_interruption_is_processed_as_stated_now(arrays, tmp_path):
    large = {"record_s": 8.0, "shard_mb": 64.0}
    interrupt(of_arrays(arrays, tmp_path / "store", large))
    summary = run(of_arrays(arrays, tmp_path / "store", large, kinds={"P3": "misc"}))
    assert summary.ok
    run(of_arrays(arrays, tmp_path / "undisturbed", large, kinds={"P3": "misc"}))
    assert contents(tmp_path / "store") == contents(tmp_path / "undisturbed")
    assert set(open_store(tmp_path / "store").table(["channels"])["channels"].to_pylist()) == {3}


def test_what_was_sealed_before_an_interruption_stays_and_is_named(arrays, tmp_path):
    interrupt(of_arrays(arrays, tmp_path / "store"))
    given = of_arrays(arrays, tmp_path / "store", kinds={"P3": "misc"})
    summary = run(given)
    (problem,) = summary.problems
    assert "kinds.P3 left out (now misc)" in problem
    rows = open_store(tmp_path / "store").table(["recording", "channels"]).to_pylist()
    kept = {row["recording"] for row in rows if row["channels"] == 4}
    assert kept
    assert all(name in problem for name in kept)
    assert {row["channels"] for row in rows} == {3, 4}
    assert verify(tmp_path / "store").problems == []
    assert run(given).problems == summary.problems


def test_a_store_that_is_older_than_statements_is_not_objected_to(tmp_path):
    folder = cohort(tmp_path / "in", subjects=1)
    run(recipe(folder, tmp_path / "store"))
    path = tmp_path / "store" / "recordings.parquet"
    table = pq.read_table(path)
    meta = [json.loads(text) for text in table["meta"].to_pylist()]
    assert all(row.pop("statement") == {"kind": "files"} for row in meta)
    place = table.column_names.index("meta")
    pq.write_table(table.set_column(place, "meta", pa.array([json.dumps(row) for row in meta])), path)
    source = {"kind": "files", "dataset": "tests", "folder": str(folder), "kinds": {"P3": "misc"}}
    assert run(recipe(folder, tmp_path / "store", sources=[source])).ok


def test_every_setting_is_a_statement_or_says_where_recordings_are():
    union, _ = get_args(SourceSettings)
    found = {
        model.model_fields["kind"].annotation.__args__[0]: {
            name
            for name, field in model.model_fields.items()
            if name != "kind" and provenance.Whereabouts not in field.metadata
        }
        for model in get_args(union)
    }
    in_files = {"unit", "kinds", "reference"}
    # Whoever adds a setting decides here: can a recording become another by it?
    assert found == {
        "files": in_files,
        "events": in_files,
        "arrays": in_files | {"sfreq", "axes", "channels", "key", "text"},
        "bids": {"unit"},
        "moabb": {"name", "unit"},
        "imagenet-eeg": {"split_numbers", "split_number", "captions"},
        "things-eeg2": set(),
        "alljoined": {"published_split", "channels"},
        "simulated": {"minutes", "seed"},
        "simulated-evoked": {"pictures", "pictures_per_recording", "trial_s", "snr_db", "seed"},
    }
