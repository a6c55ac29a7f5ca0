"""Every kind of damage and leakage is found and named, and a sound store has none."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ddscale.store import ArrayRecording, open_store, tables, verify, write_store

SFREQ = 64.0


def build(path: Path, backend: str) -> Path:
    rng = np.random.default_rng(0)

    def records(count):
        return [(640 * i, rng.normal(0, 20, (2, 640))) for i in range(count)]

    write_store(
        path,
        [
            ArrayRecording("a", "anna", "r1", ["Cz", "Pz"], records(3)),
            ArrayRecording("a", "berta", "r2", ["Cz", "Pz"], records(2)),
        ],
        sfreq=SFREQ,
        backend=backend,
        record_s=10,
        val_subjects=["a/berta"],
    )
    return path


@pytest.fixture(scope="module", params=["tar", "zarr"])
def sound(request, tmp_path_factory):
    return build(tmp_path_factory.mktemp("sound") / request.param, request.param)


@pytest.fixture
def store(sound, tmp_path):
    return Path(shutil.copytree(sound, tmp_path / "store"))


def shard_of(store: Path) -> Path:
    return store / open_store(store).shard_names[0]


def reindex(store: Path, name: str, change) -> None:
    """Replace a table by `change(rows)` and let the manifest name the new one: damage that no checksum shows."""
    schema = {"records.parquet": tables.RECORDS, "recordings.parquet": tables.RECORDINGS}[name]
    rows = tables.read(store / name, schema).to_pylist()
    written = tables.write(store / name, tables.table(schema, change(rows)), schema)
    manifest = json.loads((store / "manifest.json").read_text())
    manifest["tables"][name] = written.model_dump()
    (store / "manifest.json").write_text(json.dumps(manifest))


def problems(store: Path) -> str:
    return "\n".join(verify(store).problems)


def test_a_sound_store_has_no_problem_and_every_record_was_read(sound):
    seen = []
    report = verify(sound, on_progress=lambda done, total, shard: seen.append((done, total, shard)))
    assert report.problems == []
    assert report.ok
    assert (report.checked, report.shards) == (5, 1)
    assert seen == [(5, 5, open_store(sound).shard_names[0])]


def test_a_flipped_bit_is_found_in_its_record(store):
    row = open_store(store).table(["key", "offset"]).slice(3, 1).to_pylist()[0]
    shard = shard_of(store)
    content = bytearray(shard.read_bytes())
    content[row["offset"] + 40] ^= 4
    shard.write_bytes(content)
    found = verify(store)
    assert row["key"] in "\n".join(found.problems)
    assert found.checked == 4


def test_a_cut_off_and_a_missing_shard_are_named(store):
    shard = shard_of(store)
    shard.write_bytes(shard.read_bytes()[:-700])
    assert str(shard) in problems(store)
    shard.unlink()
    assert f"shard {shard} is missing, with records a-r1-000000 to a-r2-000001 (5)" in problems(store)


def test_records_missing_from_the_index_are_found_in_the_data(store):
    reindex(store, "records.parquet", lambda rows: rows[:-1])
    found = problems(store)
    assert "belongs to nothing in the index" in found
    assert "its totals differ" in found


def test_an_index_that_points_elsewhere_is_found(store):
    reindex(store, "records.parquet", lambda rows: [row | {"samples": row["samples"] - 1} for row in rows])
    assert "a-r1-000000" in problems(store)


def test_a_changed_table_is_named(store):
    with (store / "rejected.parquet").open("ab") as file:
        file.write(b"x")
    (store / "recordings.parquet").unlink()
    found = problems(store)
    assert "rejected.parquet is not the table" in found
    assert "recordings.parquet is missing" in found


def test_files_that_belong_to_nothing_are_named(store):
    (store / "notes.txt").write_text("mine")
    assert f"{store / 'notes.txt'} belongs to nothing" in problems(store)


def test_a_tar_that_was_added_to_is_noticed(tmp_path):
    store = build(tmp_path / "store", "tar")
    with tarfile.open(shard_of(store), "a") as archive:
        info = tarfile.TarInfo("a-r9-000000.npy")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"abc"))
    assert "a-r9-000000.npy" in problems(store)


def test_a_json_member_that_says_otherwise_is_noticed(tmp_path):
    store = build(tmp_path / "store", "tar")
    shard = shard_of(store)
    content = shard.read_bytes()
    assert content.count(b'"recording":"r2"') == 2
    shard.write_bytes(content.replace(b'"recording":"r2"', b'"recording":"r1"'))
    assert "a-r2-000000.json" in problems(store)
    assert "about recording" in problems(store)


def test_zarr_row_arrays_that_say_otherwise_are_noticed(tmp_path):
    store = build(tmp_path / "store", "zarr")
    (lengths,) = store.glob("a/*/length/c/0")
    lengths.write_bytes(bytes(lengths.stat().st_size))
    assert "the array for `samples` says otherwise" in problems(store)


def test_a_subject_in_two_splits_is_named(store):
    reindex(store, "records.parquet", lambda rows: [{**rows[0], "split": "val"}, *rows[1:]])
    assert "is in train and val" in problems(store)


def test_the_same_signal_twice_is_named(store):
    reindex(store, "recordings.parquet", lambda rows: [row | {"content": "0a"} for row in rows])
    assert "a/r2 is a duplicate of a/r1" in problems(store)


@pytest.mark.parametrize("backend", ["tar", "zarr"])
def test_recordings_that_overlap_are_named_but_equal_checksums_alone_are_not(tmp_path, backend, monkeypatch):
    rng = np.random.default_rng(1)
    parts = [rng.normal(0, 20, (2, 640)) for _ in range(3)]
    recordings = [
        ArrayRecording("a", "anna", "r1", ["Cz", "Pz"], [(0, parts[0]), (640, parts[1])]),
        ArrayRecording("a", "berta", "r2", ["Cz", "Pz"], [(0, parts[1]), (640, parts[2])]),
    ]
    write_store(tmp_path / "store", recordings, sfreq=SFREQ, backend=backend, record_s=10)
    assert verify(tmp_path / "store").problems == [
        "records a-r1-000001 and a-r2-000000 hold the same values: one recording may lie in the store twice."
    ]
    monkeypatch.setattr("ddscale.store.verifying._same_values", lambda *_: False)
    assert verify(tmp_path / "store").ok


def test_what_is_blocked_and_still_there_is_named(store):
    manifest = json.loads((store / "manifest.json").read_text())
    manifest["blocklist"]["recordings"] = ["a/r2"]
    (store / "manifest.json").write_text(json.dumps(manifest))
    assert "on the blocklist are still there: r2" in problems(store)


def test_a_manifest_edited_by_hand_is_noticed(store):
    manifest = json.loads((store / "manifest.json").read_text())
    manifest["content"]["step_uV"] = 1.0
    manifest["datasets"]["a"]["licence"] = "CC0-1.0"
    manifest["datasets"]["a"]["hours"] = 100.0
    (store / "manifest.json").write_text(json.dumps(manifest))
    found = problems(store)
    assert "its preprocessing_hash does not fit" in found
    assert "dataset a: hours differ" in found


def test_tables_are_plain_parquet_that_explain_themselves(sound):
    schema = pq.read_schema(sound / "records.parquet")
    assert all(field.metadata[b"about"] for field in schema)
    assert pa.types.is_uint32(schema.field("crc32c").type)
