"""Recordings with pictures, from files and a table to a store and back."""

from __future__ import annotations

import io
import json
import shutil
import sys
import tarfile
from collections import Counter
from pathlib import Path

import edfio
import mne
import numpy as np
import pyarrow.parquet as pq
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from ingesting import NAMES, SFREQ, contents, eeg, times, write_edf
from paired import picture, read_rows, recipe, session, write_table
from paired import tree as paired_tree

from ddscale import recipes
from ddscale.ingest import IngestRecipe, run
from ddscale.signal.preprocessing import Preprocessing, process
from ddscale.store import describe, open_store, verify


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return session(tmp_path_factory.mktemp("session") / "data")


@pytest.fixture(scope="module", params=["tar", "zarr"])
def ingested(request, folder, tmp_path_factory):
    """(recipe, summary) of a finished ingest, never changed by a test."""
    given = recipe(folder, tmp_path_factory.mktemp("ingested") / "store", backend=request.param)
    return given, run(given)


def rejected(store, reason):
    rows = pq.read_table(Path(store) / "rejected.parquet").to_pylist()
    return [row for row in rows if row["reason"] == reason]


def test_every_trial_is_a_record_from_its_onset_on(ingested, folder):
    given, summary = ingested
    assert summary.ok
    assert verify(given.out).problems == []
    store = open_store(given.out)
    lines = read_rows(folder / "trials.csv")
    assert len(store) == len(lines) == 48
    assert store.is_trial.all()
    rows = store.table().to_pylist()
    expected = {}
    for subject in ("sub1", "sub2", "sub3"):
        raw_CT = (
            mne.io.read_raw_edf(folder / subject / "run1.edf", preload=True, verbose="error").get_data() * 1e6
        )
        settings = Preprocessing(sfreq=64.0, l_freq=1.0, h_freq=25.0)
        blocks = process(lambda a, b, x=raw_CT: x[:, a:b], raw_CT.shape[1], SFREQ, settings)
        expected[f"{subject}_run1"] = np.concatenate([block for _, block in blocks], axis=1)
    by_onset = {(row["recording"], row["start"]): (place, row) for place, row in enumerate(rows)}
    for line in lines:
        name = line["recording"].replace("/", "_").removesuffix(".edf")
        start = round(float(line["onset"]) * 64)
        place, row = by_onset[name, start]
        assert row["samples"] == 64
        assert (row["label"], row["caption"]) == (line["label"], line["caption"])
        values_TC = store.read(place, 0, 64) * store.step
        assert np.abs(values_TC - expected[name][:, start : start + 64].T).max() <= 0.5 * store.step + 1e-3
        image = store.images.slice(int(store.image_row_of_record[place]), 1).to_pylist()[0]
        assert image["image"] == row["image"]
        assert (
            store.read_image(int(store.image_row_of_record[place])) == (folder / line["image"]).read_bytes()
        )
    shown = Counter((row["recording"], row["image"]) for row in rows)
    assert set(shown.values()) == {2}
    assert {row["repetition"] for row in rows} == {0, 1}


def test_pictures_lie_as_they_came_and_say_what_they_are(ingested, folder):
    given, _ = ingested
    store = open_store(given.out)
    assert len(store.images) == 8
    shard = store.images["shard"][0].as_py()
    assert shard.startswith("images/cats-")
    with tarfile.open(Path(given.out) / shard) as archive:
        name = next(name for name in archive.getnames() if not name.endswith(".json"))
        assert name.count(".") == 1
        note = json.loads(archive.extractfile(name.partition(".")[0] + ".json").read())
        content = archive.extractfile(name).read()
    (row,) = [row for row in store.images.to_pylist() if row["image"] == name.partition(".")[0]]
    assert content == store.read_image(store.images["image"].to_pylist().index(row["image"]))
    assert (note["sha256"], note["caption"]) == (row["sha256"], row["caption"])
    assert (row["width"], row["height"]) == (12, 9)


def test_splits_go_by_picture_and_subjects_are_in_all_of_them(ingested):
    given, _ = ingested
    store = open_store(given.out)
    rows = store.table(["image", "subject", "split"]).to_pylist()
    splits = {}
    for row in rows:
        splits.setdefault(row["image"], set()).add(row["split"])
    assert all(len(found) == 1 for found in splits.values())
    images = dict(zip(store.images["image"].to_pylist(), store.images["split"].to_pylist(), strict=True))
    assert {name: {split} for name, split in images.items()} == splits
    assert set(images.values()) == {"train", "val", "test"}
    counts = describe(given.out)["datasets"]["cats"]["trials"]
    assert (counts["trials"], counts["images"], counts["labels"], counts["most_repetitions"]) == (48, 8, 4, 2)
    assert counts["trials_by_split"] == dict(sorted(Counter(row["split"] for row in rows).items()))


