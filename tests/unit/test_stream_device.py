"""From packed integers to the model's input: against the arithmetic written out plainly in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ddscale.stream.collation import HostBatch, pack
from ddscale.stream.device import first_channels, materialise, to_device
from ddscale.stream.hashing import below
from ddscale.stream.settings import Divide, ZScore

STEP = 0.1


def windows(channels, T=64, dtype=np.int16, seed=0):
    rng = np.random.default_rng(seed)
    scale = rng.uniform(1, 300, (len(channels), max(channels)))
    offset = rng.uniform(-20_000, 20_000, (len(channels), max(channels)))
    return [
        (rng.normal(size=(T, C)) * scale[i, :C] + offset[i, :C]).round().astype(dtype)
        for i, C in enumerate(channels)
    ]


def batch_of(signals, seeds=None) -> HostBatch:
    T = signals[0].shape[0]
    channels = np.array([signal.shape[1] for signal in signals])
    packing = pack(channels, T)
    flat = np.empty(packing.size, signals[0].dtype)
    for signal, offset in zip(signals, packing.offsets, strict=True):
        flat[offset : offset + signal.size] = signal.reshape(-1)
    B = len(signals)
    return HostBatch(
        flat=torch.from_numpy(flat),
        groups=packing.groups,
        rows=torch.from_numpy(packing.rows),
        window_samples=T,
        channels=torch.from_numpy(channels),
        positions=torch.arange(B),
        mask_seeds=torch.arange(B) + 77 if seeds is None else torch.tensor(seeds),
        datasets=torch.zeros(B, dtype=torch.int64),
        valid=torch.ones(B, dtype=torch.bool),
    )


def plainly(signal, n_channels, how, seed):
    C = signal.shape[1]
    if n_channels < C:
        start = int(below(np.array([seed]), np.array([C - n_channels + 1]), "channel crop")[0])
        signal = signal[:, start : start + n_channels]
    else:
        signal = signal[:, np.arange(n_channels) % C]
    x = signal.astype(np.float64) * STEP
    if how.kind == "divide":
        x = x / how.by_uv
    else:
        x = (x - x.mean(axis=0)) / np.maximum(x.std(axis=0), how.eps_uv)
    return x if how.clip is None else np.clip(x, -how.clip, how.clip)


CHANNELS = [
    [8] * 5,
    [128] * 3,
    [4, 20, 4, 128, 19, 256, 20, 129, 1, 64, 127],
    [256] * 3,
]


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize(
    "how", [ZScore(), ZScore(clip=1.0), ZScore(clip=None), Divide(), Divide(by_uv=3.0, clip=2.0)]
)
def test_against_plain_arithmetic(channels, how):
    signals = windows(channels)
    batch = batch_of(signals)
    x_BTC = materialise(batch, "cpu", STEP, 128, how)
    assert x_BTC.dtype == torch.float32
    assert x_BTC.shape == (len(channels), 64, 128)
    for i, signal in enumerate(signals):
        expected = plainly(signal, 128, how, int(batch.mask_seeds[i]))
        assert np.allclose(x_BTC[i].numpy(), expected, rtol=2e-6, atol=2e-6 * max(1, abs(expected).max())), i


@pytest.mark.parametrize("n_channels", [1, 5, 19, 20, 32, 300])
def test_tiling_is_dreamdiffusions(n_channels):
    """C < n: the whole montage n // C times, then its first n % C channels again."""
    signals = windows([19])
    x_TC = materialise(batch_of(signals, [3]), "cpu", STEP, n_channels, Divide(by_uv=1.0))[0].numpy()
    if n_channels >= 19:
        full = [signals[0]] * (n_channels // 19) + [signals[0][:, : n_channels % 19]]
        assert np.allclose(x_TC, np.concatenate(full, axis=1) * STEP)
    else:
        columns = [
            int(np.flatnonzero((abs(signals[0].T * STEP - column) < 1e-3).all(axis=1))[0])
            for column in x_TC.T
        ]
        assert columns == list(range(columns[0], columns[0] + n_channels))


def test_crops_follow_the_seed_and_reach_everywhere():
    signal = np.tile(np.arange(20, dtype=np.int16), (64, 1))
    x = materialise(batch_of([signal] * 400), "cpu", 1.0, 16, Divide(by_uv=1.0))
    starts = x[:, 0, 0].tolist()
    channels = torch.full((400,), 20)
    assert first_channels(torch.arange(400) + 77, channels, 16).tolist() == starts
    assert not first_channels(torch.arange(400), channels, 20).any()
    assert set(starts) == {0.0, 1.0, 2.0, 3.0, 4.0}
    again = materialise(batch_of([signal] * 3, [77, 78, 77]), "cpu", 1.0, 16, Divide(by_uv=1.0))[
        :, 0, 0
    ].tolist()
    assert again == [starts[0], starts[1], starts[0]]


def test_a_window_is_bitwise_the_same_in_any_company():
    signals = windows([20, 4, 128, 20, 130, 64] * 4, T=512, seed=1)
    whole = materialise(batch_of(signals), "cpu", STEP, 128, ZScore())
    for i in range(0, len(signals), 5):
        alone = materialise(batch_of([signals[i]], [77 + i]), "cpu", STEP, 128, ZScore())
        assert torch.equal(alone[0], whole[i])
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert torch.equal(materialise(batch_of(signals), "cpu", STEP, 128, ZScore()), whole)
    finally:
        torch.set_num_threads(threads)


def test_what_goes_along_with_the_windows_is_the_batchs_own():
    batch = batch_of(windows([20, 4, 128, 20]))
    batch.datasets = torch.tensor([2, -1, 0, 1])
    batch.valid = torch.tensor([True, False, True, True])
    given = to_device(batch, "cpu", STEP, 16, ZScore())
    assert torch.equal(given.x_BTC, materialise(batch, "cpu", STEP, 16, ZScore()))
    assert torch.equal(given.mask_seeds_B, batch.mask_seeds)
    assert given.datasets_B.tolist() == [2, 0, 0, 1]
    assert torch.equal(given.valid_B, batch.valid)
    assert given.valid_B.dtype == torch.bool


def test_statistics_are_exact_far_from_zero():
    """One step of variation on top of an offset near the end of the range, in a long window."""
    signal = np.full((10_000, 1), 32_000, np.int16)
    signal[::2] += 1
    x = materialise(batch_of([signal]), "cpu", 1.0, 1, ZScore(eps_uv=1e-3))
    assert sorted(set(x.flatten().tolist())) == pytest.approx([-1.0, 1.0], rel=5e-3)


def test_flat_and_quiet_channels_stay_quiet():
    signal = np.zeros((64, 3), np.int16)
    signal[:, 1] = 500
    signal[::64, 2] = 1  # one step once: a standard deviation of 0.0124 µV, below eps
    x = materialise(batch_of([signal]), "cpu", STEP, 3, ZScore(eps_uv=0.1))
    assert (x[..., :2] == 0).all()
    assert x[..., 2].abs().max() <= 1.0


def test_invalid_windows_are_zero():
    batch = batch_of([np.zeros((64, 1), np.int16), *windows([5])])
    x = materialise(batch, "cpu", STEP, 128, ZScore())
    assert (x[0] == 0).all()
    assert x[1].any()


def test_float32_store():
    signals = [signal.astype(np.float32) * 0.1 for signal in windows([20, 5])]
    x = materialise(batch_of(signals), "cpu", 1.0, 32, ZScore())
    for i, signal in enumerate(signals):
        wide = signal[:, np.arange(32) % signal.shape[1]].astype(np.float64)
        expected = (wide - wide.mean(axis=0)) / wide.std(axis=0)
        assert np.allclose(x[i].numpy(), expected, atol=1e-3)


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
@pytest.mark.parametrize("how", [ZScore(), Divide()])
def test_the_buffer_is_left_as_it_was(dtype, how):
    batch = batch_of(windows([128, 128], dtype=dtype))
    before = batch.flat.clone()
    first = materialise(batch, "cpu", STEP, 128, how)
    assert torch.equal(batch.flat, before)
    assert torch.equal(materialise(batch, "cpu", STEP, 128, how), first)
    assert first.data_ptr() != batch.flat.data_ptr()


def test_packing():
    packing = pack(np.array([20, 4, 20, 128, 4]), 10)
    assert packing.rows.tolist() == [1, 4, 0, 2, 3]
    assert [(g.channels, g.first, g.count, g.offset) for g in packing.groups] == [
        (4, 0, 2, 0),
        (20, 2, 2, 80),
        (128, 4, 1, 480),
    ]
    assert packing.offsets.tolist() == [80, 0, 280, 480, 40]
    assert packing.size == 1760


def test_window_views():
    signals = windows([20, 4, 20, 7])
    batch = batch_of(signals)
    assert all((batch.window(i).numpy() == signal).all() for i, signal in enumerate(signals))
