"""The mask is a pure function of the window's seed: same bits everywhere, and uniform."""

from __future__ import annotations

import pytest
import torch

from ddscale.models.masking import random_mask, splitmix64

# Reference outputs of splitmix64's mixing function for 0x9E3779B97F4A7C15 * (1, 2, 3): the published generator
# seeded with 0 gives these as its first three numbers.
PUBLISHED = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def python_splitmix64(x: int) -> int:
    """The same function on Python's unbounded integers."""
    x &= 2**64 - 1
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
    return x ^ (x >> 31)


def signed(x: int) -> int:
    return x - 2**64 if x >= 2**63 else x


def test_splitmix64_is_the_published_function():
    states = torch.tensor([signed(0x9E3779B97F4A7C15 * k % 2**64) for k in (1, 2, 3)])
    assert splitmix64(states).tolist() == [signed(value) for value in PUBLISHED]


def test_splitmix64_agrees_with_unbounded_integers():
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-(2**63), 2**63 - 1, (1000,), generator=generator)
    x[:4] = torch.tensor([0, -1, 2**63 - 1, -(2**63)])
    assert splitmix64(x).tolist() == [signed(python_splitmix64(value)) for value in x.tolist()]


def test_masks_never_change():
    # Golden values: a run resumed years later, on another device, must hide the same tokens.
    visible, masked = random_mask(torch.tensor([0, 1, 2**62 + 12345]), n_tokens=16, n_visible=4)
    golden = [[12, 13, 14, 15], [5, 10, 11, 15], [1, 3, 10, 12]]
    assert visible.tolist() == golden
    assert masked.tolist() == [sorted(set(range(16)) - set(row)) for row in golden]


def test_masks_are_the_smallest_keys_of_the_published_generator():
    for seed in (0, 5, 2**63 - 1):
        start = python_splitmix64(seed)
        keys = [signed(python_splitmix64(start + 0x9E3779B97F4A7C15 * (token + 1))) for token in range(64)]
        smallest = sorted(range(64), key=lambda token: keys[token])[:16]
        assert random_mask(torch.tensor([seed]), 64, 16)[0].tolist() == [sorted(smallest)]


def test_a_windows_mask_does_not_depend_on_its_batch():
    seeds = torch.arange(50, dtype=torch.int64) * 7919
    together, _ = random_mask(seeds, 128, 32)
    backwards, _ = random_mask(seeds.flip(0), 128, 32)
    alone = torch.cat([random_mask(seed[None], 128, 32)[0] for seed in seeds])
    assert torch.equal(together, alone)
    assert torch.equal(together, backwards.flip(0))


def test_visible_and_masked_are_a_partition_in_order():
    visible, masked = random_mask(torch.arange(20), 128, 32)
    assert visible.shape == (20, 32)
    assert masked.shape == (20, 96)
    assert torch.equal(torch.cat([visible, masked], 1).sort(1).values, torch.arange(128).expand(20, -1))
    assert bool((visible.diff(dim=1) > 0).all())
    assert bool((masked.diff(dim=1) > 0).all())


def test_every_token_and_every_pair_is_hidden_equally_often():
    n_windows, n_tokens, n_visible = 20_000, 16, 4
    visible, _ = random_mask(torch.arange(n_windows), n_tokens, n_visible)
    seen = torch.zeros(n_windows, n_tokens).scatter_(1, visible, 1.0)
    share = seen.mean(0)
    assert share.sub(n_visible / n_tokens).abs().max() < 0.015  # 5 standard errors
    pairs = seen.T @ seen / n_windows
    expected = n_visible * (n_visible - 1) / (n_tokens * (n_tokens - 1))
    off_diagonal = pairs[~torch.eye(n_tokens, dtype=torch.bool)]
    assert off_diagonal.sub(expected).abs().max() < 0.0085
    # Neighbouring seeds, as neighbouring positions may have, share no more tokens than chance.
    overlap = (seen[:-1] * seen[1:]).sum(1).mean()
    assert abs(overlap - n_visible**2 / n_tokens) < 0.035


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="torch.int64"):
        random_mask(torch.tensor([1.0]), 16, 4)
    with pytest.raises(ValueError, match="17 of 16"):
        random_mask(torch.tensor([1]), 16, 17)
