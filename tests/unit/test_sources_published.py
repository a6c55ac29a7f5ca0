"""Published sets of EEG with pictures, written small in exactly their layout."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from paired import picture

from ddscale import recipes
from ddscale.evaluation.leaks import check_leaks
from ddscale.ingest import IngestRecipe, run
from ddscale.sources import AlljoinedSource, ImageNetEEGSource, ThingsEEG2Source, list_recordings
from ddscale.store import describe, open_store, verify

RECIPES = Path(__file__).resolve().parents[2] / "recipes" / "ingest"


def ingest(name, out, source, **changes):
    """The shipped recipe with another source's paths; in this process."""
    tree = recipes.read(RECIPES / f"{name}.yaml")
    tree["sources"][0] = {k: v for k, v in (tree["sources"][0] | source).items() if v is not None}
    given = recipes.check(tree | {"out": str(out), "workers": 0} | changes, IngestRecipe, name)
    return given, run(given)


# ---- ImageNet-EEG


def imagenet(folder, subjects=(1, 4), classes=3, per_class=4, old_format=False):
    """eeg_5_95_std.pth, both block_splits_by_image_*.pth and the pictures; returns the arrays by (subject, name).

    As the published code reads them: `all` counts the trials of the file, `single` those of one person.
    """
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    labels = [f"n0{i}000000" for i in range(classes)]
    images = [f"{labels[c]}_{100 + k}" for c in range(classes) for k in range(per_class)]
    dataset, arrays = [], {}
    for subject in subjects:
        for number, name in enumerate(images):
            length = 500 if number else 440  # one is too short to be used
            values = rng.normal(size=(128, length)).astype(np.float32)
            dataset.append(
                {
                    "eeg": torch.from_numpy(values),
                    "image": number,
                    "label": number // per_class,
                    "subject": subject,
                }
            )
            arrays[subject, name] = values
    torch.save(
        {
            "dataset": dataset,
            "labels": labels,
            "images": images,
            "means": torch.zeros(1),
            "stddevs": torch.ones(1),
        },
        folder / "eeg_5_95_std.pth",
        _use_new_zipfile_serialization=not old_format,
    )
    for name, counted in (("all", dataset), ("single", dataset[: len(images)])):
        split = {"train": [], "val": [], "test": []}
        for place, item in enumerate(counted):
            split[("train", "train", "val", "test")[item["image"] % 4]].append(place)
        torch.save(
            {"splits": [{"train": [], "val": [], "test": []}, split]},
            folder / f"block_splits_by_image_{name}.pth",
        )
    for place, name in enumerate(images):
        path = folder / "train" / name.split("_")[0] / f"{name}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(place, "JPEG"))
    return arrays


def imagenet_source(folder, **changes):
    """Person 4, divided by the file that counts one person's trials: as the shipped recipe."""
    return {
        "eeg": str(folder / "eeg_5_95_std.pth"),
        "images": str(folder / "train"),
        "splits": str(folder / "block_splits_by_image_single.pth"),
        "split_numbers": "of_person",
        "subjects": [4],
        "split_number": 1,
        **changes,
    }


def everybody(folder):
    return imagenet_source(
        folder,
        splits=str(folder / "block_splits_by_image_all.pth"),
        split_numbers="all",
        subjects=None,
    )


