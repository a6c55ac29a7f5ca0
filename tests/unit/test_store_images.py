"""Pictures and trials in a store: what is there is what was given, and whatever is wrong is named."""

from __future__ import annotations

import io
import json
import re
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from paired import picture

from ddscale.store import (
    ArrayRecording,
    ImageFile,
    StagedTrial,
    describe,
    open_store,
    tables,
    verify,
    write_store,
)
from ddscale.store import images as image_shards

SFREQ = 64.0


def image(number, dataset="d", content=None, **given):
    data = picture(number) if content is None else content
    return ImageFile(dataset, f"p{number}", "png", f"p{number}.png", lambda: data, **given)


def recording(subject, shown, dataset="d"):
    rng = np.random.default_rng([len(subject), ord(subject[-1])])
    records = [(100 * place, rng.integers(-3000, 3000, (3, 64)) * 0.1) for place in range(len(shown))]
    trials = [
        StagedTrial(image=f"p{i}", label="x", repetition=shown[:k].count(i)) for k, i in enumerate(shown)
    ]
    return ArrayRecording(dataset, subject, f"r-{subject}", ["a", "b", "c"], records, trials=trials)


@pytest.fixture
def store(tmp_path):
    """Six pictures in several shards, p0 held out; two subjects."""
    images = [image(i, label="x", stated="test" if i == 0 else "train") for i in range(6)]
    shown = [0, 1, 2, 3, 4, 5]
    write_store(
        tmp_path / "store",
        [recording("s1", shown), recording("s2", shown[::-1])],
        sfreq=SFREQ, record_s=2, shard_mb=0.006, images=images,
    )  # fmt: skip
    assert verify(tmp_path / "store").problems == []
    return tmp_path / "store"


def rewrite(path, change):
    """Change a table and the manifest's word on it, as a faulty program could."""
    table = pq.read_table(path)
    rows = change(table.to_pylist())
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    manifest = json.loads((path.parent / "manifest.json").read_bytes())
    manifest["tables"][path.name] = {"rows": len(rows), "sha256": tables.sha256_of(path)}
    (path.parent / "manifest.json").write_text(json.dumps(manifest))


def test_pictures_go_into_shards_of_limited_size_and_come_back(store):
    opened = open_store(store)
    shards = sorted(path.name for path in (store / "images").glob("*"))
    assert shards == ["d-000000.tar", "d-000001.tar", "d-000002.tar"]
    assert all((store / "images" / name).stat().st_size <= 6000 for name in shards)
    for row in range(6):
        assert opened.read_image(row) == picture(int(opened.images["image"][row].as_py()[1:]))
    assert opened.is_trial.all()
    shown = [opened.images["image"][row].as_py() for row in opened.image_row_of_record.tolist()]
    assert shown == opened.table(["image"])["image"].to_pylist()
    with pytest.raises(IndexError, match="has 6 pictures, asked for number 6"):
        opened.read_image(6)


def test_the_format_says_whether_there_are_trials(store, tmp_path):
    assert json.loads((store / "manifest.json").read_bytes())["version"] == 2
    signal_CT = np.random.default_rng(0).normal(size=(3, 100)) * 10
    write_store(
        tmp_path / "plain", [ArrayRecording("d", "s", "r", ["a", "b", "c"], [(0, signal_CT)])], sfreq=SFREQ
    )
    text = (tmp_path / "plain" / "manifest.json").read_text()
    assert json.loads(text)["version"] == 1
    # Nothing of what only trials need: a store is the same, byte for byte, as before there were any.
    for word in ("images", "trials", '"unit"'):
        assert word not in text
    assert not {"image", "label", "caption", "repetition"} & set(
        pq.read_schema(tmp_path / "plain/records.parquet").names
    )
    plain = open_store(tmp_path / "plain")
    assert plain.images is None
    assert plain.is_trial.tolist() == [False]
    assert plain.image_row_of_record.tolist() == [-1]
    assert plain.table(["image", "repetition"]).to_pylist() == [{"image": None, "repetition": None}]
    assert describe(tmp_path / "plain")["datasets"]["d"]["trials"] is None


def test_the_fingerprint_changes_with_a_picture_alone(store, tmp_path):
    images = [image(i, label="x", stated="test" if i == 0 else "train") for i in range(5)]
    images.append(image(5, label="x", stated="train", content=picture(77)))
    shown = [0, 1, 2, 3, 4, 5]
    write_store(
        tmp_path / "other",
        [recording("s1", shown), recording("s2", shown[::-1])],
        sfreq=SFREQ, record_s=2, shard_mb=0.006, images=images,
    )  # fmt: skip
    one, other = open_store(store), open_store(tmp_path / "other")
    assert one.manifest.tables["records.parquet"] == other.manifest.tables["records.parquet"]
    assert one.fingerprint != other.fingerprint


