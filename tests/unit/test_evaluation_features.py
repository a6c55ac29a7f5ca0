"""`ddscale encode`: features of recordings and stores against the same computed by hand."""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from finetuning import write_paired_store
from ingesting import eeg, recipe, write_edf

from ddscale.evaluation.features import FEATURES, WINDOWS, EncodeSettings, encode
from ddscale.ingest import run as ingest
from ddscale.models import EEGEncoder, EncoderConfig, load_encoder, save_encoder
from ddscale.store import ArrayRecording, open_store, tables, write_store

SIZES = {"width": 16, "depth": 1, "heads": 2, "n_channels": 8, "n_samples": 64, "patch": 4}
ZSCORE = {"kind": "zscore", "clip": 15.0, "eps_uv": 0.1}
FILTERED = {"sfreq": 100.0, "l_freq": 1.0, "h_freq": 40.0}


def make_encoder(folder: Path, sfreq: float, **facts) -> Path:
    torch.manual_seed(1)
    said = {"sfreq": sfreq, "normalisation": ZSCORE, **facts}
    return save_encoder(EEGEncoder(EncoderConfig.model_validate(SIZES)), folder, said)


def named(store: Path) -> dict:
    return {"stores": [{"path": str(store), "fingerprint": open_store(store).fingerprint}]}


def by_hand(encoder: Path, windows_TC: list[np.ndarray]) -> np.ndarray:
    """Each window alone: µV, every channel by its own mean and deviation, repeated until the encoder's are full."""
    rows = []
    for x_TC in windows_TC:
        z_TC = (x_TC - x_TC.mean(0)) / np.maximum(x_TC.std(0), ZSCORE["eps_uv"])
        z_TC = z_TC.clip(-ZSCORE["clip"], ZSCORE["clip"])
        full_TC = z_TC[:, np.arange(SIZES["n_channels"]) % x_TC.shape[1]]
        with torch.no_grad():
            rows.append(load_encoder(encoder)(torch.from_numpy(full_TC[None]).float()).pooled[0].numpy())
    return np.stack(rows)


def read(folder: Path) -> tuple[np.ndarray, list[dict]]:
    return np.load(folder / FEATURES), pq.read_table(folder / WINDOWS).to_pylist()


@pytest.fixture
def store(tmp_path) -> Path:
    rng = np.random.default_rng(0)
    recordings = [
        ArrayRecording(
            "lab", f"s{n}", f"s{n}-rest", [f"E{c + 1}" for c in range(2 + n)],
            [(start, rng.normal(scale=20, size=(2 + n, 64 * 3 + 10))) for start in (0, 500)],
        )
        for n in range(3)
    ]  # fmt: skip
    write_store(tmp_path / "store", recordings, sfreq=128.0, val_subjects=["lab/s2"])
    return tmp_path / "store"


def test_every_window_of_a_store_once_as_computed_by_hand_with_a_row_that_says_whose(store, tmp_path):
    encoder = make_encoder(tmp_path / "encoder", 128.0)
    seen = []
    done = encode(
        encoder,
        store,
        tmp_path / "out",
        EncodeSettings(batch_size=5),
        on_progress=lambda *at: seen.append(at),
    )
    features, rows = read(tmp_path / "out")
    assert features.shape == done.shape == (3 * 2 * 3, 16)
    assert features.dtype == np.float32
    assert done.sliding
    assert seen[-1] == (18, 18)
    # Training subjects first, each recording in time.
    assert [row["recording"] for row in rows] == [f"s{n}-rest" for n in range(3) for _ in range(6)]
    assert [row["split"] for row in rows] == ["train"] * 12 + ["val"] * 6
    assert [row["onset_s"] for row in rows[:6]] == [
        0, 0.5, 1, 500 / 128, 500 / 128 + 0.5, 500 / 128 + 1]  # fmt: skip
    assert all(row["dataset"] == "lab" and len(row["subject"]) == 16 and row["file"] is None for row in rows)
    opened = open_store(store)
    keys = opened.table(["key"])["key"].to_pylist()
    windows = []
    for row in rows:
        number = keys.index(row["record"])
        start = round(row["onset_s"] * 128) - int(opened.start[number])
        windows.append(opened.read(number, start, start + 64).astype(np.float64) * opened.step)
    np.testing.assert_allclose(features, by_hand(encoder, windows), atol=2e-5)
    said = json.loads(pq.read_schema(tmp_path / "out" / WINDOWS).metadata[b"ddscale"])
    assert said["store_fingerprint"] == opened.fingerprint