@pytest.mark.parametrize(("backend", "old_format"), [("tar", False), ("zarr", True)])
def test_imagenet_eeg_is_read_as_published(tmp_path, backend, old_format):
    arrays = imagenet(tmp_path / "in", old_format=old_format)
    captions = {"n01000000": "a photo of a boat"}
    given, summary = ingest(
        "imagenet-eeg",
        tmp_path / "store",
        imagenet_source(tmp_path / "in", captions=captions),
        backend=backend,
    )
    assert summary.ok
    assert "block by block" in summary.notes[0]
    assert "1 trials are left out" in summary.notes[1]
    assert verify(given.out).problems == []
    store = open_store(given.out)
    assert (store.unit, store.dtype, store.sfreq) == ("standardised", "float32", 1000.0)
    assert describe(given.out)["unit"] == "standardised"
    rows = store.table().to_pylist()
    assert len(rows) == 11  # person 4 alone, twelve pictures, one too short
    images = {row["image"]: row for row in store.images.to_pylist()}
    for place, row in enumerate(rows):
        kept_TC = store.read(place, 0, row["samples"])
        assert np.abs(kept_TC - arrays[4, row["image"]][:, 20:460].T).max() < 1e-5
        number = int(row["image"].split("_")[1]) - 100
        assert row["split"] == images[row["image"]]["split"] == ("train", "train", "val", "test")[number]
        assert row["label"] == row["image"].split("_")[0]
        assert row["caption"] == captions.get(row["label"])
        original = tmp_path / "in" / "train" / row["label"] / f"{row['image']}.JPEG"
        assert store.read_image(int(store.image_row_of_record[place])) == original.read_bytes()


def test_every_person_is_a_recording(tmp_path):
    imagenet(tmp_path / "in")
    source = ImageNetEEGSource(kind="imagenet-eeg", dataset="inet", **everybody(tmp_path / "in"))
    listing = list_recordings(source)
    assert [(r.id, r.subject) for r in listing.recordings] == [
        ("subject1", "subject1"),
        ("subject4", "subject4"),
    ]
    with listing.recordings[1].open() as opened:
        assert len(opened.trials) == len(opened.spans) == 11
        assert {trial.stop - trial.start for trial in opened.trials} == {440}
        both = opened.read(300, 700)  # across the border of two epochs
        assert (both == np.hstack([opened.read(300, 440), opened.read(440, 700)])).all()


def test_without_a_split_file_pictures_are_divided_by_hash(tmp_path):
    imagenet(tmp_path / "in", per_class=8)
    source = imagenet_source(tmp_path / "in", splits=None, split_numbers=None, subjects=[1, 4])
    given, _ = ingest("imagenet-eeg", tmp_path / "store", source, splits={"test_images": 0.4})
    store = open_store(given.out)
    splits = {}
    for row in store.table(["image", "split"]).to_pylist():
        splits.setdefault(row["image"], set()).add(row["split"])
    assert {frozenset(found) for found in splits.values()} == {frozenset({"train"}), frozenset({"test"})}


@pytest.mark.parametrize(
    ("spoil", "error", "said"),
    [
        (
            lambda folder: (folder / "train" / "n02000000" / "n02000000_101.JPEG").unlink(),
            FileNotFoundError,
            r"pictures that are missing: n02000000_101 \(.*n02000000_101.JPEG\)",
        ),
        (lambda folder: (folder / "eeg_5_95_std.pth").unlink(), FileNotFoundError, r"Correct `eeg:`"),
        (
            lambda folder: torch.save({"dataset": []}, folder / "eeg_5_95_std.pth"),
            ValueError,
            r"is not ImageNet-EEG as published",
        ),
        (
            lambda folder: (folder / "eeg_5_95_std.pth").write_bytes(pickle.dumps({"dataset": Path("x")})),
            ValueError,
            r"cannot be read as a PyTorch file of numbers",
        ),
        (
            lambda folder: torch.save(
                {"splits": [{}, {"train": [*range(1, 12)], "val": [13], "test": []}]},
                folder / "block_splits_by_image_all.pth",
            ),
            ValueError,
            r"n00000000_101 is in train for one trial and in val for another: it does not divide by picture",
        ),
        (
            lambda folder: torch.save({"splits": [{}]}, folder / "block_splits_by_image_all.pth"),
            ValueError,
            r"has 1 divisions; `split_number: 1` is none",
        ),
    ],
)
def test_what_is_wrong_with_imagenet_eeg_is_said(tmp_path, spoil, error, said):
    imagenet(tmp_path / "in")
    spoil(tmp_path / "in")
    source = ImageNetEEGSource(kind="imagenet-eeg", dataset="inet", **everybody(tmp_path / "in"))
    with pytest.raises(error, match=said):
        list_recordings(source)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"split_numbers": "all"}, r"divides the trials of one person.*set `split_numbers: of_person`"),
        ({"subjects": [1, 4]}, r"counts the trials of one person: name that one"),
        ({"subjects": None}, r"counts the trials of one person: name that one"),
    ],
)
def test_a_division_of_one_person_needs_that_person(tmp_path, changes, said):
    with pytest.raises(ValueError, match=said):
        ImageNetEEGSource(kind="imagenet-eeg", dataset="inet", **imagenet_source(tmp_path, **changes))


