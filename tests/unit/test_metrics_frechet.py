"""Fréchet distance against scipy, torchmetrics and the usual formula; exact streaming in any order, on any ranks."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import psutil
import pytest
import scipy.linalg
import torch
from torchmetrics.image.fid import FrechetInceptionDistance

from ddscale.metrics.frechet import FeatureMoments, Gaussian, frechet_distance, frechet_name
from ddscale.metrics.inception_score import InceptionScore


def usual_formula(mean1, cov1, mean2, cov2, eps=1e-6):
    """The distance as pytorch-fid, torch-fidelity and clean-fid compute it."""
    root = scipy.linalg.sqrtm(cov1 @ cov2)
    if not np.isfinite(root).all():
        root = scipy.linalg.sqrtm((cov1 + eps * np.eye(len(cov1))) @ (cov2 + eps * np.eye(len(cov2))))
    offset = mean1 - mean2
    return offset @ offset + np.trace(cov1) + np.trace(cov2) - 2 * np.trace(np.real(root))


def moments_of(features, batch=64):
    moments = FeatureMoments(features.shape[1])
    for rows in torch.as_tensor(features).split(batch):
        moments.add(rows)
    return moments


def features(rng, n, d, offset=0.0):
    """Correlated, non-negative features like a network's pooled ones, float32."""
    mixed = rng.normal(size=(n, d)) @ (rng.normal(size=(d, d)) / np.sqrt(d)) + offset
    return np.maximum(mixed, 0).astype(np.float32)


def random_gaussian(rng, d):
    a = rng.normal(size=(d, d))
    return Gaussian(rng.normal(size=d), a @ a.T / d + 0.1 * np.eye(d), 1000)


def test_known_gaussians_against_the_closed_form_and_scipy():
    rng = np.random.default_rng(0)
    variances = rng.uniform(0.5, 3, (2, 20))
    means = rng.normal(size=(2, 20))
    a, b = (Gaussian(mean, np.diag(variance), 100) for mean, variance in zip(means, variances, strict=True))
    closed = ((means[0] - means[1]) ** 2).sum() + ((np.sqrt(variances[0]) - np.sqrt(variances[1])) ** 2).sum()
    assert frechet_distance(a, b) == pytest.approx(closed, rel=1e-12)
    a, b = random_gaussian(rng, 40), random_gaussian(rng, 40)
    expected = usual_formula(a.mean, a.covariance, b.mean, b.covariance)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_features_against_the_usual_formula_and_torchmetrics():
    rng = np.random.default_rng(1)
    real, made = features(rng, 3000, 96), features(rng, 2500, 96, offset=0.2)
    ours = frechet_distance(moments_of(real).gaussian(), moments_of(made).gaussian())
    statistics = [(x.mean(axis=0), np.cov(x, rowvar=False)) for x in (real.astype(float), made.astype(float))]
    assert ours == pytest.approx(usual_formula(*statistics[0], *statistics[1]), rel=1e-6)

    class Flat(torch.nn.Module):
        num_features = 96

        def forward(self, x):
            return x.flatten(1)

    theirs = FrechetInceptionDistance(feature=Flat())
    theirs.update(torch.from_numpy(real).view(-1, 96, 1, 1), real=True)
    theirs.update(torch.from_numpy(made).view(-1, 96, 1, 1), real=False)
    assert ours == pytest.approx(theirs.compute().item(), rel=1e-4)


def test_mean_and_covariance_are_numpys():
    x = features(np.random.default_rng(2), 500, 30).astype(np.float64) * 3 - 1
    gaussian = moments_of(x).gaussian()
    np.testing.assert_allclose(gaussian.mean, x.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(gaussian.covariance, np.cov(x, rowvar=False), atol=2e-6)
    assert gaussian.count == 500


def test_singular_covariances():
    """Fewer pictures than features: the matrix square root of the product is then at its worst."""
    rng = np.random.default_rng(3)
    few, others = features(rng, 20, 64), features(rng, 30, 64, offset=0.3)
    a, b = moments_of(few).gaussian(), moments_of(others).gaussian()
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-7 * np.trace(a.covariance))
    # The eigenvalues of Σa Σb are those of the small matrix (XᵀY)(XᵀY)ᵀ, where nothing is singular.
    x, y = (
        (features - features.mean(axis=0)) / np.sqrt(len(features) - 1)
        for features in (few.astype(float), others.astype(float))
    )
    overlap = np.sqrt(np.linalg.eigvalsh((x @ y.T) @ (x @ y.T).T).clip(0)).sum()
    offset = ((few.mean(0, dtype=float) - others.mean(0, dtype=float)) ** 2).sum()
    expected = offset + (x**2).sum() + (y**2).sum() - 2 * overlap
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-5)
    point = Gaussian(np.zeros(4), np.zeros((4, 4)), 5)
    assert frechet_distance(point, Gaussian(np.ones(4), np.eye(4), 5)) == pytest.approx(8.0)


