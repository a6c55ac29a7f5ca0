"""Baselines against NumPy, one channel and one window at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ddscale.models.baselines import channel_mean, cubic_spline, linear_interpolation


def windows_and_masks() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(6, 24, 3, generator=generator) + 5.0
    masked = torch.rand(6, 8, generator=generator) < 0.6
    masked[0] = torch.tensor([True, True, False, True, True, False, True, True])  # both edges masked
    masked[1] = torch.tensor([False] + [True] * 7)  # one visible token
    masked[2] = False  # nothing masked
    masked[3, 4] = False
    return x, masked


def test_linear_interpolation_is_numpys():
    x, masked = windows_and_masks()
    predicted = linear_interpolation(x, masked)
    time = np.arange(24)
    for b in range(6):
        visible = ~np.repeat(masked[b].numpy(), 3)
        for c in range(3):
            expected = np.interp(time, time[visible], x[b, visible, c].numpy())
            np.testing.assert_allclose(predicted[b, :, c].numpy(), expected, rtol=1e-5)


def test_cubic_spline_is_exact_on_a_cubic_and_continues_the_neighbour_at_the_edges():
    time = torch.arange(24.0)
    x = torch.stack([0.01 * (time - 9) ** 3 - 0.2 * time, 5 - 0.1 * time**2, time], dim=-1)[None]
    masked = torch.tensor([[True, True, False, True, False, False, True, True]])
    predicted = cubic_spline(x, masked)
    torch.testing.assert_close(predicted[:, 6:18], x[:, 6:18])
    torch.testing.assert_close(predicted[:, :6], x[:, 6:7].expand(-1, 6, -1))
    torch.testing.assert_close(predicted[:, 18:], x[:, 17:18].expand(-1, 6, -1))
    # A straight line is no cubic: this tells the two baselines apart.
    assert (linear_interpolation(x, masked) - x)[:, 6:18, 0].abs().max() > 0.1


def test_cubic_spline_leaves_visible_samples_and_survives_windows_with_hardly_any():
    x, masked = windows_and_masks()
    predicted = cubic_spline(x, masked)
    visible = ~masked.repeat_interleave(3, dim=1)
    assert torch.equal(predicted[visible], x[visible])
    assert torch.equal(predicted[2], x[2])
    all_hidden = torch.ones(1, 8, dtype=torch.bool)
    assert torch.equal(cubic_spline(x[:1], all_hidden), torch.zeros(1, 24, 3))
    one = torch.ones(1, 24, dtype=torch.bool)
    one[0, 5] = False  # tokens of one sample, one of them visible
    assert torch.equal(cubic_spline(x[:1], one), x[:1, 5:6].expand(1, 24, 3))


def test_channel_mean_is_numpys():
    x, masked = windows_and_masks()
    predicted = channel_mean(x, masked)
    for b in range(6):
        visible = ~np.repeat(masked[b].numpy(), 3)
        expected = x[b].numpy().copy()
        expected[~visible] = x[b].numpy()[visible].mean(axis=0)
        np.testing.assert_allclose(predicted[b].numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("baseline", [channel_mean, linear_interpolation])
def test_masked_samples_are_never_used_and_visible_ones_kept(baseline):
    x, masked = windows_and_masks()
    hidden = masked.repeat_interleave(3, dim=1)[:, :, None].expand_as(x)
    poisoned = torch.where(hidden, torch.nan, x)
    predicted = baseline(poisoned, masked)
    assert bool(predicted.isfinite().all())
    assert torch.equal(predicted, baseline(x, masked))
    assert torch.equal(predicted[~hidden], x[~hidden])


@pytest.mark.parametrize("baseline", [channel_mean, linear_interpolation])
def test_nothing_visible_predicts_zero(baseline):
    predicted = baseline(torch.full((1, 8, 2), 7.0), torch.ones(1, 4, dtype=torch.bool))
    assert torch.equal(predicted, torch.zeros(1, 8, 2))


@pytest.mark.parametrize("baseline", [channel_mean, linear_interpolation])
def test_a_mask_of_other_windows_is_refused(baseline):
    with pytest.raises(ValueError, match="10 samples do not divide into 4 tokens"):
        baseline(torch.zeros(1, 10, 2), torch.zeros(1, 4, dtype=torch.bool))