def test_a_division_that_counts_other_trials_is_refused(tmp_path):
    imagenet(tmp_path / "in", subjects=(1, 2, 3, 4))
    single, renamed = (tmp_path / "in" / name for name in ("block_splits_by_image_single.pth", "mine.pth"))
    single.rename(renamed)
    misread = imagenet_source(tmp_path / "in", splits=str(renamed), split_numbers="all")
    with pytest.raises(ValueError, match=r"names 0 of the 12 trials asked for.*Check `split_numbers:`"):
        list_recordings(ImageNetEEGSource(kind="imagenet-eeg", dataset="inet", **misread))
    whole = str(tmp_path / "in" / "block_splits_by_image_all.pth")
    with pytest.raises(ValueError, match=r"names trial 47, and .* has 12 of person \[4\]"):
        list_recordings(
            ImageNetEEGSource(
                kind="imagenet-eeg", dataset="inet", **imagenet_source(tmp_path / "in", splits=whole)
            )
        )


def test_standardised_numbers_are_not_stored_as_integers(tmp_path):
    imagenet(tmp_path / "in")
    storage = {"dtype": "int16", "record_s": 0.44, "min_record_s": 0.1, "chunk_s": 0.44}
    with pytest.raises(ValueError, match=r"dataset imagenet-eeg is not in µV.*set storage.dtype: float32"):
        ingest("imagenet-eeg", tmp_path / "store", imagenet_source(tmp_path / "in"), storage=storage)


# ---- THINGS-EEG2


def things(folder, subjects=2, metadata=True, raw_pickle=True):
    """Two persons; six training pictures of three concepts, two of two others; 100 Hz from -0.2 to 0.79 s, 17 + 1
    channels. The training file as `pickle.dump` writes it, the test file as `np.save` does: so they are published."""
    names = [
        "Pz",
        "P3",
        "P7",
        "O1",
        "Oz",
        "O2",
        "P4",
        "P8",
        "P1",
        "P5",
        "PO7",
        "PO3",
        "POz",
        "PO4",
        "PO8",
        "P6",
        "P2",
    ]
    concepts = {
        "training": [("00001_aardvark", f"aardvark_0{k}b.jpg") for k in (1, 2)]
        + [("00002_abacus", f"abacus_0{k}b.jpg") for k in (1, 2)]
        + [("00003_air_pump", f"air_pump_0{k}b.jpg") for k in (1, 2)],
        "test": [
            ("00001_aircraft_carrier", "aircraft_carrier_06s.jpg"),
            ("00002_antelope", "antelope_01b.jpg"),
        ],
    }
    images = folder / "image_set"
    for part, pairs in concepts.items():
        for place, (concept, file) in enumerate(pairs):
            path = images / f"{part}_images" / concept / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture(place + 100 * (part == "test"), "JPEG"))
    if metadata:
        said = {}
        for part, prefix in (("training", "train"), ("test", "test")):
            said[f"{prefix}_img_concepts"] = [concept for concept, _ in concepts[part]]
            said[f"{prefix}_img_files"] = [file for _, file in concepts[part]]
        np.save(images / "image_metadata.npy", said)
    times = np.round(np.arange(-0.2, 0.8, 0.01), 3)
    rng = np.random.default_rng(1)
    arrays = {}
    for number in range(1, subjects + 1):
        subject = f"sub-{number:02d}"
        (folder / subject).mkdir(parents=True)
        for part, repetitions in (("training", 4), ("test", 5)):
            data = rng.normal(size=(len(concepts[part]), repetitions, 18, len(times)))
            arrays[subject, part] = data
            whole = {"preprocessed_eeg_data": data, "ch_names": [*names, "stim"], "times": times}
            path = folder / subject / f"preprocessed_eeg_{part}.npy"
            if part == "training" and raw_pickle:
                with path.open("wb") as file:
                    pickle.dump(whole, file, protocol=4)
            else:
                np.save(path, whole)
    return arrays, concepts


