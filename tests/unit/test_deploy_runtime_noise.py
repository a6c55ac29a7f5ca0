"""The runtime's noise is torch's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ddscale.deploy.runtime.noise import Noise, picture_seed, starting_noise
from ddscale.diffusion.generate import seed_of

PINNED = [-0.169626, -0.0328886, 0.1093924, -0.0723165]


@pytest.mark.parametrize("seed", [0, 1, 7, 2**31, 2**63 + 11, -3, 2**64 + 5])
def test_a_picture_has_the_seed_that_generate_gives_it(seed):
    for window in (0, 1, 999, 2**30):
        for sample in (0, 1, 4):
            assert picture_seed(seed, window, sample) == seed_of(seed, window, sample)


@pytest.mark.parametrize("shape", [(4, 8, 8), (4, 64, 64), (4, 4, 4), (3, 5, 7), (1, 1, 17)])
def test_numbers_are_those_of_torch_draw_after_draw(shape):
    seeds = [0, 5, 2**32 - 1]
    noise = Noise(seeds)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    for _ in range(3):
        expected = torch.stack([torch.randn(shape, generator=generator) for generator in generators]).numpy()
        drawn = noise.draw(shape)
        assert drawn.dtype == np.float32
        np.testing.assert_allclose(drawn, expected, rtol=0, atol=2e-6)


def test_noise_belongs_to_its_picture_and_not_to_the_batch():
    together = starting_noise(3, range(4), 2, (4, 8, 8))
    alone = starting_noise(3, [2], 2, (4, 8, 8))
    np.testing.assert_array_equal(together[4:6], alone)
    assert len({row.tobytes() for row in together}) == 8


def test_numbers_are_normal():
    drawn = starting_noise(0, range(64), 1, (4, 32, 32))
    assert abs(drawn.mean()) < 0.01
    assert abs(drawn.std() - 1) < 0.01


def test_the_stream_is_pinned():
    # Pictures that were drawn once must be drawn again by every later version.
    np.testing.assert_allclose(starting_noise(0, [0], 1, (4, 8, 8)).ravel()[:4], PINNED, rtol=0, atol=1e-6)


def test_impossible_numbers_are_refused():
    with pytest.raises(ValueError, match="count from 0"):
        picture_seed(0, -1, 0)
    with pytest.raises(ValueError, match="16 or more"):
        Noise([0]).draw((1, 3, 5))
