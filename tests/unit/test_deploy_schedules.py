"""Samplers as tables: whatever diffusers' schedulers do, the NumPy replay does too."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, LCMScheduler

from ddscale.deploy.runtime.sampler import Table, replay
from ddscale.deploy.schedules import disagreement, tabulate
from ddscale.diffusion.pipeline import scheduler_named
from ddscale.diffusion.toy import build_scheduler

NAMES = ("pndm", "ddim", "dpmsolver++", "unipc", "lcm")


def named(name, prediction_type="epsilon"):
    base = build_scheduler()
    return scheduler_named(name, type(base).from_config(base.config, prediction_type=prediction_type))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", NAMES)
def test_a_table_draws_what_the_scheduler_draws(name, prediction_type):
    scheduler = named(name, prediction_type)
    for steps in (1, 2, 4, 8, 20, 50):
        table = tabulate(scheduler, steps, name)
        assert table.prediction_type == prediction_type
        assert max(disagreement(table, scheduler, seed) for seed in range(3)) <= 1e-6, steps


def test_the_original_recipe_of_250_plms_steps_has_a_table():
    table = tabulate(named("pndm"), 250, "pndm")
    assert table.calls == 251
    assert disagreement(table, named("pndm"), seed=7) <= 1e-6


def test_a_sampler_that_scales_its_input_and_starts_louder_than_one():
    scheduler = EulerDiscreteScheduler.from_config(build_scheduler().config)
    table = tabulate(scheduler, 8)
    assert table.scheduler == "EulerDiscreteScheduler"
    # The first call sees noise of unit variance again: sigma times the input's scaling.
    assert abs(table.inputs_NK[0, 0] - 1) < 0.01
    assert disagreement(table, scheduler, seed=3) <= 1e-6


def test_the_check_sees_a_wrong_weight():
    scheduler = named("unipc")
    table = tabulate(scheduler, 8, "unipc")
    wrong = table.inputs_NK.copy()
    wrong[4, 2] *= 1 + 1e-4
    assert disagreement(dataclasses.replace(table, inputs_NK=wrong), scheduler) > 1e-6


def test_noise_on_the_way_is_drawn_in_the_scheduler_order():
    scheduler = named("lcm")
    table = tabulate(scheduler, 4, "lcm")
    assert table.noises == 3
    generator = torch.Generator().manual_seed(5)
    latents = starting = torch.randn(2, 4, 8, 8)
    scheduler.set_timesteps(4)
    for timestep in scheduler.timesteps:
        latents = scheduler.step(latents * 0.5, timestep, latents, generator=generator, return_dict=False)[0]
    generator = torch.Generator().manual_seed(5)
    replayed = replay(
        table,
        starting.numpy(),
        lambda x, t: x * np.float32(0.5),
        lambda: torch.randn(2, 4, 8, 8, generator=generator).numpy(),
    )
    np.testing.assert_allclose(replayed, latents.numpy(), rtol=0, atol=1e-5)


def test_noise_that_is_needed_and_not_given_is_an_error():
    with pytest.raises(ValueError, match="draws noise"):
        replay(tabulate(named("lcm"), 2, "lcm"), np.zeros((1, 4, 2, 2), np.float32), lambda x, t: x)


def test_the_scheduler_is_left_as_it_was():
    scheduler = named("dpmsolver++")
    scheduler.set_timesteps(7)
    before = scheduler.timesteps.clone()
    tabulate(scheduler, 20)
    assert torch.equal(scheduler.timesteps, before)
    assert scheduler.step_index is None


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (DDIMScheduler, {"clip_sample": True}),
        (DPMSolverMultistepScheduler, {"thresholding": True}),
        (LCMScheduler, {"clip_sample": True}),
    ],
)
def test_what_is_not_linear_is_refused(kind, settings):
    scheduler = kind.from_config(build_scheduler().config, **settings)
    with pytest.raises(ValueError, match=r"not linear.*set it to false"):
        tabulate(scheduler, 4)


def test_a_stochastic_sampler_is_followed_too():
    scheduler = DPMSolverMultistepScheduler.from_config(
        build_scheduler().config, algorithm_type="sde-dpmsolver++"
    )
    table = tabulate(scheduler, 4)
    assert table.noises == 4
    assert disagreement(table, scheduler, seed=1) <= 1e-6


def test_no_steps_is_an_error():
    with pytest.raises(ValueError, match="at least 1"):
        tabulate(named("ddim"), 0)


def test_a_table_survives_its_file(tmp_path):
    table = tabulate(named("lcm", "v_prediction"), 8, "lcm")
    again = Table.load(table.save(tmp_path / "lcm-8.npz"))
    assert (again.scheduler, again.steps, again.prediction_type) == ("lcm", 8, "v_prediction")
    for name in ("timesteps", "inputs_NK", "final_K"):
        np.testing.assert_array_equal(getattr(again, name), getattr(table, name))


def test_a_damaged_file_is_named(tmp_path):
    path = tabulate(named("ddim"), 4).save(tmp_path / "ddim-4.npz")
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"ddim-4\.npz is not a sampler's table.*export again"):
        Table.load(path)


def test_a_table_that_looks_ahead_is_refused():
    table = tabulate(named("ddim"), 4)
    with pytest.raises(ValueError, match="come later"):
        dataclasses.replace(table, inputs_NK=np.ones_like(table.inputs_NK))
    own = table.inputs_NK.copy()
    own[2, 1 + 2] = 0.5  # a call cannot have its own output either
    with pytest.raises(ValueError, match="come later"):
        dataclasses.replace(table, inputs_NK=own)