def things_source(folder, **changes):
    return {"folder": str(folder), "images": str(folder / "image_set"), **changes}


@pytest.mark.parametrize("metadata", [True, False])
def test_things_eeg2_is_read_as_published_with_repetitions_apart(tmp_path, metadata):
    arrays, concepts = things(tmp_path / "in", metadata=metadata)
    preprocessing = {"sfreq": 100.0, "l_freq": None, "h_freq": None, "notch": None}
    splits = {"val_images": 0.3}
    given, summary = ingest(
        "things-eeg2",
        tmp_path / "store",
        things_source(tmp_path / "in"),
        preprocessing=preprocessing,
        splits=splits,
    )
    assert summary.ok
    assert verify(given.out).problems == []
    store = open_store(given.out)
    assert (store.unit, store.dtype) == ("standardised", "float32")
    rows = store.table().to_pylist()
    assert len(rows) == 2 * (6 * 4 + 2 * 5)
    assert {row["samples"] for row in rows} == {80}
    assert [channel.name for channel in store.channels_of(0)][:2] == ["Pz", "P3"]
    assert int(store.channels[0]) == 17
    order = {"training": [], "test": []}
    for part, pairs in concepts.items():
        order[part] = [f"{concept}_{file.removesuffix('.jpg')}" for concept, file in pairs]
    for place, row in enumerate(rows):
        subject, part = row["recording"].split("_")
        condition = order[part].index(row["image"])
        expected_TC = arrays[subject, part][condition, row["repetition"], :17, 20:].T
        assert np.abs(store.read(place, 0, 80) - expected_TC).max() < 1e-5
        assert (row["split"] == "test") == (part == "test")
    labels = {row["image"]: (row["label"], row["caption"]) for row in rows}
    assert labels["00003_air_pump_air_pump_01b"] == ("air_pump", "air pump")
    # Its files are sorted by picture: no order in time may be read from them.
    warnings = check_leaks(store, "val", [store])
    assert not any("block design" in warning or "next to a training trial" in warning for warning in warnings)
    assert f"when {len(rows)} of its {len(rows)} trials were recorded is not in its files" in warnings[-1]
    counts = describe(given.out)["datasets"]["things-eeg2"]["trials"]
    assert counts["most_repetitions"] == 5
    assert counts["images"] == counts["images_shown"] == 8


@pytest.mark.parametrize(
    ("spoil", "error", "said"),
    [
        (
            lambda folder: (folder / "image_set/test_images/00002_antelope/antelope_01b.jpg").unlink(),
            FileNotFoundError,
            r"missing: 00002_antelope_antelope_01b \(.*antelope_01b.jpg\)",
        ),
        (
            lambda folder: (folder / "sub-02" / "preprocessed_eeg_test.npy").unlink(),
            FileNotFoundError,
            r"sub-02 has no .*preprocessed_eeg_test.npy",
        ),
        (
            lambda folder: (folder / "image_set/test_images/00001_aircraft_carrier").rename(
                folder / "image_set/test_images/00001_abacus"
            ),
            ValueError,
            r"concepts are in training and in test: abacus",
        ),
    ],
)
def test_what_is_wrong_with_things_eeg2_is_said(tmp_path, spoil, error, said):
    things(tmp_path / "in", metadata=said.startswith("missing"))
    spoil(tmp_path / "in")
    with pytest.raises(error, match=said):
        list_recordings(
            ThingsEEG2Source(kind="things-eeg2", dataset="things", **things_source(tmp_path / "in"))
        )


