"""Noise prediction, its weights, and when the two losses count."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, PNDMScheduler

from ddscale.diffusion.draws import Purpose, normal
from ddscale.diffusion.objective import (
    NoiseLevels,
    ObjectiveSettings,
    add_noise,
    noise_errors,
    sample_latents,
    weights_at,
    without_condition,
)
from ddscale.diffusion.reference_sizes import SD15_SCHEDULER

POSITIONS = torch.arange(40, 56)


def _latents():
    return torch.randn(len(POSITIONS), 4, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_noised_latents_and_target_are_those_of_diffusers(prediction):
    scheduler = DDPMScheduler.from_config({**SD15_SCHEDULER, "prediction_type": prediction})
    latents, levels = _latents(), NoiseLevels.of(scheduler)
    noised = add_noise(levels, latents, POSITIONS, seed=1)
    noise = normal(1, POSITIONS, Purpose.NOISE, (4, 8, 8))
    expected = scheduler.add_noise(latents, noise, noised.timesteps)
    target = noise if prediction == "epsilon" else scheduler.get_velocity(latents, noise, noised.timesteps)
    torch.testing.assert_close(noised.latents, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(noised.target, target, rtol=0, atol=1e-6)
    assert noised.timesteps.min() >= 0
    assert noised.timesteps.max() < 1000


@pytest.mark.parametrize("kind", [PNDMScheduler, DPMSolverMultistepScheduler])
def test_any_scheduler_gives_the_levels(kind):
    ours = NoiseLevels.of(kind.from_config(SD15_SCHEDULER))
    assert len(ours.signal_power) == 1000
    assert torch.equal(
        ours.signal_power, NoiseLevels.of(DDPMScheduler.from_config(SD15_SCHEDULER)).signal_power
    )


def test_unknown_prediction_type_is_refused():
    scheduler = DDPMScheduler.from_config({**SD15_SCHEDULER, "prediction_type": "sample"})
    with pytest.raises(ValueError, match="sample"):
        NoiseLevels.of(scheduler)


def test_noise_and_timestep_stay_with_the_sample_when_the_batch_changes():
    levels, latents = NoiseLevels.of(DDPMScheduler.from_config(SD15_SCHEDULER)), _latents()
    whole = add_noise(levels, latents, POSITIONS, seed=1)
    for rank in range(2):
        part = add_noise(levels, latents[rank::2], POSITIONS[rank::2], seed=1)
        assert torch.equal(part.latents, whole.latents[rank::2])
        assert torch.equal(part.timesteps, whole.timesteps[rank::2])
    assert not torch.equal(whole.target, add_noise(levels, latents, POSITIONS, seed=2).target)


def test_every_timestep_is_drawn_as_often():
    levels = NoiseLevels.of(DDPMScheduler.from_config(SD15_SCHEDULER))
    drawn = add_noise(levels, torch.zeros(40_000, 1, 1, 1), torch.arange(40_000), seed=3).timesteps
    assert (drawn.min(), drawn.max()) == (0, 999)
    tenths = torch.bincount(drawn // 100)
    assert len(tenths) == 10
    assert (tenths - 4000).abs().max() < 5 * 4000**0.5


def test_sampled_latents_follow_mean_and_spread():
    mean, std = torch.full((2000, 1, 4, 4), 3.0), torch.full((2000, 1, 4, 4), 0.5)
    drawn = sample_latents(mean, std, torch.arange(2000), seed=0)
    assert abs(drawn.mean() - 3) < 0.02
    assert abs(drawn.std() - 0.5) < 0.02
    assert torch.equal(sample_latents(mean, 0 * std, torch.arange(2000), seed=0), mean)


def test_min_snr_weighs_both_predictions_as_the_same_error_of_the_clean_latents():
    latents = _latents().double()
    weighted = {}
    for prediction in ("epsilon", "v_prediction"):
        scheduler = DDPMScheduler.from_config({**SD15_SCHEDULER, "prediction_type": prediction})
        levels = NoiseLevels.of(scheduler)
        noised = add_noise(levels, latents, POSITIONS, seed=1)
        signal = levels.signal_power[noised.timesteps].sqrt().double()[:, None, None, None]
        spread = (1 - signal**2).sqrt()
        # A prediction that is wrong by 0.1 in the clean latents, said as epsilon or as v.
        wrong = 0.1 * torch.ones_like(latents)
        error = -signal / spread * wrong if prediction == "epsilon" else -wrong / spread
        weighted[prediction] = noise_errors(noised.target + error, noised, levels, min_snr_gamma=5.0)
        expected = (0.01 * noised.snr.clamp(max=5)).float()
        torch.testing.assert_close(weighted[prediction], expected, rtol=1e-3, atol=1e-8)
    torch.testing.assert_close(weighted["epsilon"], weighted["v_prediction"], rtol=1e-3, atol=1e-8)


def test_errors_are_per_sample_means_in_float32():
    levels = NoiseLevels.of(DDPMScheduler.from_config(SD15_SCHEDULER))
    noised = add_noise(levels, _latents().bfloat16(), POSITIONS, seed=1)
    prediction = torch.zeros_like(noised.target)
    errors = noise_errors(prediction, noised, levels)
    assert errors.dtype == torch.float32
    torch.testing.assert_close(errors, noised.target.float().square().flatten(1).mean(1))


def test_combined_counts_both_losses_throughout():
    settings = ObjectiveSettings(alignment_weight=0.5)
    assert {weights_at(settings, step, 10) for step in range(10)} == {(1.0, 0.5)}


def test_sequential_aligns_first_and_then_predicts_noise():
    settings = ObjectiveSettings(schedule="sequential", alignment_share=0.3)
    assert [weights_at(settings, step, 10) for step in range(10)] == [(0.0, 1.0)] * 3 + [(1.0, 0.0)] * 7


def test_without_alignment_nothing_but_noise_prediction_counts():
    settings = ObjectiveSettings(alignment="none", schedule="sequential")
    assert weights_at(settings, 0, 10) == (1.0, 0.0)


def test_the_asked_part_of_samples_trains_without_condition():
    positions = torch.arange(20_000)
    dropped = without_condition(ObjectiveSettings(condition_dropout=0.1), positions, seed=0)
    assert abs(dropped.double().mean() - 0.1) < 0.01
    assert torch.equal(dropped[5::3], without_condition(ObjectiveSettings(), positions[5::3], seed=0))
    assert not without_condition(ObjectiveSettings(condition_dropout=0.0), positions, seed=0).any()