def test_running_again_touches_nothing_and_another_place_gives_the_same(ingested, folder, tmp_path):
    given, _ = ingested
    before, touched = contents(Path(given.out)), times(Path(given.out))
    assert run(given).ok
    assert (contents(Path(given.out)), times(Path(given.out))) == (before, touched)
    elsewhere = shutil.copytree(folder, tmp_path / "copy")
    run(recipe(elsewhere, tmp_path / "store", backend=given.backend))
    without = ["sources.parquet"]
    assert contents(tmp_path / "store", without) == contents(Path(given.out), without)


def test_splits_by_picture_and_subject_leave_mixed_trials_out(ingested, folder, tmp_path):
    given, _ = ingested
    store = shutil.copytree(given.out, tmp_path / "store")
    fingerprint = open_store(store).fingerprint
    splits = {
        "val_images": 0.3,
        "test_images": 0.3,
        "images_by": "image_and_subject",
        "test_subjects": ["cats/sub3"],
    }
    both = recipe(folder, store, backend=given.backend, splits=splits)
    assert run(both).ok
    assert verify(store).problems == []
    opened = open_store(store)
    assert opened.fingerprint != fingerprint
    rows = opened.table(["recording", "image", "split", "start", "samples"]).to_pylist()
    of_image = dict(zip(opened.images["image"].to_pylist(), opened.images["split"].to_pylist(), strict=True))
    for row in rows:
        of_subject = "test" if row["recording"] == "sub3_run1" else "train"
        both_say = of_image[row["image"]] if of_image[row["image"]] == of_subject else "none"
        assert row["split"] == both_say
    left_out = [row for row in rows if row["split"] == "none"]
    assert left_out
    listed = {(row["recording"], row["start_s"], row["stop_s"]) for row in rejected(store, "split")}
    assert listed == {(r["recording"], r["start"] / 64, (r["start"] + r["samples"]) / 64) for r in left_out}
    assert (opened.split == 3).sum() == len(left_out)
    # And back again: nothing was lost.
    run(given.model_copy(update={"out": str(store)}))
    assert open_store(store).fingerprint == fingerprint
    assert rejected(store, "split") == []