def test_things_eeg2_of_ones_own_preprocessing_may_be_in_volts(tmp_path):
    arrays, _ = things(tmp_path / "in", subjects=1)
    for part in ("training", "test"):
        path = tmp_path / "in" / "sub-01" / f"preprocessed_eeg_{part}.npy"
        whole = np.load(path, allow_pickle=True)
        whole = whole.item() if part == "test" else whole
        np.save(path, whole | {"preprocessed_eeg_data": whole["preprocessed_eeg_data"] * 10e-6})
    given, summary = ingest(
        "things-eeg2",
        tmp_path / "store",
        things_source(tmp_path / "in", values="V", tmin=-0.2),
        preprocessing={"sfreq": 100.0, "l_freq": None, "h_freq": None, "notch": None},
        storage={"record_s": 1.0, "min_record_s": 0.5, "chunk_s": 1.0},
    )
    assert summary.ok
    store = open_store(given.out)
    assert (store.unit, store.dtype) == ("uV", "int16")
    row = store.table().to_pylist()[0]
    assert row["samples"] == 100
    expected_TC = arrays["sub-01", row["recording"].split("_")[1]][0, 0, :17].T * 10
    assert np.abs(store.read(0, 0, 100) * store.step - expected_TC).max() <= 0.5 * store.step + 1e-3


class Payload:
    def __reduce__(self):
        return print, ("executed",)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (Payload(), r"builtins.print, which could run code"),
        ({"times": Path("x")}, r"could run code"),
        ([1, 2], r"holds a list, not a dict"),
        ({"times": np.zeros(3)}, r"lacks ch_names, preprocessed_eeg_data"),
        (
            {"preprocessed_eeg_data": np.zeros((6, 4, 18, 5)), "ch_names": ["a"], "times": np.arange(5)},
            r"18 channels and 5 samples, but 1 names and 5 times",
        ),
        (
            {"preprocessed_eeg_data": np.zeros((5, 4, 1, 5)), "ch_names": ["a"], "times": np.arange(5)},
            r"has 5 pictures, and .* has 6: they do not go together",
        ),
    ],
)
def test_pickles_are_not_executed_and_other_layouts_refused(tmp_path, capsys, content, said):
    things(tmp_path / "in")
    (tmp_path / "in" / "sub-01" / "preprocessed_eeg_training.npy").write_bytes(pickle.dumps(content))
    listing = list_recordings(
        ThingsEEG2Source(kind="things-eeg2", dataset="things", **things_source(tmp_path / "in"))
    )
    with pytest.raises(ValueError, match=said):
        listing.recordings[1].open()
    assert capsys.readouterr().out == ""


# ---- Alljoined


def alljoined(folder, overlap=False):
    """Person 1 in one session, 6 in two; in each 6 trials of 3 pictures in train, 4 of 2 in test; two files of each."""
    rng = np.random.default_rng(2)
    arrays, rows = {}, {"train": [], "test": []}
    pictures = {"train": [139, 285, 632], "test": [285 if overlap else 776, 785]}
    for subject, session in ((1, 1), (6, 1), (6, 2)):
        for part, count in (("train", 6), ("test", 4)):
            for trial in range(count):
                coco = pictures[part][trial % len(pictures[part])]
                values = rng.normal(size=(64, 334)) * 15e-6
                rows[part].append(
                        {"EEG": values.tolist(), "subject_id": subject, "session": session, "block": 1 + trial // 4,
                         "trial": trial, "73k_id": coco + 1, "coco_id": coco, "curr_time": 0.65 * trial}
                    )  # fmt: skip
                arrays[subject, session, part, trial] = values
    (folder / "data").mkdir(parents=True)
    for part, all_rows in rows.items():
        order = np.random.default_rng(3).permutation(
            len(all_rows)
        )  # the published rows are in no order of time
        shuffled = [all_rows[i] for i in order]
        half = len(shuffled) // 2
        for number, some in enumerate((shuffled[:half], shuffled[half:])):
            pq.write_table(
                pa.Table.from_pylist(some), folder / "data" / f"{part}-{number:05d}-of-00002.parquet"
            )
    for place, coco in enumerate(sorted({*pictures["train"], *pictures["test"]})):
        path = folder / ("train2017" if place % 2 else "val2017") / f"{coco:012d}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(picture(place, "JPEG"))
    annotations = [
        {"image_id": 139, "id": 9, "caption": "a later one"},
        {"image_id": 139, "id": 3, "caption": "A woman in a room. "},
        {"image_id": 5, "id": 1, "caption": "not shown"},
    ]
    (folder / "captions.json").write_text(json.dumps({"annotations": annotations}))
    return arrays


