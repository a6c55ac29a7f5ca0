"""Random numbers that belong to a sample and not to its batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ddscale.diffusion.draws import Purpose, integers, normal, uniform


def test_a_samples_noise_does_not_depend_on_its_batch():
    together = normal(3, torch.arange(100, 108), Purpose.NOISE, (4, 5, 5))
    alone = torch.cat([normal(3, torch.tensor([p]), Purpose.NOISE, (4, 5, 5)) for p in range(100, 108)])
    strided = normal(3, torch.arange(101, 108, 2), Purpose.NOISE, (4, 5, 5))
    assert torch.equal(together, alone)
    assert torch.equal(together[1::2], strided)


def test_a_samples_uniform_number_does_not_depend_on_its_batch():
    positions = torch.arange(1000)
    together = uniform(3, positions, Purpose.TIMESTEP)
    assert torch.equal(together[500:510], uniform(3, positions[500:510], Purpose.TIMESTEP))
    assert torch.equal(together.flip(0), uniform(3, positions.flip(0), Purpose.TIMESTEP))


@pytest.mark.parametrize("other", [{"seed": 4}, {"position": 8}, {"purpose": Purpose.LATENT}])
def test_seed_position_and_purpose_each_change_the_numbers(other):
    given = {"seed": 3, "position": 7, "purpose": Purpose.NOISE}
    changed = {**given, **other}

    def both(seed, position, purpose):
        at = torch.tensor([position])
        return torch.cat([normal(seed, at, purpose, (8,))[0], uniform(seed, at, purpose).float()])

    assert (both(**given) != both(**changed)).all()


def test_noise_is_standard_normal_and_uncorrelated_between_neighbours():
    drawn = normal(0, torch.arange(2000), Purpose.NOISE, (64,)).double()
    assert abs(drawn.mean()) < 0.012
    assert abs(drawn.var() - 1) < 0.02
    assert abs((drawn[1:] * drawn[:-1]).mean()) < 0.012


def test_timesteps_are_evenly_spread():
    drawn = integers(0, torch.arange(100_000), Purpose.TIMESTEP, 1000).numpy()
    counts = np.bincount(drawn, minlength=1000)
    chi_squared = ((counts - 100) ** 2 / 100).sum()
    # 999 degrees of freedom: mean 999, standard deviation 45.
    assert len(counts) == 1000
    assert abs(chi_squared - 999) < 4.5 * 45


def test_any_integer_is_a_seed():
    position = torch.tensor([5])
    for seed in (-1, 2**63, 2**64 - 1):
        assert torch.isfinite(normal(seed, position, Purpose.NOISE, (4,))).all()
        assert 0 <= uniform(seed, position, Purpose.NOISE) < 1
    assert torch.equal(uniform(-1, position, Purpose.CROP), uniform(2**64 - 1, position, Purpose.CROP))
    nearby = [normal(2**64 - 1 - k, position, Purpose.NOISE, (4,)) for k in range(2)]
    assert (nearby[0] != nearby[1]).all()
