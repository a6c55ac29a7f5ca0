"""A spherical head: electrodes on it, and what current dipoles inside give at them.

Shapes: C electrodes, K dipoles. Lengths in head radii, right-anterior-superior.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ddscale.signal.channels import Channel, standardise

TEN_TWENTY = ("Fp1", "Fp2", "F7", "F3", "Fz", "F4", "F8", "T7", "C3", "Cz", "C4", "T8", "P7", "P3", "Pz", "P4", "P8",
              "O1", "O2")  # fmt: skip
_TERMS = 30  # of the series: at eccentricity 0.7 the next one adds 1e-4 of the first


def electrodes(names: Sequence[str]) -> np.ndarray:
    """Unit vectors (C, 3) of electrodes by the names a device gives them.

    Raises ValueError naming electrodes without a template position.
    """
    channels = standardise(list(names))
    unknown = [channel.name for channel in channels if channel.position is None]
    if unknown:
        raise ValueError(f"No template position for {', '.join(unknown)}.")
    positions_C3 = np.array([channel.position for channel in channels])
    # A few electrodes do not determine a sphere; all templates of the 10-05 system share one head.
    frame = channels if len(channels) >= len(TEN_TWENTY) else standardise(TEN_TWENTY)
    centre = _sphere_centre(frame)
    return unit_vectors(positions_C3 - centre)


def _sphere_centre(channels: Sequence[Channel]) -> np.ndarray:
    """Least squares: |p - c|² = r² is linear in c and r² - |c|²."""
    points = np.array([channel.position for channel in channels if channel.position is not None])
    system = np.column_stack([2 * points, np.ones(len(points))])
    return np.linalg.lstsq(system, (points**2).sum(axis=1), rcond=None)[0][:3]


def lead_field(electrodes_C3: np.ndarray, positions_K3: np.ndarray, moments_K3: np.ndarray) -> np.ndarray:
    """Potentials (C, K) of current dipoles in a homogeneous conducting sphere, against infinity, in free units.

    electrodes_C3: unit vectors. positions_K3: inside the sphere, not at its centre. moments_K3: any length.
    The Legendre series of Frank (1952): sum over n of (2n+1)/n b^(n-1) [n m·e P_n(c) + P_n'(c) m·(r - c e)],
    b the eccentricity, e its direction, r the electrode, c = r·e. The skull blurs like depth does: cortical
    sources belong at 0.55 to 0.75 of the radius here, deeper than they are.
    """
    depth_K = np.linalg.norm(positions_K3, axis=1)
    direction_K3 = positions_K3 / depth_K[:, None]
    cosine_CK = np.clip(electrodes_C3 @ direction_K3.T, -1, 1)
    radial_K = (moments_K3 * direction_K3).sum(axis=1)
    tangential_CK = electrodes_C3 @ moments_K3.T - cosine_CK * radial_K
    potential_CK = np.zeros_like(cosine_CK)
    before, legendre = np.ones_like(cosine_CK), cosine_CK
    slope_before, slope = np.zeros_like(cosine_CK), np.ones_like(cosine_CK)
    for n in range(1, _TERMS + 1):
        factor_K = (2 * n + 1) / n * depth_K ** (n - 1)
        potential_CK += factor_K * (n * radial_K * legendre + slope * tangential_CK)
        before, legendre = legendre, ((2 * n + 1) * cosine_CK * legendre - n * before) / (n + 1)
        slope_before, slope = slope, slope_before + (2 * n + 1) * before
    return potential_CK


def unit_vectors(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