def alljoined_source(folder, **changes):
    return {
        "folder": str(folder / "data"),
        "images": [str(folder / "train2017"), str(folder / "val2017")],
        "captions": [str(folder / "captions.json")],
        **changes,
    }


def test_alljoined_is_read_as_published(tmp_path):
    arrays = alljoined(tmp_path / "in")
    given, summary = ingest("alljoined", tmp_path / "store", alljoined_source(tmp_path / "in"))
    assert summary.ok
    assert verify(given.out).problems == []
    store = open_store(given.out)
    assert (store.unit, store.sfreq) == ("uV", 512.0)
    rows = store.table().to_pylist()
    assert len(rows) == 3 * (6 + 4)
    assert {row["samples"] for row in rows} == {308}
    for place, row in enumerate(rows):
        subject, session, part = row["recording"].split("_")
        trial = row["start"] // 308
        key = int(subject.removeprefix("subject")), int(session.removeprefix("session")), part, trial
        expected_TC = arrays[key][:, 26:].T * 1e6
        assert np.abs(store.read(place, 0, 308) * store.step - expected_TC).max() <= 0.5 * store.step + 1e-3
        assert (row["split"] == "test") == (part == "test")
        assert row["caption"] == ("A woman in a room." if row["image"] == "000000000139" else None)
        assert row["repetition"] == trial // (3 if part == "train" else 2)
    assert not any("is not in its files" in warning for warning in check_leaks(store, "test", [store]))


def test_a_picture_of_alljoined_in_both_parts_is_refused_or_divided_anew(tmp_path):
    alljoined(tmp_path / "in", overlap=True)
    source = alljoined_source(tmp_path / "in")
    with pytest.raises(ValueError, match=r"picture 285 is in train and in test.*published_split: false"):
        list_recordings(AlljoinedSource(kind="alljoined", dataset="aj", **source))
    given, _ = ingest(
        "alljoined", tmp_path / "store", source | {"published_split": False}, splits={"test_images": 0.4}
    )
    assert verify(given.out).problems == []
    rows = open_store(given.out).table(["image", "recording", "split"]).to_pylist()
    (split,) = {row["split"] for row in rows if row["image"] == "000000000285"}
    assert {row["recording"].rpartition("_")[2] for row in rows if row["split"] == split} == {"train", "test"}


def test_a_missing_picture_of_alljoined_is_named(tmp_path):
    alljoined(tmp_path / "in")
    (tmp_path / "in" / "val2017" / "000000000139.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"missing: 000000000139 \(.*val2017/000000000139.jpg\)"):
        list_recordings(AlljoinedSource(kind="alljoined", dataset="aj", **alljoined_source(tmp_path / "in")))


def test_other_tables_are_refused(tmp_path):
    alljoined(tmp_path / "in")
    pq.write_table(pa.table({"EEG": [1.0]}), tmp_path / "in" / "data" / "train-00002-of-00002.parquet")
    with pytest.raises(ValueError, match=r"train-00002.* lacks the columns block, coco_id"):
        list_recordings(AlljoinedSource(kind="alljoined", dataset="aj", **alljoined_source(tmp_path / "in")))
