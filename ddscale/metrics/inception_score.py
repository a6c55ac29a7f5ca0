"""Inception Score (Salimans et al. 2016), gathered in memory independent of the number of pictures.

Legend: B pictures, K classes.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

# Probabilities and p·log p as whole multiples of 2⁻⁴⁰: their sums do not depend on order or ranks, and hold
# 2²⁰ pictures of up to 7 nats each.
_STEPS_PER_UNIT = 2.0**40


class InceptionScore:
    """exp of the mean KL divergence between each picture's classes and the classes of all.

    Pictures are dealt to `splits` by their position, and mean and standard deviation over splits are given, as
    is usual. Higher is better; 1 is the least. It says nothing about likeness to the pictures shown.
    """

    def __init__(self, classes: int, splits: int = 10, device: torch.device | str = "cpu") -> None:
        self.splits = splits
        self._counts = torch.zeros(splits, dtype=torch.int64, device=device)
        self._probabilities = torch.zeros(splits, classes, dtype=torch.int64, device=device)
        self._negative_entropy = torch.zeros(splits, dtype=torch.int64, device=device)

    def add(self, logits: Tensor, positions: NDArray[np.int64]) -> None:
        """Add class scores (B, K) of the pictures at `positions` (B,) in the whole set."""
        logs = logits.detach().to(self._counts.device, torch.float64).log_softmax(dim=1)
        if not torch.isfinite(logs).all():
            raise ValueError("class scores are not finite: look at the pictures or the network's weights.")
        probabilities = logs.exp()
        split = torch.from_numpy(np.asarray(positions) % self.splits).to(self._counts.device)
        self._counts.index_add_(0, split, torch.ones_like(split))
        self._probabilities.index_add_(0, split, (probabilities * _STEPS_PER_UNIT).round().long())
        entropy = (probabilities * logs).sum(dim=1)
        self._negative_entropy.index_add_(0, split, (entropy * _STEPS_PER_UNIT).round().long())

    def all_reduce(self) -> None:
        """Merge over all ranks of the default process group."""
        for tensor in (self._counts, self._probabilities, self._negative_entropy):
            dist.all_reduce(tensor)

    def result(self) -> tuple[float, float]:
        """Mean and standard deviation over the splits that hold pictures."""
        held = self._counts > 0
        if not held.any():
            raise ValueError("no picture was added to the Inception Score.")
        counts = self._counts[held].double()
        mean = self._probabilities[held].double() / _STEPS_PER_UNIT / counts[:, None]
        negative_entropy = self._negative_entropy[held].double() / _STEPS_PER_UNIT / counts
        scores = (negative_entropy - torch.special.xlogy(mean, mean).sum(dim=1)).exp()
        return float(scores.mean()), float(scores.std(correction=0))
