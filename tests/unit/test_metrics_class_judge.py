"""The judge of classes knows real pictures it has not seen, and says when it cannot serve."""

from __future__ import annotations

import numpy as np
import pytest

from ddscale.diffusion.toy_digits import load_digits
from ddscale.metrics.class_judge import Accuracy, ClassJudge


@pytest.fixture(scope="module")
def digits():
    return load_digits()


def test_it_knows_real_digits_it_has_not_seen(digits):
    labels = np.array([str(label) for label in digits.labels])
    judge = ClassJudge(digits.images[~digits.held_out], list(labels[~digits.held_out]))
    unseen = digits.images[digits.held_out]
    assert judge.right(unseen, list(labels[digits.held_out])).mean() >= 0.95
    wrong = np.random.default_rng(0).permutation(labels[digits.held_out])
    assert 0.02 < judge.right(unseen, list(wrong)).mean() < 0.2
    assert judge.learned_from == (~digits.held_out).sum()


def test_what_is_too_large_or_too_little_is_refused(digits):
    labels = [str(label) for label in digits.labels]
    with pytest.raises(ValueError, match="too large"):
        ClassJudge(np.zeros((4, 3, 128, 128), dtype=np.uint8), ["a", "b", "a", "b"])
    with pytest.raises(ValueError, match="too few"):
        ClassJudge(digits.images[:12], labels[:12])


def test_accuracy_has_its_interval():
    accuracy = Accuracy.of(np.array([True] * 60 + [False] * 40))
    assert (accuracy.value, accuracy.judged) == (0.6, 100)
    assert accuracy.low == pytest.approx(0.502, abs=2e-3)
    assert accuracy.high == pytest.approx(0.691, abs=2e-3)
