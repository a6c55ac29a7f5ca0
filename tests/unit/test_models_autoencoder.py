"""The masked autoencoder: what it may see, what it counts, and that its internals are free to change."""

from __future__ import annotations

import pytest
import torch

from ddscale.models import EEGEncoder, MAEConfig, MaskedAutoencoder
from ddscale.models.masking import random_mask

SMALL = MAEConfig(
    n_channels=6, n_samples=64, width=16, depth=2, heads=2, decoder_width=12, decoder_depth=2, decoder_heads=3
)


@pytest.fixture
def model() -> MaskedAutoencoder:
    torch.manual_seed(0)
    return MaskedAutoencoder(SMALL)


def windows(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 64, 6, generator=generator), torch.arange(n) + 100


def masked_samples(seeds: torch.Tensor) -> torch.Tensor:
    _, masked = random_mask(seeds, SMALL.n_tokens, SMALL.n_visible)
    tokens = torch.zeros(len(seeds), SMALL.n_tokens, dtype=torch.bool).scatter_(1, masked, True)
    return tokens.repeat_interleave(SMALL.patch, dim=1)


def test_the_error_is_that_of_the_reconstruction_on_masked_samples(model):
    x, seeds = windows(5)
    output = model(x, seeds)
    prediction, masked_BN = model.reconstruct(x, seeds)
    hidden = masked_samples(seeds)
    assert torch.equal(masked_BN.repeat_interleave(SMALL.patch, dim=1), hidden)
    assert torch.equal(prediction[~hidden], x[~hidden])
    error = (prediction - x)[hidden].square()
    torch.testing.assert_close(output.sum_squared_error, error.sum())
    assert output.masked_values == error.numel() == 5 * SMALL.n_masked * 4 * 6
    torch.testing.assert_close(output.per_sample_mse, error.view(5, -1).mean(1))
    assert output.sum_squared_error.dtype == output.per_sample_mse.dtype == torch.float32


def test_masked_samples_cannot_reach_the_prediction(model):
    x, seeds = windows(4)
    hidden = masked_samples(seeds)[:, :, None]
    other = torch.where(hidden, 1000.0, x)
    before, _ = model.reconstruct(x, seeds)
    after, _ = model.reconstruct(other, seeds)
    assert torch.equal(before, after)


def test_visible_samples_reach_every_prediction(model):
    x, seeds = windows(1)
    x.requires_grad_()
    visible, masked = random_mask(seeds, SMALL.n_tokens, SMALL.n_visible)
    prediction = model.decoder(model.encoder(x, visible), visible, masked)
    for token in range(masked.shape[1]):
        (gradient,) = torch.autograd.grad(prediction[0, token].sum(), x, retain_graph=True)
        assert bool((gradient[0].abs().sum(1) > 0)[~masked_samples(seeds)[0]].all())


def test_invalid_windows_add_nothing(model):
    x, seeds = windows(6)
    valid = torch.tensor([True, False, True, True, False, True])
    everything = model(x, seeds, valid)
    kept = model(x[valid], seeds[valid])
    torch.testing.assert_close(everything.sum_squared_error, kept.sum_squared_error)
    assert everything.masked_values == kept.masked_values
    everything.sum_squared_error.backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    kept.sum_squared_error.backward()
    for gradient, parameter in zip(gradients, model.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-4)
    nothing = model(x, seeds, torch.zeros(6, dtype=torch.bool))
    assert nothing.sum_squared_error == nothing.masked_values == 0


def test_sums_add_up_over_micro_batches(model):
    x, seeds = windows(6)
    whole = model(x, seeds)
    parts = [model(x[i : i + 2], seeds[i : i + 2]) for i in (0, 2, 4)]
    torch.testing.assert_close(sum(p.sum_squared_error for p in parts), whole.sum_squared_error)
    assert sum(p.masked_values for p in parts) == whole.masked_values


def test_activation_checkpointing_changes_no_bit(model):
    x, seeds = windows(3)
    checkpointed = MaskedAutoencoder(SMALL.model_copy(update={"activation_checkpointing": True}))
    checkpointed.load_state_dict(model.state_dict())
    for each in (model, checkpointed):
        each(x, seeds).sum_squared_error.backward()
    for a, b in zip(model.parameters(), checkpointed.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


def test_every_weight_is_trained(model):
    model(*windows(2)).sum_squared_error.backward()
    unused = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert unused == []


def test_half_precision_weights_give_float32_errors(model):
    x, seeds = windows(4)
    exact = model(x, seeds)
    output = model.to(torch.bfloat16)(x, seeds)
    assert output.sum_squared_error.dtype == torch.float32
    torch.testing.assert_close(output.per_sample_mse, exact.per_sample_mse, rtol=0.02, atol=0)


def test_built_on_meta_and_filled_it_is_as_if_built_here(model):
    with torch.device("meta"):
        empty = MaskedAutoencoder(SMALL)
    filled = empty.to_empty(device="cpu")
    for part in filled.modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()
    filled.load_state_dict(model.state_dict())
    x, seeds = windows(2)
    assert torch.equal(filled(x, seeds).per_sample_mse, model(x, seeds).per_sample_mse)


def test_positions_are_not_in_checkpoints(model):
    assert not [name for name in model.state_dict() if "table" in name]


def test_the_encoder_taken_out_gives_tokens_and_their_mean(model):
    x, _ = windows(3)
    encoder = EEGEncoder.from_autoencoder(SMALL, model.state_dict())
    tokens, pooled = encoder(x)
    assert tokens.shape == (3, 16, 16)
    torch.testing.assert_close(pooled, tokens.mean(1))
    everything = torch.arange(SMALL.n_tokens).expand(3, -1)
    torch.testing.assert_close(tokens, model.encoder(x, everything)[:, 1:])


def test_windows_of_another_shape_are_refused(model):
    x, seeds = windows(2)
    with pytest.raises(
        ValueError, match=r"shape \(2, 6, 64\).*64 samples, 6 channels\), time before channels"
    ):
        model(x.transpose(1, 2), seeds)
    with pytest.raises(ValueError, match="time before channels"):
        EEGEncoder(SMALL.encoder)(x[0])


def test_compiled_it_gives_the_same(model):
    x, seeds = windows(2)
    expected = model(x, seeds).per_sample_mse
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, seeds).per_sample_mse, expected)


def test_it_learns_a_predictable_signal():
    """Sines of one frequency and any phase: hidden samples follow from visible ones, and are learned."""
    torch.manual_seed(0)
    config = SMALL.model_copy(update={"width": 64, "decoder_width": 48, "decoder_heads": 2})
    model = MaskedAutoencoder(config)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    time = torch.arange(64) / 64 * 2 * torch.pi * 3
    for step in range(450):
        phase = torch.rand(16, 1, 6) * 2 * torch.pi
        output = model(torch.sin(time[None, :, None] + phase) * 1.4, torch.arange(16) + 16 * step)
        loss = output.sum_squared_error / output.masked_values
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    assert loss < 0.4  # 0.98 for the constant prediction
