"""Stores are read by the plain `webdataset`, `zarr`, `tensorstore` and `pyarrow` packages, without ddscale."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset
import zarr

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from ingesting import cohort, eeg, recipe, write_edf

from ddscale.ingest import run
from ddscale.store import open_store


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Backend -> open store; the same recordings in both, one with a bad channel, shards of a few records."""
    base = tmp_path_factory.mktemp("interop")
    folder = cohort(base / "in", subjects=2)
    flawed_CT = eeg(20, 9)
    flawed_CT[0] = 0
    write_edf(folder / "sub2" / "run3.edf", flawed_CT)
    for backend in ("tar", "zarr"):
        storage = {"record_s": 8.0, "shard_mb": 0.03, "chunk_s": 3.0}
        run(recipe(folder, base / backend, backend=backend, storage=storage))
    return {backend: open_store(base / backend) for backend in ("tar", "zarr")}


def by_key(store) -> dict[str, np.ndarray]:
    keys = store.table(["key"])["key"].to_pylist()
    return {key: store.read(row, 0, int(store.samples[row])) for row, key in enumerate(keys)}


def test_both_backends_hold_the_same_records(stores):
    tar, in_zarr = by_key(stores["tar"]), by_key(stores["zarr"])
    assert tar.keys() == in_zarr.keys()
    assert len(tar) == 15
    assert all(np.array_equal(tar[key], in_zarr[key]) for key in tar)
    assert len(stores["tar"].shard_names) > 2
    assert len(stores["zarr"].shard_names) > 2


def test_webdataset_decodes_every_record(stores):
    store = stores["tar"]
    expected = by_key(store)
    shards = [str(store.path / name) for name in store.shard_names]
    samples = {s["__key__"]: s for s in webdataset.WebDataset(shards, shardshuffle=False).decode()}
    assert samples.keys() == expected.keys()
    for key, sample in samples.items():
        assert np.array_equal(sample["npy"], expected[key])
        note = sample["json"]
        assert note["key"] == key
        assert len(note["channels"]) == sample["npy"].shape[1]
        assert (note["sfreq"], note["step_uV"], note["unit"]) == (100.0, 0.1, "µV")
    assert samples["tests-sub2_run3-000000"]["json"]["channels"] == ["Cz", "O2", "P3"]


def test_tar_shards_are_whole_archives_without_a_trace_of_the_machine(stores):
    store = stores["tar"]
    for name in store.shard_names:
        with tarfile.open(store.path / name) as archive:
            for member in archive:
                assert (member.mtime, member.uid, member.gid, member.uname, member.mode) == (
                    0,
                    0,
                    0,
                    "",
                    0o644,
                )
        listed = subprocess.run(["tar", "tf", store.path / name], capture_output=True, text=True, check=True)
        assert listed.stderr == ""


def test_plain_zarr_reads_every_record_and_is_told_what_it_is(stores):
    store = stores["zarr"]
    expected = by_key(store)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        root = zarr.open(store.path, mode="r")
        assert root.attrs["unit"] == "µV"
        found = {}
        for _, dataset in root.groups():
            for _, group in dataset.groups():
                signal, length, key = group["signal"], group["length"][:], group["key"][:]
                assert signal.shape[0] == len(length) == len(key)
                assert "µV" in group.attrs["about"]["signal"]
                for row in np.flatnonzero(length):
                    found[key[row]] = signal[row, : length[row]]
                    assert not signal[row, length[row] :].any()
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[key], expected[key]) for key in expected)


def test_zarr_attributes_name_the_channels(stores):
    root = zarr.open(stores["zarr"].path, mode="r")
    groups = dict(root["tests"].groups())
    whole, lacking = sorted(groups, key=len)
    assert [channel["name"] for channel in groups[whole].attrs["channels"]] == ["Fp1", "Cz", "O2", "P3"]
    assert lacking == f"{whole}-keep3"
    assert groups[lacking].attrs["montage_channels"] == ["Fp1", "Cz", "O2", "P3"]
    length, dropped = groups[lacking]["length"][:], groups[lacking]["dropped"][:]
    assert dropped[length > 0].tolist() == [[0]] * 3


def test_zarr_finds_a_damaged_chunk_by_its_checksum(stores, tmp_path):
    import shutil

    copy = Path(shutil.copytree(stores["zarr"].path, tmp_path / "store"))
    shard = copy / stores["zarr"].shard_names[0]
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    group = zarr.open(copy, mode="r")["/".join(stores["zarr"].shard_names[0].split("/")[:2])]
    with pytest.raises(ValueError, match="checksum"):
        group["signal"][0]


def test_tensorstore_reads_the_same_values(stores):
    import tensorstore

    store = stores["zarr"]
    group = store.path / "/".join(store.shard_names[0].split("/")[:2])
    signal = tensorstore.open(
        {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(group / "signal")}}
    ).result()
    assert np.array_equal(signal[:].read().result(), zarr.open(group, mode="r")["signal"][:])


def test_the_index_is_plain_parquet_and_its_offsets_lead_to_the_values(stores):
    store = stores["tar"]
    expected = by_key(store)
    rows = pq.read_table(store.path / "records.parquet").to_pylist()
    for row in rows:
        values = np.fromfile(
            store.path / row["shard"], "<i2", row["samples"] * row["channels"], offset=row["offset"]
        )
        assert np.array_equal(values.reshape(row["samples"], row["channels"]), expected[row["key"]])
        assert row["length"] == values.nbytes