def test_a_recording_file_goes_the_way_its_encoders_stores_went(tmp_path):
    signal = eeg(90.0, seed=3)
    signal[:, : 128 * 7] *= 60  # cut out, so that records begin later than the file
    path = write_edf(tmp_path / "anna" / "mine.edf", signal)
    write_edf(tmp_path / "others" / "x" / "run.edf", eeg(20.0, seed=4))
    ingest(recipe(tmp_path / "others", tmp_path / "pretrained-on", preprocessing=FILTERED))
    ingest(recipe(tmp_path / "anna", tmp_path / "same", preprocessing=FILTERED))
    encoder = make_encoder(tmp_path / "run" / "encoder", 100.0, **named(tmp_path / "pretrained-on"))
    encode(tmp_path / "run", path, tmp_path / "of-file")
    encode(encoder, tmp_path / "same", tmp_path / "of-store")
    of_file, rows = read(tmp_path / "of-file")
    of_store, stored = read(tmp_path / "of-store")
    own = {round(row["onset_s"], 6): feature for row, feature in zip(rows, of_file, strict=True)}
    both = [
        (own[row["onset_s"]], f) for row, f in zip(stored, of_store, strict=True) if row["onset_s"] in own
    ]
    assert len(both) >= 10  # records of that store are shorter, so that not all windows are the same
    for mine, theirs in both:
        np.testing.assert_allclose(mine, theirs, atol=1e-5)
    assert rows[0]["onset_s"] >= 7
    assert rows[-1]["onset_s"] + 0.64 <= 90
    first = rows[0]
    assert (first["file"], first["subject"], first["split"]) == (str(path), None, None)


