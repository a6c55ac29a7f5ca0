"""Pixel by pixel: mean squared error, PSNR, SSIM, correlation. One value per picture, float64.

Legend: B pictures, H height, W width. Inputs: see `images.as_float`.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ddscale.metrics.images import Pixels, as_float_pair


def mse(generated: Pixels, reference: Pixels) -> Tensor:
    """Mean squared error of values in 0..1; (B,)."""
    a, b = as_float_pair(generated, reference)
    return (a - b).square().mean(dim=(1, 2, 3))


def psnr(generated: Pixels, reference: Pixels) -> Tensor:
    """Peak signal-to-noise ratio in dB, peak 1.0 (255 for uint8); (B,), infinite for equal pictures."""
    return -10 * torch.log10(mse(generated, reference))


def pixcorr(generated: Pixels, reference: Pixels) -> Tensor:
    """Pearson's correlation of all 3·H·W values; (B,), 0 where a picture is constant and has none."""
    a, b = (x.flatten(1) for x in as_float_pair(generated, reference))
    a = a - a.mean(dim=1, keepdim=True)
    b = b - b.mean(dim=1, keepdim=True)
    squares = a.square().sum(1) * b.square().sum(1)
    # A constant picture leaves the rounding of its mean behind, far below one grey level (1/255).
    varies = (a.abs().amax(1) > 1e-9) & (b.abs().amax(1) > 1e-9)
    return torch.where(varies, (a * b).sum(1) / squares.clamp_min(1e-300).sqrt(), 0.0)


def ssim(generated: Pixels, reference: Pixels, window: Literal["gaussian", "uniform"] = "gaussian") -> Tensor:
    """Structural similarity (Wang et al. 2004), averaged over the three colour planes; (B,).

    window: "gaussian" has sigma 1.5, 11 × 11, population covariance (the paper's settings; scikit-image with
        gaussian_weights=True, sigma=1.5, use_sample_covariance=False); "uniform" is 7 × 7 with sample
        covariance (scikit-image's defaults, with which DreamDiffusion was scored).
    Only windows wholly inside the picture count, as in the paper and scikit-image; torchmetrics averages
    over mirrored borders as well, which is another number.
    Raises ValueError when the pictures are smaller than the window.
    """
    a, b = as_float_pair(generated, reference)
    size = 11 if window == "gaussian" else 7
    if min(a.shape[-2:]) < size:
        raise ValueError(
            f"SSIM needs pictures of at least {size} × {size}, these are {a.shape[-2]} × {a.shape[-1]}."
        )
    unbiased = 1.0 if window == "gaussian" else size**2 / (size**2 - 1)
    mean_a, mean_b = _windowed(a, window), _windowed(b, window)
    variance_a = unbiased * (_windowed(a * a, window) - mean_a**2)
    variance_b = unbiased * (_windowed(b * b, window) - mean_b**2)
    covariance = unbiased * (_windowed(a * b, window) - mean_a * mean_b)
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    contrast = (2 * covariance + c2) / (variance_a + variance_b + c2)
    return (luminance * contrast).mean(dim=(1, 2, 3))


def _windowed(x: Tensor, window: str) -> Tensor:
    """Weighted mean over every window that lies inside the picture: (B, 3, H − k + 1, W − k + 1)."""
    if window == "uniform":
        return F.avg_pool2d(x, kernel_size=7, stride=1)
    taps = torch.exp(-0.5 * (torch.arange(-5, 6, dtype=x.dtype, device=x.device) / 1.5) ** 2)
    taps = (taps / taps.sum()).expand(3, 1, 1, -1)
    return F.conv2d(F.conv2d(x, taps, groups=3), taps.transpose(2, 3), groups=3)