def test_what_the_publishers_hold_out_stays_held_out(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    rows = read_rows(copy / "trials.csv")
    for row in rows:
        row["split"] = "test" if row["image"].endswith(("0.JPG", "1.png")) else "train"
    write_table(copy / "trials.csv", [list(row.values()) for row in rows], list(rows[0]))
    run(recipe(copy, tmp_path / "store", splits={"val_images": 0.4, "test_images": 0.5}))
    images = open_store(tmp_path / "store").images.to_pylist()
    held_out = {row["image"] for row in images if row["split"] == "test"}
    assert held_out == {"pictures_cat_0", "pictures_cat_1"}
    assert {row["split"] for row in images} == {"train", "val", "test"}


def test_a_trial_that_touches_a_bad_stretch_is_left_out_with_its_reason(tmp_path):
    signal_CT = eeg(40, 7)
    signal_CT[:, round(10.2 * SFREQ) : round(10.4 * SFREQ)] += 600
    signal_CT[:, round(20.0 * SFREQ) : round(23.0 * SFREQ)] = 0
    write_edf(tmp_path / "sub1" / "run1.edf", signal_CT)
    onsets = [4.0, 9.3, 12.5, 15.5, 19.5, 26.0, 30.0, 39.5]
    rows = [["sub1/run1.edf", onset, 1.0, f"state{i}"] for i, onset in enumerate(onsets)]
    write_table(tmp_path / "trials.csv", rows, ["recording", "onset", "duration", "label"])
    given = recipe(tmp_path, tmp_path / "store", quality={"cell_s": 0.5, "spectral_iqr": 50.0})
    run(given)
    store = open_store(given.out)
    kept = store.table(["label", "start"]).to_pylist()
    assert {row["label"] for row in kept} == {"state0", "state2", "state3", "state5", "state6"}
    reasons = {
        row["detail"].split(":")[0]: row["reason"]
        for row in pq.read_table(tmp_path / "store" / "rejected.parquet").to_pylist()
        if row["reason"] != "no_trial"
    }
    assert reasons == {"trial state1": "amplitude", "trial state4": "flat", "trial state7": "cut_off"}
    # Kept, rejected and what lies between trials: all of the recording but the overhang of one trial.
    hours = describe(given.out)["datasets"]["cats"]
    assert hours["hours"] + sum(hours["rejected_hours"].values()) == pytest.approx(40 / 3600, abs=1e-5)
    assert (store.images, store.image_row_of_record.tolist()) == (None, [-1] * 5)
    assert verify(given.out).problems == []


def test_trials_beyond_the_recordings_end_take_no_time_from_it_and_are_told(tmp_path):
    write_edf(tmp_path / "sub1" / "run1.edf", eeg(40, 7))
    columns = ["recording", "onset", "duration", "label"]
    onsets = [4.0, 12.0, 4000.0, 12000.0]
    rows = [["sub1/run1.edf", onset, 1.0, f"state{i}"] for i, onset in enumerate(onsets)]
    write_table(tmp_path / "trials.csv", rows, columns)
    given = recipe(tmp_path, tmp_path / "store")
    notes = run(given).notes
    (told,) = [note for note in notes if "begin after" in note]
    assert (
        "2 of 4 trials begin after the recording's end (40 s), the first at 4000 s: are onsets in s" in told
    )
    assert "dataset cats: 2 of 4 trials are left out: 2 cut_off" in notes
    stretches = pq.read_table(tmp_path / "store" / "rejected.parquet").to_pylist()
    assert all(0 <= row["start_s"] <= row["stop_s"] <= 40 for row in stretches)
    hours = describe(given.out)["datasets"]["cats"]
    assert hours["rejected_hours"].get("cut_off", 0) == 0
    assert hours["hours"] + sum(hours["rejected_hours"].values()) == pytest.approx(40 / 3600, abs=1e-5)
    assert verify(given.out).problems == []

    write_table(tmp_path / "trials.csv", rows[2:], columns)
    with pytest.raises(ValueError, match=r"2 of 2 trials begin after the recording's end \(40 s\)"):
        run(recipe(tmp_path, tmp_path / "other"))


def test_trials_with_labels_alone_go_by_subject(folder, tmp_path):
    rows = [
        [row["recording"], row["onset"], row["duration"], row["label"]]
        for row in read_rows(folder / "trials.csv")
    ]
    table = write_table(tmp_path / "labels.csv", rows, ["recording", "onset", "duration", "label"])
    splits = {"test_subjects": ["cats/sub2"], "test_images": 0.5}
    given = recipe(folder, tmp_path / "store", source={"csv": str(table)}, splits=splits)
    run(given)
    store = open_store(given.out)
    found = {(row["recording"], row["split"]) for row in store.table(["recording", "split"]).to_pylist()}
    assert found == {("sub1_run1", "train"), ("sub2_run1", "test"), ("sub3_run1", "train")}
    assert not (tmp_path / "store" / "images").exists()


def test_a_nan_costs_only_the_trials_it_is_in(tmp_path):
    from ddscale.ingest import chain, processing
    from ddscale.sources.events import Event, to_trials
    from ddscale.sources.recording import OpenRecording, Recording

    signal_CT = eeg(30, 3)
    signal_CT[0, round(10.5 * SFREQ)] = np.nan
    events = [Event(onset, 1.0, None, f"s{onset:g}", None) for onset in (5.0, 10.0, 20.0)]

    def opener():
        from ddscale.signal.channels import standardise

        return OpenRecording(
            path="array", sfreq=SFREQ, n_samples=signal_CT.shape[1], channels=standardise(["Fp1", "Cz", "O2", "P3"]),
            read=lambda a, b: signal_CT[:, a:b], unit="uV", unit_source="recipe", trials=to_trials(events, SFREQ),
        )  # fmt: skip

    given = recipe(tmp_path, tmp_path / "store")
    job = chain.Job(given.out, given.store_format(), given.preprocessing, given.quality, given.salt)
    processing.ingest_recording(job, Recording("cats", "s", "r", "array", 1, opener))
    from ddscale.store.staging import read_sidecar

    staged = read_sidecar(tmp_path / "store", "cats", "r")
    assert [record.trial.label for record in staged.records] == ["s5", "s20"]
    assert [(r.reason, r.start_s) for r in staged.rejected if r.reason != "no_trial"] == [("nan", 10.0)]


def test_a_trial_longer_than_a_record_is_refused_with_the_remedy(folder, tmp_path):
    with pytest.raises(
        ValueError, match=r"a trial of 1 s, and records of this store have at most 0.5 s.*storage.record_s"
    ):
        run(
            recipe(folder, tmp_path / "store", storage={"record_s": 0.5, "min_record_s": 0.2, "chunk_s": 0.5})
        )
    assert not (tmp_path / "store").exists()


def test_a_missing_picture_stops_the_ingest_before_it_begins(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "pictures" / "cat.3.png").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"trials.csv, line \d+: picture pictures/cat.3.png is missing"
    ):
        run(recipe(copy, tmp_path / "store"))
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lambda: picture(3)[:80], r"picture cats/pictures_cat_3 .*cat.3.png.* is damaged"),
        (lambda: b"", r"is damaged"),
        (lambda: picture(3, "GIF"), r"is GIF inside: convert it"),
    ],
)
def test_a_damaged_picture_stops_the_ingest_naming_it(folder, tmp_path, content, said):
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "pictures" / "cat.3.png").write_bytes(content())
    with pytest.raises(ValueError, match=said):
        run(recipe(copy, tmp_path / "store"))
    # Repaired, it goes on and ends as if nothing had been.
    (copy / "pictures" / "cat.3.png").write_bytes((folder / "pictures" / "cat.3.png").read_bytes())
    assert run(recipe(copy, tmp_path / "store")).ok
    run(recipe(folder, tmp_path / "straight"))
    assert contents(tmp_path / "store", ["sources.parquet"]) == contents(
        tmp_path / "straight", ["sources.parquet"]
    )