@pytest.mark.real
def test_a_real_recording(shared, tmp_path):
    path = next((shared / "eeg" / "gtec8-ssvep-s01").glob("*.gdf"))
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / path.name).write_bytes(path.read_bytes())
    source = {"kind": "files", "dataset": "ssvep", "folder": str(tmp_path / "copy"), "unit": "mV"}
    changes = {"preprocessing": {"sfreq": 256.0}, "sources": [source], "storage": {"record_s": 60.0}}
    ingest(recipe(tmp_path, tmp_path / "store", **changes))
    encoder = make_encoder(tmp_path / "encoder", 256.0, **named(tmp_path / "store"))
    with pytest.raises(ValueError, match="state `--unit mV`") as refused:
        encode(encoder, path, tmp_path / "out")
    assert "`unit:" not in str(refused.value)
    encode(encoder, path, tmp_path / "out", unit="mV")
    features, rows = read(tmp_path / "out")
    opened = open_store(tmp_path / "store")
    windows = [
        opened.read(row, start, start + 64).astype(np.float64) * opened.step
        for row, samples in enumerate(opened.samples.tolist())
        for start in range(0, samples - 63, 64)
    ]
    onsets = [
        (int(opened.start[row]) + start) / 256
        for row, samples in enumerate(opened.samples.tolist())
        for start in range(0, samples - 63, 64)
    ]
    # The file alone keeps stretches from a window's length on, the store from two seconds on.
    place = {row["onset_s"]: number for number, row in enumerate(rows)}
    common = [number for number, onset in enumerate(onsets) if round(onset, 6) in place]
    assert len(common) > 0.5 * len(onsets)
    assert len(common) > 400
    chosen = common[:: len(common) // 40]
    hand = by_hand(encoder, [windows[number] for number in chosen])
    ours = features[[place[round(onsets[number], 6)] for number in chosen]]
    np.testing.assert_allclose(ours, hand, atol=2e-5)


def test_trials_give_one_window_each_with_its_label(tmp_path):
    write_paired_store(tmp_path / "paired", pictures=24)
    encoder = make_encoder(tmp_path / "encoder", 128.0)
    done = encode(
        encoder, tmp_path / "paired", tmp_path / "out", EncodeSettings(features="tokens", split="test")
    )
    features, rows = read(tmp_path / "out")
    assert not done.sliding
    assert features.shape == (8, 16, 16)  # four pictures seen by two people; 64 samples in patches of 4
    assert {row["label"] for row in rows} == {"zero", "one", "two", "three"}
    assert all(row["split"] == "test" and row["image"] for row in rows)
    encode(encoder, tmp_path / "paired", tmp_path / "both", EncodeSettings(features="mean_std", split="test"))
    both, _ = read(tmp_path / "both")
    np.testing.assert_allclose(both[:, :16], features.mean(axis=1), atol=1e-5)
    np.testing.assert_allclose(both[:, 16:], features.std(axis=1, ddof=1), atol=1e-5)


def test_what_does_not_go_together_is_refused_and_leaves_no_features(store, tmp_path):
    with pytest.raises(ValueError, match="built at 128 Hz"):
        encode(make_encoder(tmp_path / "fast", 256.0), store, tmp_path / "out")
    other = make_encoder(tmp_path / "other", 128.0, preprocessing={"sfreq": 128.0, "l_freq": 0.1})
    with pytest.raises(ValueError, match=r"l_freq is None, not 0\.1.*Ingest it again"):
        encode(other, store, tmp_path / "out")
    silent = make_encoder(tmp_path / "silent", 128.0)
    path = write_edf(tmp_path / "anna" / "mine.edf", eeg(10.0, seed=3))
    with pytest.raises(ValueError, match="not known.*give the store"):
        encode(silent, path, tmp_path / "out")
    shard = store / open_store(store).shard_names[0]
    shard.write_bytes(shard.read_bytes()[:3000])
    with pytest.raises(OSError, match="could not be read"):
        encode(silent, store, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_no_table_of_an_earlier_call_goes_with_other_features(store, tmp_path, monkeypatch):
    encoder = make_encoder(tmp_path / "encoder", 128.0)
    encode(encoder, store, tmp_path / "out")
    replace = os.replace

    def failing(source, target):
        if Path(target).name == WINDOWS:
            raise OSError(errno.EIO, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(OSError, match="Input/output"):
        encode(encoder, store, tmp_path / "out", EncodeSettings(overlap=0.5))
    assert [path.name for path in (tmp_path / "out").iterdir()] == [FEATURES]


def test_an_index_is_read_group_by_group(store, monkeypatch, tmp_path):
    path = store / "records.parquet"
    whole = pq.read_table(path)
    pq.write_table(whole, tmp_path / "small.parquet", row_group_size=4)
    groups = tables.Groups(tmp_path / "small.parquet", ["key", "label"])
    for row in (0, 3, 4, 5, 1):
        assert groups[row] == {"key": whole["key"][row].as_py(), "label": None}


def test_the_command_says_where_things_are(store, tmp_path):
    from typer.testing import CliRunner

    from ddscale.cli import app

    encoder = make_encoder(tmp_path / "encoder", 128.0)
    arguments = [
        "encode",
        str(encoder),
        "--eeg",
        str(store),
        "--out",
        str(tmp_path / "out"),
        "--split",
        "val",
    ]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert f"{tmp_path / 'out' / FEATURES} (6, 16)" in done.output
    assert len(read(tmp_path / "out")[1]) == 6
