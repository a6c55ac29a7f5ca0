"""EEG windows to the U-Net's condition."""

from __future__ import annotations

import pytest
import torch

from ddscale.diffusion.conditioning import EEGConditioner
from ddscale.models import EEGEncoder, EncoderConfig, MAEConfig

SIZES = {"n_channels": 8, "n_samples": 64, "patch": 4, "width": 24, "depth": 2, "heads": 2}


def _conditioner(**settings):
    torch.manual_seed(0)
    given = {"length": 7, "width": 12, "clip_width": 10, **settings}
    conditioner = EEGConditioner(encoder_sizes=SIZES, **given).eval()
    conditioner.null.states.data.normal_()
    return conditioner


@pytest.fixture
def windows():
    return torch.randn(5, 64, 8, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_the_condition_has_the_asked_shape(windows):
    condition = _conditioner(time_condition=True)(windows)
    assert condition.hidden_states.shape == (5, 7, 12)
    assert condition.time.shape == (5, 12)
    assert condition.clip.shape == (5, 10)
    bare = _conditioner(clip_width=None)(windows)
    assert bare.time is None
    assert bare.clip is None


@torch.no_grad()
def test_the_projector_mixes_tokens_then_widths(windows):
    """The original's Conv1d over tokens, twice, then Linear, written as matrix products."""
    conditioner = _conditioner()
    tokens = conditioner.encoder(windows).tokens
    first, second = conditioner.projector.tokens
    mixed = torch.einsum("mn,bne->bme", first.weight[..., 0], tokens) + first.bias[:, None]
    mixed = torch.einsum("lm,bme->ble", second.weight[..., 0], mixed) + second.bias[:, None]
    expected = mixed @ conditioner.projector.width.weight.T + conditioner.projector.width.bias
    torch.testing.assert_close(conditioner(windows).hidden_states, expected)


@torch.no_grad()
def test_dropped_samples_get_the_null_condition_and_keep_their_alignment(windows):
    conditioner = _conditioner(time_condition=True)
    dropped = torch.tensor([True, False, True, False, False])
    given, whole = conditioner(windows, dropped), conditioner(windows)
    null = conditioner.without_eeg(5)
    assert torch.equal(given.hidden_states[dropped], null.hidden_states[dropped])
    assert torch.equal(given.time[dropped], null.time[dropped])
    assert torch.equal(given.hidden_states[~dropped], whole.hidden_states[~dropped])
    assert torch.equal(given.clip, whole.clip)


def test_gradients_reach_the_encoder_only_from_samples_with_eeg(windows):
    conditioner = _conditioner()
    windows.requires_grad_()
    dropped = torch.tensor([True, False, True, False, False])
    conditioner(windows, dropped).hidden_states.square().sum().backward()
    reached = windows.grad.abs().amax(dim=(1, 2)) > 0
    assert torch.equal(reached, ~dropped)
    assert conditioner.null.states.grad.abs().max() > 0


@torch.no_grad()
def test_null_starts_from_the_empty_caption(windows):
    conditioner = _conditioner()
    empty = torch.randn(1, 7, 12)
    conditioner.start_null_from(empty)
    assert torch.equal(conditioner.without_eeg(3).hidden_states, empty.expand(3, -1, -1))
    with pytest.raises(ValueError, match="length and width"):
        conditioner.start_null_from(torch.zeros(1, 77, 768))


@torch.no_grad()
def test_saved_and_loaded_it_gives_the_same_bits(windows, tmp_path):
    conditioner = _conditioner(
        time_condition=True, sfreq=256.0, normalisation={"kind": "zscore", "clip": 15.0}
    )
    conditioner.save_pretrained(tmp_path)
    again = EEGConditioner.from_pretrained(tmp_path)
    for ours, theirs in zip(conditioner(windows), again(windows), strict=True):
        assert torch.equal(ours, theirs)
    assert again.config.sfreq == 256.0
    assert dict(again.config.normalisation) == {"kind": "zscore", "clip": 15.0}
    assert (tmp_path / "diffusion_pytorch_model.safetensors").is_file()


@torch.no_grad()
def test_a_pretrained_encoder_goes_in_unchanged(windows):
    encoder = EEGEncoder(EncoderConfig.model_validate(SIZES)).eval()
    conditioner = EEGConditioner.around(encoder, length=7, width=12).eval()
    assert torch.equal(conditioner.encoder(windows).tokens, encoder(windows).tokens)


def test_windows_of_another_size_are_refused_with_the_remedy(windows):
    with pytest.raises(ValueError, match="window_samples"):
        _conditioner()(windows[:, :32])


def test_parameters_are_the_originals_at_its_size():
    """DreamDiffusion's encoder and heads: 151.77 M + 64x128+64 + 77x64+77 + 1024x768+768 + 128+1 + 1024x768+768."""
    encoder = MAEConfig(preset="dreamdiffusion").encoder.model_dump(mode="json")
    with torch.device("meta"):
        conditioner = EEGConditioner(encoder_sizes=encoder)
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in conditioner.named_children()}
    assert sizes["projector"] == (128 * 64 + 64) + (64 * 77 + 77) + (1024 * 768 + 768)
    assert sizes["alignment"] == 129 + 1024 * 768 + 768
    assert abs(sizes["encoder"] / 1e6 - 151.77) < 0.01
    assert abs(sum(sizes[n] for n in ("encoder", "projector", "alignment")) / 1e6 - 153.4) < 0.05
