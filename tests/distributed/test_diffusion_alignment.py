"""Contrast across ranks: the same loss and gradients however samples are dealt out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from ddscale.diffusion.alignment import contrastive_errors

pytestmark = pytest.mark.distributed
RANKS = 2


def _batch():
    generator = torch.Generator().manual_seed(0)
    predicted, target = (torch.randn(8, 16, generator=generator) for _ in range(2))
    identity = torch.tensor([0, 1, 2, 3, 0, 4, 5, 6])
    valid = torch.tensor([True] * 7 + [False])
    return predicted, target[identity], identity, valid


def _one_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS)
    predicted, target, identity, valid = (x[rank::RANKS] for x in _batch())
    predicted = predicted.clone().requires_grad_()
    errors = contrastive_errors(predicted, target, identity, valid, temperature=0.07)
    errors.sum().backward()
    torch.save((errors.detach(), predicted.grad), f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_get_the_errors_and_gradients_of_one(tmp_path: Path):
    predicted, target, identity, valid = _batch()
    predicted.requires_grad_()
    errors = contrastive_errors(predicted, target, identity, valid, temperature=0.07)
    errors.sum().backward()
    mp.spawn(_one_rank, args=(str(tmp_path),), nprocs=RANKS)
    for rank in range(RANKS):
        theirs, gradient = torch.load(tmp_path / f"rank{rank}.pt")
        torch.testing.assert_close(theirs, errors.detach()[rank::RANKS])
        torch.testing.assert_close(gradient, predicted.grad[rank::RANKS])
