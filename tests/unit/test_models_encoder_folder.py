"""Model folders: what was saved comes back, and what was damaged is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ddscale.models import (
    EEGEncoder,
    EncoderConfig,
    MAEConfig,
    MaskedAutoencoder,
    describe,
    load_autoencoder,
    load_encoder,
    save_autoencoder,
    save_encoder,
)

CONFIG = EncoderConfig(n_channels=6, n_samples=32, width=16, depth=2, heads=2)
MAE = MAEConfig(
    n_channels=6, n_samples=32, width=16, depth=1, heads=2, decoder_width=8, decoder_depth=1, decoder_heads=2
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    return save_encoder(
        EEGEncoder(CONFIG), tmp_path / "encoder", {"checkpoint": "step-00000010", "sfreq": 256.0}
    )


def change(folder: Path, **entries) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def test_an_encoder_comes_back_bit_for_bit(tmp_path):
    torch.manual_seed(0)
    encoder = EEGEncoder(CONFIG).eval()
    save_encoder(encoder, tmp_path / "a" / "encoder")
    loaded = load_encoder(tmp_path / "a" / "encoder")
    x = torch.randn(3, 32, 6)
    assert loaded.config == CONFIG
    assert not loaded.training
    for ours, theirs in zip(encoder(x), loaded(x), strict=True):
        assert torch.equal(ours, theirs)


def test_an_autoencoder_comes_back_bit_for_bit(tmp_path):
    torch.manual_seed(0)
    model = MaskedAutoencoder(MAE)
    loaded = load_autoencoder(save_autoencoder(model, tmp_path / "mae"))
    x, seeds = torch.randn(3, 32, 6), torch.arange(3)
    assert loaded.config == MAE
    assert torch.equal(loaded.reconstruct(x, seeds)[0], model.reconstruct(x, seeds)[0])


def test_the_folder_says_what_it_is(folder):
    description = describe(folder)
    assert description.kind == "eeg_encoder"
    assert description.parameters == sum(p.numel() for p in EEGEncoder(CONFIG).parameters())
    assert description.metadata == {"checkpoint": "step-00000010", "sfreq": 256.0}
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_saving_again_replaces_it(folder):
    torch.manual_seed(5)
    other = EEGEncoder(CONFIG)
    save_encoder(other, folder)
    assert torch.equal(load_encoder(folder).projection.weight, other.projection.weight)
    assert describe(folder).metadata == {}


def test_a_flipped_bit_is_refused(folder):
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"model.safetensors is not the file config.json describes.*damaged"):
        load_encoder(folder)


def test_missing_files_are_named(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="no model.safetensors"):
        load_encoder(folder)
    with pytest.raises(FileNotFoundError, match=r"no config.json in .*RUN/encoder"):
        load_encoder(folder.parent)


def test_weights_of_other_sizes_are_refused(folder):
    import hashlib

    path = folder / "model.safetensors"
    state = load_file(path)
    state["projection.weight"] = torch.zeros(16, 20)
    del state["projection.bias"]
    save_file(state, path)
    change(folder, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(
        ValueError, match=r"projection.bias is missing; projection.weight is \(16, 20\) instead"
    ):
        load_encoder(folder)


def test_other_versions_kinds_and_contents_are_refused(folder, tmp_path):
    mae = save_autoencoder(MaskedAutoencoder(MAE), tmp_path / "mae")
    with pytest.raises(ValueError, match="holds a masked_autoencoder, not a eeg_encoder"):
        load_encoder(mae)
    change(folder, config={**CONFIG.model_dump(), "heads": 3})
    with pytest.raises(ValueError, match="heads 3 does not divide width 16"):
        load_encoder(folder)
    change(folder, schema_version=2)
    with pytest.raises(ValueError, match="schema version 2, this ddscale reads 1"):
        load_encoder(folder)
    change(folder, schema_version=1, parameters="many")
    with pytest.raises(ValueError, match="does not describe a model"):
        load_encoder(folder)
    (folder / "config.json").write_text('{"schema_ver')
    with pytest.raises(ValueError, match="not valid JSON"):
        load_encoder(folder)


def test_a_partitioned_model_is_not_saved(tmp_path):
    encoder = EEGEncoder(CONFIG)
    encoder.projection.weight.data = torch.empty(0)  # what ZeRO-3 leaves on each rank
    with pytest.raises(ValueError, match=r"partitioned over ranks \(projection.weight"):
        save_encoder(encoder, tmp_path / "encoder")
    assert not (tmp_path / "encoder" / "config.json").exists()
