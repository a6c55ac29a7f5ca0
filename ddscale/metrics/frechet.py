"""Fréchet distance between two sets of pictures' features, gathered in memory independent of their number.

FID is this distance on the 2048 features of FID's own Inception-v3. On any other features it is another number
with another scale, and is called by the features' name (see `frechet_name`).

Legend: B pictures, D features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]

# Features are rounded to multiples of 2⁻²⁰ (1e-6) in −2048..2048: 32-bit integers, kept as two halves of 16.
_STEPS_PER_UNIT = 2.0**20
_HALF = 2.0**16
LARGEST = 2048.0
# A product of two halves is below 2³², so a matrix product of 2¹⁶ rows stays below 2⁵³ and is exact in float64.
_ROWS = 2**16


class FeatureMoments:
    """Count, mean and covariance of feature vectors, added batch by batch and merged in any order.

    The sums are whole numbers, added without rounding: the same pictures give the same bits however they were
    split into batches and over ranks, in whatever order they came. Rounding the features to 1e-6 is what that
    costs; memory is 3·D² integers (100 MB for D = 2048), whatever the number of pictures (below 2³¹).
    """

    def __init__(self, dimension: int, device: torch.device | str = "cpu") -> None:
        self.dimension = dimension
        self._count = torch.zeros(1, dtype=torch.int64, device=device)
        self._sum = torch.zeros(dimension, dtype=torch.int64, device=device)
        # Σ h·hᵀ, Σ h·lᵀ, Σ l·lᵀ of the features' high and low halves.
        self._products = torch.zeros(3, dimension, dimension, dtype=torch.int64, device=device)

    def add(self, features: Tensor) -> None:
        """Add features (B, D); raises ValueError when they are not finite or not within ±2048."""
        if features.ndim != 2 or features.shape[1] != self.dimension:
            raise ValueError(f"features of shape {tuple(features.shape)}, expected (B, {self.dimension}).")
        values = features.detach().to(self._sum.device, torch.float64)
        if not (values.abs() < LARGEST).all():
            raise ValueError(
                f"features reach {values.abs().max().item():.4g}; they must be finite and within ±{LARGEST:g}: "
                "look at the pictures or the network's weights, or scale the features."
            )
        for rows in values.split(_ROWS):
            steps = (rows * _STEPS_PER_UNIT).round()
            high = (steps / _HALF).floor()
            low = steps - high * _HALF
            self._count += len(rows)
            self._sum += steps.sum(dim=0).long()
            for i, (left, right) in enumerate(((high, high), (high, low), (low, low))):
                self._products[i] += (left.T @ right).long()

    def merge(self, other: FeatureMoments) -> None:
        """Add what another has gathered."""
        for mine, theirs in zip(self._state(), other._state(), strict=True):
            mine += theirs.to(mine.device)

    def all_reduce(self) -> None:
        """Merge over all ranks of the default process group: afterwards each holds the whole."""
        for tensor in self._state():
            dist.all_reduce(tensor)

    @property
    def count(self) -> int:
        return int(self._count)

    @property
    def nbytes(self) -> int:
        """Memory held, bytes."""
        return sum(tensor.nbytes for tensor in self._state())

    def gaussian(self) -> Gaussian:
        """Mean and sample covariance; raises ValueError with fewer than two pictures."""
        n = self.count
        if n < 2:
            raise ValueError(f"a covariance needs at least two pictures, {n} were added.")
        total = self._sum.cpu().numpy().astype(np.float64)
        high, cross, low = (product.cpu().numpy().astype(np.float64) for product in self._products)
        squares = high * _HALF**2 + (cross + cross.T) * _HALF + low
        mean = total / n
        covariance = (squares - np.outer(total, mean)) / (n - 1)
        # The rounding of total·mean is not symmetric.
        covariance = (covariance + covariance.T) / 2
        return Gaussian(mean / _STEPS_PER_UNIT, covariance / _STEPS_PER_UNIT**2, n)

    def _state(self) -> tuple[Tensor, Tensor, Tensor]:
        return self._count, self._sum, self._products


@dataclass(frozen=True)
class Gaussian:
    """Mean (D,) and covariance (D, D) of features, and how many pictures they come from."""

    mean: Floats
    covariance: Floats
    count: int


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """Squared Fréchet distance |μa − μb|² + tr(Σa + Σb − 2 (Σa Σb)^½).

    tr (Σa Σb)^½ is taken as the sum of the singular values of √Σaᵀ √Σb, with eigenvalues that are zero up to
    rounding left out. So covariances of deficient rank (fewer pictures than features) need no added constant,
    and no complex numbers arise as with the matrix square root of the product.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"features of {len(a.mean)} and {len(b.mean)} dimensions have no Fréchet distance.")
    offset = float(((a.mean - b.mean) ** 2).sum())
    root_a, root_b = _root(a.covariance), _root(b.covariance)
    overlap = float(torch.linalg.svdvals(root_a.T @ root_b).sum())
    return max(0.0, offset + float(np.trace(a.covariance) + np.trace(b.covariance)) - 2 * overlap)


def frechet_name(extractor: str) -> str:
    """What the distance may be called: "FID" on the standard Inception-v3 weights only."""
    return "FID" if extractor == "inception_v3" else f"frechet_{extractor}"


def _root(covariance: Floats) -> Tensor:
    """R of full column rank with R Rᵀ = covariance, (D, rank)."""
    values, vectors = torch.linalg.eigh(torch.from_numpy(covariance))
    kept = values > values[-1].clamp_min(0) * len(values) * torch.finfo(torch.float64).eps
    return vectors[:, kept] * values[kept].sqrt()