def test_new_pictures_come_behind_the_old_ones(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    given = recipe(copy, tmp_path / "store")
    run(given)
    before = open_store(given.out)
    old = before.images.to_pylist()
    write_edf(copy / "sub4" / "run1.edf", eeg(10, 44))
    (copy / "pictures" / "ant.png").write_bytes(picture(99))
    rows = [list(row.values()) for row in read_rows(copy / "trials.csv")]
    write_table(copy / "trials.csv", [*rows, ["sub4/run1.edf", 3, 1, "pictures/ant.png", "class1", "an ant"]])
    summary = run(given)
    assert summary.ok
    assert summary.datasets[0].recordings_new == 1
    after = open_store(given.out)
    assert after.images.slice(0, len(old)).to_pylist() == old
    assert after.images["image"].to_pylist()[len(old) :] == ["pictures_ant"]
    assert after.fingerprint != before.fingerprint
    assert verify(given.out).problems == []


def test_changed_trials_and_pictures_are_noticed_and_the_store_keeps_what_it_has(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    given = recipe(copy, tmp_path / "store")
    run(given)
    fingerprint = open_store(given.out).fingerprint
    rows = read_rows(copy / "trials.csv")
    rows[0]["onset"] = "2.25"
    write_table(copy / "trials.csv", [list(row.values()) for row in rows])
    (copy / "pictures" / "cat.2.JPG").write_bytes(picture(5, "JPEG", (40, 40)))
    problems = run(given).problems
    assert len(problems) == 2
    assert "cat.2.JPG has changed since it was stored as cats/pictures_cat_2" in problems[0]
    assert "run1.edf has changed since it was stored and holds another signal, other trials or" in problems[1]
    assert open_store(given.out).fingerprint == fingerprint


def test_other_trials_of_the_same_files_are_noticed(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    marks = [edfio.EdfAnnotation(onset, None, "go") for onset in (3, 6, 9)]
    reach = {"physical_dimension": "uV", "physical_range": (-500, 500)}
    signals = [
        edfio.EdfSignal(row, SFREQ, label=name, **reach) for row, name in zip(eeg(15, 1), NAMES, strict=True)
    ]
    edfio.Edf(signals, annotations=marks).write(folder / "run.edf")

    def given(tmin):
        tree = paired_tree(folder, tmp_path / "store")
        tree["sources"] = [
            {"kind": "events", "dataset": "cats", "folder": str(folder), "annotations": {"go": "move"}, "tmin": tmin,
             "duration": 1.0}
        ]  # fmt: skip
        return recipes.check(tree, IngestRecipe, "test")

    assert run(given(0.0)).ok
    before = contents(tmp_path / "store")
    assert run(given(0.0)).ok
    assert contents(tmp_path / "store") == before
    (problem,) = run(given(0.5)).problems
    assert "run.edf has changed since it was stored and holds another signal, other trials or" in problem
    assert open_store(tmp_path / "store").table(["start"])["start"].to_pylist() == [192, 384, 576]


def test_the_same_picture_in_two_datasets_is_in_one_split(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    (other / "pictures").rename(other / "shown")
    rows = [
        [value.replace("pictures/", "shown/") for value in row.values()]
        for row in read_rows(other / "trials.csv")
    ]
    write_table(other / "trials.csv", rows)
    for subject in (1, 2, 3):
        write_edf(other / f"sub{subject}" / "run1.edf", eeg(28, 50 + subject))
    tree = paired_tree(folder, tmp_path / "store")
    tree["sources"].append(paired_tree(other, tmp_path / "x")["sources"][0] | {"dataset": "dogs"})
    run(recipes.check(tree, IngestRecipe, "test"))
    assert verify(tmp_path / "store").problems == []
    splits = {}
    for row in open_store(tmp_path / "store").images.to_pylist():
        splits.setdefault(row["sha256"], set()).add(row["split"])
    assert len(splits) == 8
    assert all(len(found) == 1 for found in splits.values())


def test_a_subject_blocked_later_is_taken_out_and_the_pictures_stay(ingested, folder, tmp_path):
    given, _ = ingested
    store = shutil.copytree(given.out, tmp_path / "store")
    before = open_store(store)
    kept = {
        row["key"]: (row["image"], row["repetition"], before.read(place, 0, 64).tobytes())
        for place, row in enumerate(before.table().to_pylist())
        if row["recording"] != "sub2_run1"
    }
    run(recipe(folder, store, backend=given.backend, blocklist={"subjects": ["cats/sub2"]}))
    assert verify(store).problems == []
    after = open_store(store)
    rows = after.table().to_pylist()
    assert {
        row["key"]: (row["image"], row["repetition"], after.read(place, 0, 64).tobytes())
        for place, row in enumerate(rows)
    } == kept
    assert len(after.images) == 8


def test_the_summary_says_how_pictures_were_divided(folder, tmp_path):
    splits = {"val": 0.5, "val_images": 0.01}
    notes = run(recipe(folder, tmp_path / "store", splits=splits)).notes
    assert any("none of its 8 pictures fell into val; raise splits.val_images" in note for note in notes)
    assert any("divided by picture: splits.val and splits.test have no effect" in note for note in notes)


def test_pictures_open_with_plain_webdataset(ingested):
    webdataset = pytest.importorskip("webdataset")
    given, _ = ingested
    store = open_store(given.out)
    shards = sorted(str(path) for path in (Path(given.out) / "images").glob("*.tar"))
    samples = list(webdataset.WebDataset(shards, shardshuffle=False).decode("pil"))
    assert [sample["__key__"] for sample in samples] == store.images["image"].to_pylist()
    for sample in samples:
        assert sample["json"]["image"] == sample["__key__"]
        (pixels,) = (sample[kind] for kind in ("png", "jpg") if kind in sample)
        assert pixels.size == (12, 9)


def test_trials_open_with_plain_zarr_and_tar(ingested):
    given, _ = ingested
    store = open_store(given.out)
    rows = store.table().to_pylist()
    if given.backend == "tar":
        with tarfile.open(Path(given.out) / rows[0]["shard"]) as archive:
            note = json.loads(archive.extractfile(f"{rows[0]['key']}.json").read())
            values_TC = np.load(io.BytesIO(archive.extractfile(f"{rows[0]['key']}.npy").read()))
        for name in ("image", "label", "caption", "repetition"):
            assert note[name] == rows[0][name]
        assert (values_TC == store.read(0, 0, 64)).all()
        return
    import zarr

    group = zarr.open_group(given.out, mode="r")[rows[0]["shard"].split("/signal/")[0]]
    for name in ("image", "label", "caption", "repetition"):
        found = group[name][:]
        assert [found[row["row"]] for row in rows] == [row[name] for row in rows]


@pytest.mark.real
def test_the_recipe_for_the_ssvep_trials_gives_labelled_records(shared, tmp_path):
    path = Path(__file__).resolve().parents[2] / "recipes" / "ingest" / "gtec-ssvep-trials.yaml"
    changes = [f"sources.0.folder={shared / 'eeg'}", f"out={tmp_path / 'store'}", "workers=0"]
    given = recipes.load(path, IngestRecipe, changes)
    assert run(given).ok
    assert verify(given.out).problems == []
    store = open_store(given.out)
    assert store.images is None
    assert set(store.samples.tolist()) == {5 * 256}
    rows = store.table(["recording", "label", "split"]).to_pylist()
    counts = Counter((row["recording"], row["label"]) for row in rows)
    # Eight of each in every recording; a trial or two may touch a bad stretch.
    assert len(counts) == 6 * 4
    assert 6 <= min(counts.values()) <= max(counts.values()) == 8
    splits = {row["recording"][:15]: row["split"] for row in rows}
    assert splits == {f"gtec8-ssvep-s0{n}": {5: "val", 6: "test"}.get(n, "train") for n in range(1, 7)}