def test_a_flipped_bit_in_a_picture_is_found_when_read_and_when_verified(store):
    opened = open_store(store)
    row = opened.images.slice(3, 1).to_pylist()[0]
    path = store / row["shard"]
    content = bytearray(path.read_bytes())
    content[row["offset"] + row["length"] // 2] ^= 4
    path.write_bytes(content)
    with pytest.raises(
        OSError, match=rf"picture d/{row['image']} from {path}: the picture's SHA-256 is another"
    ):
        opened.read_image(3)
    problems = verify(store).problems
    assert len(problems) == 1
    assert f"picture d/{row['image']}" in problems[0]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda path: path.unlink(), r"images/d-000001.tar is missing, with 2 pictures"),
        (lambda path: path.write_bytes(path.read_bytes()[:3000]), r"d-000001.tar.*(not a whole tar|cut off)"),
        (
            lambda path: (path.parent / "d-000009.tar").write_bytes(path.read_bytes()),
            r"d-000009.tar belongs to nothing",
        ),
    ],
)
def test_a_damaged_or_strange_shard_of_pictures_is_named(store, spoil, said):
    spoil(store / "images" / "d-000001.tar")
    problems = verify(store).problems
    assert problems
    assert any(re.search(said, problem) for problem in problems), problems


def test_a_picture_that_is_in_no_row_is_named(store):
    path = store / "images" / "d-000001.tar"
    buffer = io.BytesIO(path.read_bytes())
    with tarfile.open(fileobj=buffer, mode="a") as archive:
        info = tarfile.TarInfo("p99.png")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"abc"))
    path.write_bytes(buffer.getvalue())
    assert any(
        "p99.png in" in problem and "belongs to nothing" in problem for problem in verify(store).problems
    )


def test_a_lost_or_changed_table_of_pictures_is_noticed_at_once(store):
    table = store / "images.parquet"
    content = table.read_bytes()
    table.write_bytes(content + b" ")
    with pytest.raises(ValueError, match=r"images.parquet is not the index that manifest.json names"):
        open_store(store)
    table.unlink()
    with pytest.raises(FileNotFoundError, match=r"has lost its index images.parquet"):
        open_store(store)
    assert "images.parquet is missing" in verify(store).problems[0]


def test_records_in_another_split_than_their_picture_are_leakage(store):
    def move(rows):
        for row in rows:
            if row["image"] == "p0" and row["recording"] == "r-s1":
                row["split"] = "train"
        return rows

    rewrite(store / "records.parquet", move)
    problems = [problem for problem in verify(store).problems if "picture p0" in problem]
    assert problems == ["record d-r-s1-000000 is in train, and its picture p0 in test."]


def test_a_record_whose_picture_is_missing_is_named(store):
    rewrite(store / "images.parquet", lambda rows: [row for row in rows if row["image"] != "p3"])
    problems = verify(store).problems
    assert any(
        "images.parquet: picture d/p3 is missing, and records have it" in problem for problem in problems
    )
    with pytest.raises(ValueError, match="lacks pictures that records have: d/p3"):
        _ = open_store(store).image_row_of_record


def test_one_picture_under_two_names_in_two_splits_is_leakage(tmp_path):
    images = [
        image(1, stated="train"),
        image(2, stated="test", content=picture(1)),
        image(3, stated="train", content=picture(8)),
        image(4, stated="train", content=picture(8)),
    ]
    write_store(tmp_path / "s", [recording("s1", [1, 2, 3, 4])], sfreq=SFREQ, record_s=2, images=images)
    (problem,) = verify(tmp_path / "s").problems
    assert "the same picture is in test as d/p2 and in train as d/p1" in problem


def test_subjects_in_two_splits_are_leakage_only_where_they_should_not_be(tmp_path):
    images = [image(i, stated="test" if i == 0 else "train") for i in range(4)]
    recordings = [recording(subject, [0, 1, 2, 3]) for subject in ("s1", "s2")]
    common = {"sfreq": SFREQ, "record_s": 2, "images": images}
    write_store(tmp_path / "by-image", recordings, **common)
    assert verify(tmp_path / "by-image").problems == []
    write_store(
        tmp_path / "both", recordings, **common, test_subjects=["d/s2"], images_by="image_and_subject"
    )
    assert verify(tmp_path / "both").problems == []
    splits = open_store(tmp_path / "both").table(["recording", "image", "split"]).to_pylist()
    found = {(row["recording"], row["image"]): row["split"] for row in splits}
    assert found == {
        ("r-s1", "p0"): "none",
        **{("r-s1", f"p{i}"): "train" for i in (1, 2, 3)},
        ("r-s2", "p0"): "test",
        **{("r-s2", f"p{i}"): "none" for i in (1, 2, 3)},
    }
    both = tmp_path / "both" / "records.parquet"
    rewrite(
        both,
        lambda rows: [row | {"split": "train" if row["image"] == "p1" else row["split"]} for row in rows],
    )
    assert any("is in test and train" in problem for problem in verify(tmp_path / "both").problems)


def test_names_and_kinds_of_pictures_that_cannot_be_stored_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"picture d/a.b \(x\): its name may have letters"):
        image_shards.add(tmp_path, 1e6, [ImageFile("d", "a.b", "png", "x", lambda: picture(0))])
    with pytest.raises(ValueError, match=r"is a .webp; stored are png, jpg, jpeg"):
        image_shards.add(tmp_path, 1e6, [ImageFile("d", "ab", "webp", "x", lambda: picture(0))])

    def gone():
        raise FileNotFoundError("x")

    with pytest.raises(FileNotFoundError, match=r"picture d/ab \(x\) is not there"):
        image_shards.add(tmp_path, 1e6, [ImageFile("d", "ab", "png", "x", gone)])


def test_trials_whose_pictures_nobody_brings_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"images.parquet lacks pictures that records have: d/p2"):
        write_store(tmp_path / "s", [recording("s1", [1, 2])], sfreq=SFREQ, record_s=2, images=[image(1)])
