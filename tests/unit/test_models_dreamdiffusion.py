"""The original's checkpoints: the same numbers as the original computes, and nothing in the file is executed.

The original's forward pass is written out here from its description: channels first, a convolution for patches,
attention by softmax, tokens shuffled by a random order and unshuffled again, a mask over all tokens' errors.
"""

from __future__ import annotations

import os
import pickle
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ddscale.models import MAEConfig, MaskedAutoencoder, load_dreamdiffusion, load_encoder, save_encoder
from ddscale.models.masking import random_mask

CHANNELS, SAMPLES, PATCH = 12, 64, 4
WIDTH, DEPTH, HEADS, HIDDEN = 32, 3, 4, 25  # MLP ratio 0.8, rounded down
DECODER_WIDTH, DECODER_DEPTH, DECODER_HEADS, DECODER_HIDDEN = 24, 2, 2, 19
TOKENS = SAMPLES // PATCH


class Config_MBM_EEG:
    """As the original's: numbers, paths and whatever else its author left in it."""

    def __init__(self) -> None:
        self.num_heads, self.decoder_num_heads, self.mask_ratio = HEADS, DECODER_HEADS, 0.75
        self.root_path, self.focus_range, self.include_hcp = "../", None, True
        self.history = [1, 2]


# --- the original ----------------------------------------------------------------------------------------------


