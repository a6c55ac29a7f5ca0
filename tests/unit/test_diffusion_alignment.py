"""Alignment with CLIP features on one rank; tests/distributed has it on several."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ddscale.diffusion.alignment import contrastive_errors, cosine_errors

GENERATOR = torch.Generator().manual_seed(0)
PREDICTED, TARGET = (torch.randn(6, 16, generator=GENERATOR) for _ in range(2))
ALL = torch.ones(6, dtype=torch.bool)


def test_cosine_is_0_for_the_same_direction_and_2_for_the_opposite():
    assert cosine_errors(PREDICTED, 3 * PREDICTED).abs().max() < 1e-6
    torch.testing.assert_close(cosine_errors(PREDICTED, -PREDICTED), torch.full((6,), 2.0))


def test_different_targets_give_the_symmetric_cross_entropy():
    logits = F.normalize(PREDICTED, dim=1) @ F.normalize(TARGET, dim=1).T / 0.07
    own = torch.arange(6)
    expected = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    errors = contrastive_errors(PREDICTED, TARGET, own, ALL, temperature=0.07)
    torch.testing.assert_close(errors.mean(), expected)


def test_samples_of_one_target_are_not_each_others_wrong_answer():
    identity = torch.tensor([0, 0, 1, 2, 3, 4])
    target = TARGET[identity]
    errors = contrastive_errors(target, target, identity, ALL, temperature=0.01)
    # Perfect predictions: the two share their answer in halves, so log 2 remains, and nothing for the others.
    torch.testing.assert_close(errors[:2], torch.full((2,), 2.0).log(), rtol=0, atol=1e-4)
    assert errors[2:].max() < 1e-4


@pytest.mark.parametrize("of_invalid", [[4, 5], [0, 0]])
def test_invalid_samples_neither_count_nor_compete(of_invalid):
    valid = torch.tensor([True, True, True, True, False, False])
    predicted = PREDICTED.clone().requires_grad_()
    identity = torch.tensor([0, 1, 2, 3, *of_invalid])
    errors = contrastive_errors(predicted, TARGET, identity, valid, temperature=0.07)
    fewer = contrastive_errors(PREDICTED[:4], TARGET[:4], torch.arange(4), ALL[:4], temperature=0.07)
    torch.testing.assert_close(errors[:4], fewer)
    assert (errors[4:] == 0).all()
    errors.sum().backward()
    assert torch.isfinite(predicted.grad).all()
    assert predicted.grad[4:].abs().max() < 1e-6


@pytest.mark.parametrize("valid", [ALL, ~ALL])
def test_errors_stay_finite_without_a_single_valid_sample(valid):
    errors = contrastive_errors(PREDICTED, TARGET, torch.arange(6), valid, temperature=0.07)
    assert torch.isfinite(errors).all()
