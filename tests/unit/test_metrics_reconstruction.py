"""Correlation and R² of masked reconstruction, against NumPy's and scikit-learn's own."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import r2_score

from ddscale.metrics.reconstruction import ReconstructionScore


@pytest.fixture
def windows():
    rng = np.random.default_rng(0)
    target = rng.normal(size=(5, 64, 3)) * [1.0, 10.0, 0.1] + [5.0, 0.0, -2.0]
    prediction = target + rng.normal(size=target.shape) * 0.5
    masked = rng.random((5, 64)) < 0.75
    return target, prediction, masked


def test_agrees_with_numpy_and_sklearn(windows):
    target, prediction, masked = windows
    score = ReconstructionScore()
    for t, p, m in zip(target, prediction, masked, strict=True):
        score.add(t, p, m)
    r = [
        np.corrcoef(t[m, c], p[m, c])[0, 1]
        for t, p, m in zip(target, prediction, masked, strict=True)
        for c in range(3)
    ]
    assert score.correlation == pytest.approx(np.mean(r), rel=1e-12)
    one = ReconstructionScore()
    one.add(target[0][:, :1], prediction[0][:, :1], masked[0])
    assert one.r_squared == pytest.approx(
        r2_score(target[0][masked[0], 0], prediction[0][masked[0], 0]), rel=1e-12
    )
    assert score.windows == 5


def test_only_masked_samples_count(windows):
    target, prediction, masked = windows
    changed = prediction.copy()
    changed[0][~masked[0]] = 1e6
    a, b = ReconstructionScore(), ReconstructionScore()
    a.add(target[0], prediction[0], masked[0])
    b.add(target[0], changed[0], masked[0])
    assert (a.correlation, a.r_squared, a.mean_squared_error) == (
        b.correlation,
        b.r_squared,
        b.mean_squared_error,
    )


def test_a_constant_prediction_has_no_correlation_and_the_mean_has_r_squared_zero(windows):
    target, _, masked = windows
    score = ReconstructionScore()
    own_mean = np.broadcast_to(target[0][masked[0]].mean(axis=0), target[0].shape)
    score.add(target[0], own_mean, masked[0])
    assert score.correlation == 0.0
    assert score.r_squared == pytest.approx(0.0, abs=1e-12)


def test_a_flat_channel_is_left_out_of_the_correlation(windows):
    target, prediction, masked = windows
    flat = target[0].copy()
    flat[:, 1] = 0.0
    with_flat, without = ReconstructionScore(), ReconstructionScore()
    with_flat.add(flat, prediction[0], masked[0])
    without.add(target[0][:, [0, 2]], prediction[0][:, [0, 2]], masked[0])
    assert with_flat.correlation == pytest.approx(without.correlation)


def test_nothing_added_is_not_a_number():
    assert np.isnan(ReconstructionScore().correlation)
    assert np.isnan(ReconstructionScore().r_squared)