def test_the_same_bits_in_any_batches_and_order():
    x = features(np.random.default_rng(4), 1000, 48)
    whole = moments_of(x, 1000)
    shuffled = np.random.default_rng(5).permutation(1000)
    first, second = moments_of(x[shuffled[:313]], 7), moments_of(x[shuffled[313:]], 101)
    second.merge(first)
    for a, b in zip(whole._state(), second._state(), strict=True):
        assert torch.equal(a, b)
    # Plain float64 sums do depend on the order: what this guards against does happen.
    assert (x.astype(float).T @ x != x[shuffled].astype(float).T @ x[shuffled]).any()


def test_memory_does_not_depend_on_the_number_of_pictures():
    """50,000 pictures' features are 100 MB; what is held stays as it was after the first batches."""
    rng = np.random.default_rng(6)
    moments = FeatureMoments(512)
    process = psutil.Process()
    for batch in range(100):
        moments.add(torch.from_numpy(rng.random((500, 512), dtype=np.float32)))
        if batch == 9:
            held, resident = moments.nbytes, process.memory_info().rss
    assert moments.count == 50_000
    assert moments.nbytes == held
    assert process.memory_info().rss - resident < 30e6


_RANK = """
import sys
import numpy as np, torch, torch.distributed as dist
from ddscale.metrics import ranks
from ddscale.metrics.frechet import FeatureMoments
from ddscale.metrics.inception_score import InceptionScore

rank, world, store, out = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
if world > 1:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
x = torch.from_numpy(np.random.default_rng(7).normal(size=(1003, 32)).astype(np.float32))
moments, score = FeatureMoments(32), InceptionScore(32)
for block in ranks.blocks(1003, 10):
    moments.add(x[block])
    score.add(x[block], block)
if world > 1:
    moments.all_reduce()
    score.all_reduce()
gaussian = moments.gaussian()
np.savez(f"{out}-{rank}.npz", mean=gaussian.mean, covariance=gaussian.covariance, score=score.result())
if world > 1:
    dist.destroy_process_group()  # left to the end of the program, gloo's threads abort it now and then
"""


def test_two_ranks_give_the_bits_of_one(tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                _RANK,
                str(rank),
                str(world),
                str(tmp_path / "store"),
                str(tmp_path / str(world)),
            ],
            env=environment,
        )
        for rank, world in ((0, 1), (0, 2), (1, 2))
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0, 0]
    one, first, second = (np.load(tmp_path / f"{name}.npz") for name in ("1-0", "2-0", "2-1"))
    for name in ("mean", "covariance", "score"):
        np.testing.assert_array_equal(one[name], first[name])
        np.testing.assert_array_equal(one[name], second[name])


def test_only_inception_on_its_standard_weights_is_called_fid():
    assert frechet_name("inception_v3") == "FID"
    assert frechet_name("efficientnet_lite0") == "frechet_efficientnet_lite0"
    assert frechet_name("inception_v3_1a2b3c4d") == "frechet_inception_v3_1a2b3c4d"


def test_what_cannot_be_summed_is_refused():
    moments = FeatureMoments(4)
    with pytest.raises(ValueError, match="±2048"):
        moments.add(torch.full((2, 4), 3000.0))
    with pytest.raises(ValueError, match="finite"):
        moments.add(torch.tensor([[0.0, 1.0, float("nan"), 0.0]]))
    with pytest.raises(ValueError, match=r"expected \(B, 4\)"):
        moments.add(torch.zeros(2, 5))
    moments.add(torch.zeros(1, 4))
    with pytest.raises(ValueError, match="two pictures"):
        moments.gaussian()


def usual_inception_score(logits, splits):
    """As torch-fidelity and the original: exp of the mean KL divergence to the split's mean, per split."""
    scores = []
    for split in range(splits):
        p = scipy.special.softmax(logits[split::splits].astype(float), axis=1)
        scores.append(np.exp((p * (np.log(p) - np.log(p.mean(axis=0)))).sum(axis=1).mean()))
    return np.mean(scores), np.std(scores)


def test_inception_score_against_the_usual_formula():
    logits = (np.random.default_rng(8).normal(size=(1000, 50)) * 2).astype(np.float32)
    score = InceptionScore(50)
    for start in range(0, 1000, 37):
        rows = slice(start, start + 37)
        score.add(torch.from_numpy(logits[rows]), np.arange(1000)[rows])
    assert score.result() == pytest.approx(usual_inception_score(logits, 10), rel=1e-6)


def test_inception_score_of_the_extremes():
    same, sure = InceptionScore(8), InceptionScore(8, splits=2)
    same.add(torch.ones(40, 8), np.arange(40))
    assert same.result() == pytest.approx((1.0, 0.0))
    sure.add(torch.eye(8).repeat(2, 1).repeat_interleave(2, 0) * 100, np.arange(32))
    assert sure.result()[0] == pytest.approx(8.0, rel=1e-6)
    with pytest.raises(ValueError, match="no picture"):
        InceptionScore(8).result()