def positions(tokens: int, width: int) -> Tensor:
    table = np.zeros((1, tokens + 1, width))
    for p in range(tokens):
        for k in range(width // 2):
            angle = p / 10000 ** (k / (width / 2))
            table[0, p + 1, k], table[0, p + 1, width // 2 + k] = np.sin(angle), np.cos(angle)
    return torch.from_numpy(table).float()


def block_weights(prefix: str, depth: int, width: int, hidden: int) -> dict[str, Tensor]:
    shapes = {
        "norm1": (width,), "attn.qkv": (3 * width, width), "attn.proj": (width, width),
        "norm2": (width,), "mlp.fc1": (hidden, width), "mlp.fc2": (width, hidden),
    }  # fmt: skip
    state = {}
    for i in range(depth):
        for name, shape in shapes.items():
            state[f"{prefix}.{i}.{name}.weight"] = torch.randn(shape) / shape[-1] ** 0.5
            state[f"{prefix}.{i}.{name}.bias"] = torch.randn(shape[0]) * 0.1
    return state


def pretraining_state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    state = {
        "cls_token": torch.randn(1, 1, WIDTH),
        "pos_embed": positions(TOKENS, WIDTH),
        "patch_embed.proj.weight": torch.randn(WIDTH, CHANNELS, PATCH) * 0.1,
        "patch_embed.proj.bias": torch.randn(WIDTH) * 0.1,
        **block_weights("blocks", DEPTH, WIDTH, HIDDEN),
        "norm.weight": torch.rand(WIDTH) + 0.5,
        "norm.bias": torch.randn(WIDTH) * 0.1,
        "decoder_embed.weight": torch.randn(DECODER_WIDTH, WIDTH) * 0.2,
        "decoder_embed.bias": torch.randn(DECODER_WIDTH) * 0.1,
        "mask_token": torch.randn(1, 1, DECODER_WIDTH),
        "decoder_pos_embed": positions(TOKENS, DECODER_WIDTH),
        **block_weights("decoder_blocks", DECODER_DEPTH, DECODER_WIDTH, DECODER_HIDDEN),
        "decoder_norm.weight": torch.rand(DECODER_WIDTH) + 0.5,
        "decoder_norm.bias": torch.randn(DECODER_WIDTH) * 0.1,
        "decoder_pred.weight": torch.randn(CHANNELS * PATCH, DECODER_WIDTH) * 0.2,
        "decoder_pred.bias": torch.randn(CHANNELS * PATCH) * 0.1,
    }
    return state


def linear(s: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ s[f"{name}.weight"].T + s[f"{name}.bias"]


def norm(s: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return scaled * s[f"{name}.weight"] + s[f"{name}.bias"]


def block(s: dict[str, Tensor], name: str, x: Tensor, heads: int) -> Tensor:
    B, N, D = x.shape
    parts = linear(s, f"{name}.attn.qkv", norm(s, f"{name}.norm1", x)).reshape(B, N, 3, heads, D // heads)
    q, k, v = parts.permute(2, 0, 3, 1, 4)
    weights = (q @ k.transpose(-2, -1) * (D // heads) ** -0.5).softmax(-1)
    x = x + linear(s, f"{name}.attn.proj", (weights @ v).transpose(1, 2).reshape(B, N, D))
    hidden = linear(s, f"{name}.mlp.fc1", norm(s, f"{name}.norm2", x))
    hidden = 0.5 * hidden * (1 + torch.erf(hidden / 2**0.5))
    return x + linear(s, f"{name}.mlp.fc2", hidden)


def embedded(s: dict[str, Tensor], eeg_BCT: Tensor) -> Tensor:
    x = F.conv1d(eeg_BCT, s["patch_embed.proj.weight"], s["patch_embed.proj.bias"], stride=PATCH)
    return x.transpose(1, 2) + s["pos_embed"][:, 1:]


def original_encoder(s: dict[str, Tensor], eeg_BCT: Tensor) -> Tensor:
    x = embedded(s, eeg_BCT)
    for i in range(DEPTH):
        x = block(s, f"blocks.{i}", x, HEADS)
    return norm(s, "norm", x)


def original_loss(s: dict[str, Tensor], eeg_BCT: Tensor, keep: int, shuffle: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and prediction; shuffle (B, N): the order in which tokens are drawn, the first `keep` stay visible."""
    x = embedded(s, eeg_BCT)
    B, N, D = x.shape
    restore = shuffle.argsort(1)
    x = torch.gather(x, 1, shuffle[:, :keep, None].expand(-1, -1, D))
    mask = torch.ones(B, N)
    mask[:, :keep] = 0
    mask = torch.gather(mask, 1, restore)
    x = torch.cat([(s["cls_token"] + s["pos_embed"][:, :1]).expand(B, -1, -1), x], 1)
    for i in range(DEPTH):
        x = block(s, f"blocks.{i}", x, HEADS)
    x = linear(s, "decoder_embed", norm(s, "norm", x))
    hidden = torch.cat([x[:, 1:], s["mask_token"].expand(B, N - keep, -1)], 1)
    hidden = torch.gather(hidden, 1, restore[:, :, None].expand(-1, -1, x.shape[2]))
    x = torch.cat([x[:, :1], hidden], 1) + s["decoder_pos_embed"]
    for i in range(DECODER_DEPTH):
        x = block(s, f"decoder_blocks.{i}", x, DECODER_HEADS)
    prediction = linear(s, "decoder_pred", norm(s, "decoder_norm", x))[:, 1:]
    target = eeg_BCT.transpose(1, 2).reshape(B, N, -1)
    error = (prediction - target).square().mean(-1)
    return (error * mask).sum() / mask.sum(), prediction


def checkpoint(path: Path, content: Any, legacy: bool = False) -> Path:
    """torch.save as the original's code would: the configuration's class lives in a module we do not have."""
    module = types.ModuleType("config")
    module.Config_MBM_EEG = Config_MBM_EEG  # type: ignore[attr-defined]
    home, sys.modules["config"] = Config_MBM_EEG.__module__, module
    Config_MBM_EEG.__module__ = "config"
    try:
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    finally:
        Config_MBM_EEG.__module__ = home
        del sys.modules["config"]
    return path


def pretraining_content() -> dict[str, Any]:
    state = pretraining_state()
    optimizer = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-3}]}
    return {"model": state, "optimizer": optimizer, "epoch": 7, "scaler": {}, "config": Config_MBM_EEG()}


# --- the same numbers ------------------------------------------------------------------------------------------


def test_a_pretraining_checkpoint_computes_what_the_original_does(tmp_path):
    state = pretraining_state()
    loaded = load_dreamdiffusion(checkpoint(tmp_path / "checkpoint.pth", pretraining_content()))
    eeg_BCT, seeds = torch.randn(5, CHANNELS, SAMPLES), torch.arange(5)
    x_BTC = eeg_BCT.transpose(1, 2)

    config = loaded.autoencoder.config
    assert (config.heads, config.decoder_heads, config.n_visible) == (HEADS, DECODER_HEADS, 4)
    visible, masked = random_mask(seeds, TOKENS, 4)
    # The order among visible and among masked tokens is not ours, and must not matter.
    shuffle = torch.cat([visible.flip(1), masked.roll(3, 1)], 1)
    loss, prediction_BNP = original_loss(state, eeg_BCT, 4, shuffle)
    output = loaded.autoencoder(x_BTC, seeds)
    torch.testing.assert_close(output.sum_squared_error / output.masked_values, loss, rtol=1e-5, atol=0)
    reconstruction, masked_BN = loaded.autoencoder.reconstruct(x_BTC, seeds)
    ours = reconstruction.reshape(5, TOKENS, -1)[masked_BN]
    torch.testing.assert_close(ours, prediction_BNP[masked_BN], rtol=1e-5, atol=1e-5)

    tokens = loaded.encoder(x_BTC).tokens
    torch.testing.assert_close(tokens, original_encoder(state, eeg_BCT), rtol=1e-5, atol=1e-5)


def test_gradients_are_the_originals(tmp_path):
    state = {name: value.requires_grad_() for name, value in pretraining_state().items()}
    loaded = load_dreamdiffusion(checkpoint(tmp_path / "checkpoint.pth", pretraining_content()))
    eeg_BCT, seeds = torch.randn(3, CHANNELS, SAMPLES), torch.arange(3)
    loss, _ = original_loss(state, eeg_BCT, 4, torch.cat(random_mask(seeds, TOKENS, 4), 1))
    loss.backward()
    model = loaded.autoencoder
    output = model(eeg_BCT.transpose(1, 2), seeds)
    (output.sum_squared_error / output.masked_values).backward()
    pairs = [
        (model.encoder.transformer.blocks[0].attn.qkv.weight, state["blocks.0.attn.qkv.weight"]),
        (model.encoder.class_token.token, state["cls_token"]),
        (model.decoder.mask_token.token, state["mask_token"]),
        (model.decoder.transformer.blocks[1].mlp.fc2.bias, state["decoder_blocks.1.mlp.fc2.bias"]),
        (model.decoder.predict.weight, state["decoder_pred.weight"]),
    ]
    for ours, theirs in pairs:
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)
    convolution = state["patch_embed.proj.weight"].grad.permute(0, 2, 1).flatten(1)
    torch.testing.assert_close(model.encoder.projection.weight.grad, convolution, rtol=1e-4, atol=1e-6)


def test_a_fine_tuned_checkpoint_gives_its_encoder_and_conditioning(tmp_path):
    state = {k: v for k, v in pretraining_state().items() if "decoder" not in k}
    state["mask_token"] = torch.zeros(1, 1, WIDTH)  # the original's encoder has one of its own width
    content = {
        "model_state_dict": {
            **{f"cond_stage_model.mae.{name}": value.half() for name, value in state.items()},
            "cond_stage_model.dim_mapper.weight": torch.randn(8, WIDTH),
            "cond_stage_model.channel_mapper.0.bias": torch.randn(5),
            "model.diffusion_model.out.0.weight": torch.randn(4),
        },
        "config": Config_MBM_EEG(),
        "state": torch.random.get_rng_state(),
    }
    loaded = load_dreamdiffusion(checkpoint(tmp_path / "checkpoint.pth", content))
    assert loaded.autoencoder is None
    assert sorted(loaded.conditioning) == ["channel_mapper.0.bias", "dim_mapper.weight"]
    eeg_BCT = torch.randn(2, CHANNELS, SAMPLES)
    halved = {name: value.half().float() for name, value in state.items()}
    halved["pos_embed"] = state["pos_embed"]
    expected = original_encoder(halved, eeg_BCT)
    torch.testing.assert_close(loaded.encoder(eeg_BCT.transpose(1, 2)).tokens, expected, rtol=1e-5, atol=1e-5)


def test_it_goes_into_an_encoder_folder_with_its_origin(tmp_path):
    loaded = load_dreamdiffusion(checkpoint(tmp_path / "original.pth", pretraining_content()))
    folder = save_encoder(loaded.encoder, tmp_path / "encoder", loaded.source)
    x = torch.randn(2, SAMPLES, CHANNELS)
    assert torch.equal(load_encoder(folder)(x).tokens, loaded.encoder(x).tokens)
    assert loaded.source["layout"] == "pretraining"
    assert loaded.source["config"]["root_path"] == "../"
    assert len(loaded.source["sha256"]) == 64


def test_the_released_sizes_load_without_a_configuration(tmp_path):
    config = MAEConfig(preset="dreamdiffusion", depth=1, decoder_depth=1)
    state = {
        "cls_token": torch.zeros(1, 1, 1024),
        "pos_embed": positions(128, 1024),
        "patch_embed.proj.weight": torch.zeros(1024, 128, 4),
        "patch_embed.proj.bias": torch.zeros(1024),
        **block_weights("blocks", 1, 1024, 1024),
        "norm.weight": torch.ones(1024),
        "norm.bias": torch.zeros(1024),
        "decoder_embed.weight": torch.zeros(512, 1024),
        "decoder_embed.bias": torch.zeros(512),
        "mask_token": torch.zeros(1, 1, 512),
        "decoder_pos_embed": positions(128, 512),
        **block_weights("decoder_blocks", 1, 512, 512),
        "decoder_norm.weight": torch.ones(512),
        "decoder_norm.bias": torch.zeros(512),
        "decoder_pred.weight": torch.zeros(512, 512),
        "decoder_pred.bias": torch.zeros(512),
    }
    loaded = load_dreamdiffusion(checkpoint(tmp_path / "c.pth", {"model": state}))
    assert loaded.autoencoder.config == config.model_copy(update={"preset": None})


# --- nothing is executed ---------------------------------------------------------------------------------------


class Malicious:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("place", ["config", "optimizer", "model"])
def test_code_in_a_checkpoint_does_not_run(tmp_path, legacy, place):
    witness = tmp_path / "executed"
    attacks = [
        Malicious(os.system, f"touch {witness}"),
        Malicious(exec, f"open({str(witness)!r}, 'w').close()"),
        Malicious(os.mkdir, str(witness)),
        Malicious(getattr, "text", "upper"),
    ]
    content = pretraining_content()
    if place == "model":
        content["model"] = dict(
            content["model"], **{f"extra.{i}": attack for i, attack in enumerate(attacks)}
        )
    elif place == "config":
        content["config"].attacks = attacks
    else:
        content["optimizer"] = attacks
    path = checkpoint(tmp_path / "checkpoint.pth", content, legacy)
    loaded = load_dreamdiffusion(path)
    assert not witness.exists()
    assert loaded.autoencoder is not None
    # They are dangerous indeed: read as they mean to be read, they run.
    torch.load(checkpoint(tmp_path / "attacks.pth", attacks[:2], legacy), weights_only=False)
    assert witness.exists()


def test_state_set_on_what_is_allowed_does_not_reach_torch(tmp_path):
    """A pickle may BUILD attributes onto anything it names, functions of torch included."""

    before = dict(vars(torch._utils._rebuild_tensor_v2))
    raw = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x06\x00\x00\x00markedK\x01sb0}."
    assert pickle.loads(raw) == {}
    assert torch._utils._rebuild_tensor_v2.__dict__.pop("marked") == 1  # plain pickle does reach it
    path = checkpoint(tmp_path / "c.pth", {"epoch": 1})

    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, raw if name.endswith("/data.pkl") else data)
    with pytest.raises(ValueError, match="has the keys none"):
        load_dreamdiffusion(path)
    assert vars(torch._utils._rebuild_tensor_v2) == before


# --- files that are something else -----------------------------------------------------------------------------


def test_other_files_are_refused_with_a_reason(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        load_dreamdiffusion(tmp_path / "missing.pth")
    (tmp_path / "page.html").write_text("<html>")
    with pytest.raises(ValueError, match="neither a zip archive nor a pickle"):
        load_dreamdiffusion(tmp_path / "page.html")
    with pytest.raises(ValueError, match="has the keys epoch, state_dict: .*`model_state_dict`"):
        load_dreamdiffusion(checkpoint(tmp_path / "a.pth", {"state_dict": {}, "epoch": 1}))
    with pytest.raises(ValueError, match="holds a list"):
        load_dreamdiffusion(checkpoint(tmp_path / "b.pth", [1, 2]))
    with pytest.raises(ValueError, match="no weight patch_embed.proj.weight"):
        load_dreamdiffusion(checkpoint(tmp_path / "c.pth", {"model": {"fc.weight": torch.zeros(2)}}))
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "d.pth"))
    with pytest.raises(ValueError, match="TorchScript program"):
        load_dreamdiffusion(tmp_path / "d.pth")


def test_damaged_and_incomplete_checkpoints_are_refused(tmp_path):
    path = checkpoint(tmp_path / "whole.pth", pretraining_content())
    (tmp_path / "cut.pth").write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match="damaged archive"):
        load_dreamdiffusion(tmp_path / "cut.pth")
    content = pretraining_content()
    del content["model"]["blocks.1.attn.proj.bias"]
    with pytest.raises(ValueError, match="1 weights are missing.*transformer.blocks.1.attn.proj.bias"):
        load_dreamdiffusion(checkpoint(tmp_path / "less.pth", content))
    content = pretraining_content()
    content["model"]["pos_embed"] = content["model"]["pos_embed"] + 0.1
    with pytest.raises(ValueError, match="not the original's sine-cosine table"):
        load_dreamdiffusion(checkpoint(tmp_path / "learned.pth", content))


def test_a_freshly_built_model_has_the_originals_positions():
    model = MaskedAutoencoder(MAEConfig(preset="demo"))
    table = model.encoder.positions.table
    torch.testing.assert_close(table, positions(128, table.shape[1])[0], rtol=0, atol=1e-6)
